"""SPPO: self-play preference optimization."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range
from jaxalign.losses.margins import pair_log_ratios


def sppo_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
) -> Float[Array, " B"]:
    """Self-play preference optimization with hard labels: one loss per pair.

    c, r = policy - ref of the chosen and of the rejected completion
    loss = (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2

    Each log-ratio has its own target: the chosen completion's win probability is taken as 1, the rejected one's as 0.

    Args:
      policy_*_logps, ref_*_logps: as in `dpo_loss`.
      beta: positive; 1 / eta in the paper.

    Returns:
      float32, unreduced; 1 / (2 beta^2) wherever policy equals reference.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2405.00675, eq. 4.7, without the soft win rates of its ranker.
    """
    check_range("beta", beta, 0.0, open_low=True)
    chosen, rejected = pair_log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    target = 0.5 / beta
    return jnp.square(chosen - target) + jnp.square(rejected + target)
