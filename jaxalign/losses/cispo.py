"""CISPO: the policy gradient with clipped importance weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32
from jaxalign.losses.ratios import Level, importance_ratios, log_ratios, token_advantages
from jaxalign.masking import as_mask, masked


def cispo_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    cap: Scalar = 5.0,
    importance_level: Level = "token",
) -> Float[Array, "B T"]:
    """Clipped importance-sampling policy optimization: one loss per token.

    w = stop_gradient(min(exp(logps - old_logps), cap))
    loss = -w * A * logps

    The clip bounds the weight and not the update: no token loses its gradient, whatever its ratio.

    Args:
      logps: log-probs under the policy that is trained, nats.
      old_logps: under the policy that sampled; no gradient.
      advantages: one per row or one per token; no gradient.
      mask: tokens that contribute; None for all.
      cap: the largest weight itself, positive: TRL's `epsilon_high`, which for this loss is not added to
        1. With epsilon_high as the paper writes it, cap = 1 + epsilon_high. There is no lower clip.
      importance_level: as in `grpo_loss`.

    Returns:
      float32, unreduced, usually reduced by `token_mean` with the global count; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete cap out of range, or no such level.

    Source: arXiv:2506.13585; the cap of 5: arXiv:2510.13786.
    """
    check_range("cap", cap, 0.0, open_low=True)
    check_rank(2, logps=logps)
    check_shapes(logps=logps, old_logps=old_logps, mask=mask)
    mask = as_mask(mask, logps)
    advantages = token_advantages(advantages, logps, mask)
    ratio = importance_ratios(log_ratios(logps, old_logps, mask), mask, importance_level)
    weight = jax.lax.stop_gradient(jnp.minimum(ratio, jnp.asarray(cap, jnp.float32)))
    return -weight * advantages * masked(float32(logps), mask)
