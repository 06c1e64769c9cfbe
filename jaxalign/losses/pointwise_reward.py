"""Reward-model losses on single labels: regression, binary labels, and steps of a solution."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def reward_regression_loss(
    rewards: Real[Array, "..."],
    targets: Real[Array, "..."],
    mask: Shaped[Array, "..."] | None = None,
    *,
    huber_delta: Scalar | None = None,
) -> Float[Array, "..."]:
    """Squared error of each score, or the Huber loss.

    e = rewards - targets
    loss = e^2;  with huber_delta = d, where |e| > d: loss = d * (2 |e| - d)

    Args:
      rewards: scores: [B], or [B, M] with one column per objective; any dtype, computed in float32.
      targets: labels of the same shape; no gradient.
      mask: labels that are there; None for all. Data sets that rate different objectives leave gaps.
      huber_delta: d, in units of the reward, positive; None for the square everywhere.

    Returns:
      float32, the same shape, unreduced; 0 where masked. No factor 1/2: with huber_delta it is
      twice the usual Huber loss, so that the option changes nothing near 0.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete huber_delta that is not positive.

    Source: multi-objective regression: arXiv:2406.12845; Huber: P. J. Huber (1964).
    """
    check_range("huber_delta", huber_delta, 0.0, open_low=True)
    check_shapes(rewards=rewards, targets=targets, mask=mask)
    mask = as_mask(mask, rewards)
    error = masked(float32(rewards), mask) - jax.lax.stop_gradient(masked(float32(targets), mask))
    if huber_delta is None:
        return jnp.square(error)
    inside = jnp.clip(error, -huber_delta, huber_delta)
    return inside * (2.0 * error - inside)


def reward_bce_loss(
    rewards: Real[Array, "..."],
    labels: Shaped[Array, "..."],
    mask: Shaped[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Binary cross-entropy of each score as a logit.

    loss = -y * log_sigmoid(r) - (1 - y) * log_sigmoid(-r)

    Args:
      rewards: r, logits of being good; any dtype, computed in float32.
      labels: y: bool, 0 or 1, or a probability in [0, 1]; no gradient.
      mask: labels that are there; None for all.

    Returns:
      float32 nats, the same shape, unreduced; log 2 where the score is 0; 0 where masked.

    Raises:
      AssertionError: shapes differ.

    Source: verifiers that tell right from wrong: arXiv:2110.14168.
    """
    check_shapes(rewards=rewards, labels=labels, mask=mask)
    mask = as_mask(mask, rewards)
    logits = masked(float32(rewards), mask)
    y = jax.lax.stop_gradient(masked(float32(labels), mask))
    return masked(-y * jax.nn.log_sigmoid(logits) - (1.0 - y) * jax.nn.log_sigmoid(-logits), mask)


def process_reward_loss(
    logits: Real[Array, "B T"],
    labels: Shaped[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Process reward model: `reward_bce_loss` at the end of each step of a solution.

    Args:
      logits: one score per token of a scalar head; any dtype, computed in float32.
      labels: bool, 0 or 1, or the share of continuations that came out right; read only where a
        step ends; no gradient.
      mask: the tokens at which a step ends; None for all. The labels -100 of the usual token
        classification are `mask = labels != -100`.

    Returns:
      float32 nats, unreduced; 0 where masked.

    Raises:
      AssertionError: shapes differ, or not [B, T].

    Source: arXiv:2305.20050. A head with two classes and cross-entropy is the same loss, with
    logits = (logit of right) - (logit of wrong).
    """
    check_rank(2, logits=logits)
    check_shapes(logits=logits, labels=labels, mask=mask)
    return reward_bce_loss(logits, labels, mask)
