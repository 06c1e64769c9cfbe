"""Clipped value regression."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_shapes, float32
from jaxalign.masking import as_mask, masked


def ppo_value_loss(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip: Scalar | None = None,
) -> Float[Array, "B T"]:
    """Squared error of the value, pessimistic where it changed by more than `clip`.

    c = old + clip(values - old, -clip, clip)
    loss = 0.5 * max((values - returns)^2, (c - returns)^2)

    Args:
      values: values that are trained.
      old_values: values at the rollout; no gradient.
      returns: targets; no gradient.
      mask: tokens that contribute; None for all.
      clip: maximum change of a value, in units of the reward, positive; None for no clipping.

    Returns:
      float32, unreduced; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete clip out of range.

    Source: the value clipping of openai/baselines PPO2, as used in arXiv:1909.08593.
    """
    check_range("clip", clip, 0.0, open_low=True)
    check_shapes(values=values, old_values=old_values, returns=returns, mask=mask)
    mask = as_mask(mask, values)
    values = masked(float32(values), mask)
    old = jax.lax.stop_gradient(masked(float32(old_values), mask))
    returns = jax.lax.stop_gradient(masked(float32(returns), mask))
    error = jnp.square(values - returns)
    if clip is not None:
        bound = jnp.asarray(clip, jnp.float32)
        moved = old + jnp.clip(values - old, -bound, bound)
        error = jnp.maximum(error, jnp.square(moved - returns))
    return masked(0.5 * error, mask)
