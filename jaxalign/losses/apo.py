"""APO: anchored preference optimization, of pairs and of labeled completions."""

import jax
from jaxtyping import Array, Bool, Float

from jaxalign.arrays import Scalar, check_range
from jaxalign.losses.kto import kto_loss
from jaxalign.losses.margins import pair_log_ratios


def apo_zero_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
) -> Float[Array, " B"]:
    """APO-zero: raises chosen, lowers rejected; for pairs whose chosen completion beats the policy's own.

    c, r = beta * (policy - ref) of the chosen and of the rejected completion
    loss = (1 - sigmoid(c)) + sigmoid(r)

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.

    Returns:
      float32, unreduced, in [0, 2]; 1 wherever policy equals reference.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2408.06266, eq. 7.
    """
    check_range("beta", beta, 0.0, open_low=True)
    chosen, rejected = pair_log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


def apo_down_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
) -> Float[Array, " B"]:
    """APO-down: lowers both, rejected more; for pairs whose chosen completion is worse than the policy's own.

    c, r = beta * (policy - ref) of the chosen and of the rejected completion
    loss = sigmoid(c) + (1 - sigmoid(c - r))

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.

    Returns:
      float32, unreduced, in [0, 2]; 1 wherever policy equals reference.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2408.06266, eq. 8.
    """
    check_range("beta", beta, 0.0, open_low=True)
    chosen, rejected = pair_log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(beta * (rejected - chosen))


def apo_zero_unpaired_loss(
    policy_logps: Float[Array, " B"],
    ref_logps: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    *,
    beta: Scalar,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Float[Array, " B"]:
    """APO-zero of labeled completions: `kto_loss` with kl = 0.

    r = beta * (policy - ref)
    loss = desirable_weight * (1 - sigmoid(r)) where desirable, undesirable_weight * sigmoid(r) elsewhere

    Args:
      policy_logps, ref_logps, desirable, beta: as in `kto_loss`.
      desirable_weight, undesirable_weight: not negative.

    Returns:
      float32, unreduced; half the weight wherever policy equals reference.

    Raises:
      AssertionError: shapes differ, or the labels are not bool.
      ValueError: a concrete hyper-parameter out of range.

    Source: the two terms of arXiv:2408.06266, eq. 7, each on completions of its own.
    """
    return kto_loss(
        policy_logps,
        ref_logps,
        desirable,
        beta=beta,
        kl=0.0,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
