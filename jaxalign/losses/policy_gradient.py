"""The clipped policy loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import Scalar, check_range, check_shapes, float32
from jaxalign.masking import as_mask, masked


def ppo_policy_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    dual_clip: Scalar | None = None,
) -> Float[Array, "B T"]:
    """PPO's clipped surrogate, one loss per token.

    r = exp(logps - old_logps)
    loss = max(-A * r, -A * clip(r, 1 - clip_low, 1 + clip_high))
    dual clip, where A < 0: loss = min(loss, -A * dual_clip)

    Args:
      logps: log-probs under the policy that is trained, nats.
      old_logps: under the policy that sampled; no gradient.
      advantages: no gradient.
      mask: tokens that count; None for all.
      clip_low, clip_high: how far the ratio counts below and above 1; clip_low in [0, 1].
      dual_clip: bound on the ratio where the advantage is negative, above 1; None for none.

    Returns:
      float32, unreduced; -A where the policies are equal; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:1707.06347, eq. 7; asymmetric: arXiv:2503.14476; dual clip: arXiv:1912.09729, eq. 5.
    """
    check_range("clip_low", clip_low, 0.0, 1.0)
    check_range("clip_high", clip_high, 0.0)
    check_range("dual_clip", dual_clip, 1.0, open_low=True)
    check_shapes(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask)
    mask = as_mask(mask, logps)
    old = jax.lax.stop_gradient(masked(float32(old_logps), mask))
    advantages = jax.lax.stop_gradient(masked(float32(advantages), mask))
    # Beyond 20 nats the ratio is useless and exp may overflow: inf * 0 would be NaN.
    ratio = jnp.exp(jnp.clip(masked(float32(logps), mask) - old, -20.0, 20.0))
    clipped = jnp.clip(
        ratio, 1.0 - jnp.asarray(clip_low, jnp.float32), 1.0 + jnp.asarray(clip_high, jnp.float32)
    )
    loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is not None:
        bounded = jnp.minimum(loss, -advantages * jnp.asarray(dual_clip, jnp.float32))
        loss = jnp.where(advantages < 0, bounded, loss)
    return masked(loss, mask)
