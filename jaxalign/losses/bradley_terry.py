"""Reward-model losses: pairs, and the best of several candidates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from jaxalign.arrays import Scalar, check_leading, check_range, check_rank, check_shapes, float32


def bradley_terry_loss(
    chosen_rewards: Real[Array, " B"],
    rejected_rewards: Real[Array, " B"],
    *,
    margin: Scalar | Real[Array, " B"] = 0.0,
    temperature: Scalar = 1.0,
    label_smoothing: Scalar = 0.0,
    center_coefficient: Scalar = 0.0,
) -> Float[Array, " B"]:
    """Bradley-Terry: one loss per pair.

    d = (chosen - rejected) / temperature - margin
    loss = -(1 - s) * log_sigmoid(d) - s * log_sigmoid(-d) + c * (chosen + rejected)^2

    Args:
      chosen_rewards, rejected_rewards: scores; any dtype, computed in float32.
      margin: scalar or one per pair, how much better chosen should be (Llama 2, arXiv:2307.09288,
        eq. 2), in units of reward / temperature; no gradient.
      temperature: positive.
      label_smoothing: s, chance that a label is flipped; in [0, 0.5].
      center_coefficient: c, keeps scores near 0 (arXiv:2312.09244, section 2).

    Returns:
      float32, unreduced; log 2 where the scores are equal and margin and c are 0.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2203.02155, eq. 1.
    """
    check_range("temperature", temperature, 0.0, open_low=True)
    check_range("label_smoothing", label_smoothing, 0.0, 0.5)
    check_range("center_coefficient", center_coefficient, 0.0)
    check_shapes(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    chosen, rejected = float32(chosen_rewards), float32(rejected_rewards)
    margin = jax.lax.stop_gradient(float32(margin))
    if margin.ndim:
        check_shapes(chosen_rewards=chosen, margin=margin)
    difference = (chosen - rejected) / temperature - margin
    loss = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(difference)
    loss -= label_smoothing * jax.nn.log_sigmoid(-difference)
    return loss + center_coefficient * jnp.square(chosen + rejected)


def best_of_n_loss(rewards: Real[Array, "B K"], best: Int[Array, " B"]) -> Float[Array, " B"]:
    """Softmax cross-entropy of the candidate that people chose.

    loss = -log softmax(rewards)[best]

    Args:
      rewards: a score per candidate; any dtype, computed in float32.
      best: index of the chosen candidate, in [0, K).

    Returns:
      float32, unreduced; log K where the scores are equal. K = 2 is `bradley_terry_loss`.

    Raises:
      AssertionError: ranks or row counts do not fit.

    Source: arXiv:1909.08593, eq. 1.
    """
    check_rank(2, rewards=rewards)
    check_rank(1, best=best)
    check_leading(1, rewards=rewards, best=best)
    logps = jax.nn.log_softmax(float32(rewards), axis=-1)
    return -jnp.take_along_axis(logps, best[:, None], axis=-1)[:, 0]
