"""Shared by losses with an old policy: token advantages, probability ratios and the clip."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_shapes, float32
from jaxalign.masking import masked

Level = Literal["token", "sequence", "sequence_token"]

LARGEST_LOG_RATIO = 20.0
"""Nats. Beyond it a ratio is useless (e^20 is 5e8), and exp may overflow: inf * 0 would be NaN."""


def exp_ratio(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp of a log-ratio clipped to +-20 nats; no gradient where it is clipped."""
    return jnp.exp(jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def log_ratios(
    logps: Float[Array, "..."], old_logps: Float[Array, "..."], mask: Shaped[Array, "..."]
) -> Float[Array, "..."]:
    """logps - old_logps in float32, no gradient to the old ones; 0 where masked."""
    return masked(float32(logps), mask) - jax.lax.stop_gradient(masked(float32(old_logps), mask))


def row_means(x: Float[Array, "B T"], mask: Shaped[Array, "B T"]) -> Float[Array, " B"]:
    """Mean over the unmasked tokens of each row; 0 where there is none."""
    tokens = jnp.sum(mask, axis=1, dtype=jnp.float32)
    return jnp.sum(masked(x, mask), axis=1) / jnp.maximum(tokens, 1.0)


def importance_ratios(log_ratio: Float[Array, "B T"], mask: Shaped[Array, "B T"], level: Level) -> jax.Array:
    """The importance ratio of each token.

    token:           r_t = exp(d_t)
    sequence:        s = exp(mean_t d_t), the same for all tokens of a row
    sequence_token:  the value of s with the gradient of token t alone: ds/dlogps_t = s
    """
    if level == "token":
        return exp_ratio(log_ratio)
    mean = row_means(log_ratio, mask)[:, None]
    if level == "sequence":
        return jnp.broadcast_to(exp_ratio(mean), log_ratio.shape)
    if level == "sequence_token":
        own = log_ratio - jax.lax.stop_gradient(log_ratio)
        return exp_ratio(jax.lax.stop_gradient(mean) + own)
    raise ValueError(f"importance_level must be token, sequence or sequence_token, got {level!r}")


def check_advantages(advantages: jax.Array, logps: jax.Array) -> None:
    """Checks that advantages are [B] or [B, T].

    Raises:
      AssertionError: naming both.
    """
    shape, tokens = jnp.shape(advantages), jnp.shape(logps)
    if shape not in (tokens, tokens[:1]):
        raise AssertionError(
            f"advantages has shape {shape}, expected {tokens[:1]} or {tokens}, as logps has shape {tokens}"
        )


def token_advantages(
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    logps: Float[Array, "B T"],
    mask: Shaped[Array, "B T"],
) -> Float[Array, "B T"]:
    """The advantage of each token, float32, no gradient; 0 where masked."""
    check_advantages(advantages, logps)
    advantages = float32(advantages)
    if advantages.ndim == 1:
        advantages = jnp.broadcast_to(advantages[:, None], logps.shape)
    return jax.lax.stop_gradient(masked(advantages, mask))


def row_advantages(
    advantages: Real[Array, " B"], logps: Float[Array, "B T"], mask: Shaped[Array, "B T"]
) -> Float[Array, " B"]:
    """The advantage of each row, float32, no gradient; 0 where the row has no unmasked token."""
    check_shapes(logps_rows=jnp.zeros(logps.shape[:1]), advantages=advantages)
    return jax.lax.stop_gradient(masked(float32(advantages), jnp.any(mask, axis=1)))


def check_clips(clip_low: Scalar, clip_high: Scalar, dual_clip: Scalar | None = None) -> None:
    """Checks the bounds of a clip around 1.

    Raises:
      ValueError: naming the one that is out of range.
    """
    check_range("clip_low", clip_low, 0.0, 1.0)
    check_range("clip_high", clip_high, 0.0)
    check_range("dual_clip", dual_clip, 1.0, open_low=True)


def clipped_surrogate(
    ratio: Float[Array, "..."],
    advantages: Float[Array, "..."],
    clip_low: Scalar,
    clip_high: Scalar,
    dual_clip: Scalar | None = None,
) -> Float[Array, "..."]:
    """max(-A * r, -A * clip(r, 1 - low, 1 + high)); where A < 0 at most -A * dual_clip."""
    low, high = jnp.asarray(clip_low, jnp.float32), jnp.asarray(clip_high, jnp.float32)
    loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1.0 - low, 1.0 + high))
    if dual_clip is None:
        return loss
    bounded = jnp.minimum(loss, -advantages * jnp.asarray(dual_clip, jnp.float32))
    return jnp.where(advantages < 0, bounded, loss)
