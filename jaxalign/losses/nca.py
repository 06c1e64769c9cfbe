"""NCA: noise-contrastive alignment."""

import jax
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range
from jaxalign.losses.margins import pair_log_ratios


def nca_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
) -> Float[Array, " B"]:
    """Noise-contrastive alignment on pairs: keeps the chosen completion's own likelihood from falling.

    r = beta * (policy - ref) of each completion
    loss = -log_sigmoid(r_chosen) - 0.5 * log_sigmoid(-r_chosen) - 0.5 * log_sigmoid(-r_rejected)

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.

    Returns:
      float32, unreduced; 2 log 2 wherever policy equals reference.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2402.05369, of two completions with the rewards of a preference.
    """
    check_range("beta", beta, 0.0, open_low=True)
    chosen, rejected = pair_log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    chosen, rejected = beta * chosen, beta * rejected
    noise = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
    return -jax.nn.log_sigmoid(chosen) - 0.5 * noise
