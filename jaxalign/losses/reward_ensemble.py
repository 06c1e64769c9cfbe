"""Combines several scores of a completion: members of an ensemble, or heads for several objectives."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32


def aggregate_ensemble(
    rewards: Real[Array, "K B"],
    *,
    mode: Literal["mean", "mean_minus_std", "worst"] = "mean",
    coefficient: Scalar = 1.0,
) -> Float[Array, " B"]:
    """Combines the rewards of an ensemble's members; disagreement can lower the result.

    mean:            mean_k r_k
    mean_minus_std:  mean_k r_k - coefficient * std_k r_k
    worst:           min_k r_k

    Args:
      rewards: one row per member; any dtype, computed in float32.
      mode: which.
      coefficient: not negative; read in `mean_minus_std` only.

    Returns:
      float32 [B]; the member's own reward where K = 1.

    Raises:
      AssertionError: rewards are not [K, B].
      ValueError: no such mode, or a concrete coefficient out of range.

    Source: arXiv:2310.02743, which subtracts the variance; here it is the standard
    deviation (see `ensemble_disagreement`), which has the reward's unit.
    """
    check_range("coefficient", coefficient, 0.0)
    check_rank(2, rewards=rewards)
    scores = float32(rewards)
    if mode == "mean":
        return jnp.mean(scores, axis=0)
    if mode == "mean_minus_std":
        return jnp.mean(scores, axis=0) - coefficient * ensemble_disagreement(scores)
    if mode == "worst":
        return jnp.min(scores, axis=0)
    raise ValueError(f"mode must be mean, mean_minus_std or worst, got {mode!r}")


def ensemble_disagreement(rewards: Real[Array, "K B"]) -> Float[Array, " B"]:
    """Standard deviation over the members, of each completion's reward.

    std = sqrt(mean_k (r_k - mean)^2)

    Args:
      rewards: one row per member; any dtype, computed in float32.

    Returns:
      float32 [B]; over K, not K - 1: the members are all there are. 0, with gradient 0, where all
      agree, and where K = 1.

    Raises:
      AssertionError: rewards are not [K, B].
    """
    check_rank(2, rewards=rewards)
    scores = float32(rewards)
    variance = jnp.mean(jnp.square(scores - jnp.mean(scores, axis=0)), axis=0)
    # The slope of sqrt at 0 is infinite.
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)


def combine_objectives(
    rewards: Real[Array, "B M"], weights: Real[Array, " M"] | Real[Array, "B M"]
) -> Float[Array, " B"]:
    """Combines the rewards of several objectives: sum_m w_m r_m.

    The heads are trained by `reward_regression_loss` on [B, M], which gives a loss per objective.

    Args:
      rewards: one column per objective; any dtype, computed in float32.
      weights: one per objective, or one per row and objective (from a gate that reads the prompt);
        taken as they are: they need not sum to 1, and may be negative (against length).

    Returns:
      float32 [B]; gradients reach rewards and weights.

    Raises:
      AssertionError: incompatible shapes.

    Source: arXiv:2406.12845.
    """
    check_rank(2, rewards=rewards)
    check_rank((1, 2), weights=weights)
    scores, weights = float32(rewards), float32(weights)
    if weights.ndim == 2:
        check_shapes(rewards=scores, weights=weights)
    elif weights.shape != scores.shape[1:]:
        raise AssertionError(f"weights has shape {weights.shape}, but rewards has shape {scores.shape}")
    return jnp.sum(scores * jnp.broadcast_to(weights, scores.shape), axis=-1)
