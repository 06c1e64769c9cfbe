"""XPO: online preference optimization with exploration."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.arrays import Scalar, check_range, check_shapes, float32
from jaxalign.losses.dpo import dpo_loss, ipo_loss
from jaxalign.losses.margins import check_labels, check_vectors


def xpo_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    policy_sample_chosen: Bool[Array, " B"],
    *,
    beta: Scalar,
    alpha: Scalar,
    base: Literal["sigmoid", "ipo"] = "sigmoid",
) -> Float[Array, " B"]:
    """Exploratory preference optimization: DPO on a sample of the policy and one of the reference, with optimism.

    loss = dpo_loss + alpha * policy log-prob of the *reference's* sample

    Lowering the likelihood of the reference's samples encourages exploration.

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.
      policy_sample_chosen: bool, True where the policy's own sample is the chosen one, and the reference's
        the rejected one.
      alpha: strength of the optimism, in units of one over nats; not negative, 0 is online DPO.
      base: `sigmoid` for `dpo_loss`, `ipo` for `ipo_loss`.

    Returns:
      float32, unreduced.

    Raises:
      AssertionError: shapes differ, or the labels are not bool.
      ValueError: a concrete hyper-parameter out of range, or no such base.

    Source: arXiv:2405.21046.
    """
    check_range("alpha", alpha, 0.0)
    check_vectors(policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps)
    check_shapes(policy_chosen_logps=policy_chosen_logps, policy_sample_chosen=policy_sample_chosen)
    check_labels(policy_sample_chosen=policy_sample_chosen)
    if base not in ("sigmoid", "ipo"):
        raise ValueError(f"base must be sigmoid or ipo, got {base!r}")
    # Each is used twice: one cast, so that the two gradients are added in float32.
    chosen, rejected = float32(policy_chosen_logps), float32(policy_rejected_logps)
    pair = dpo_loss if base == "sigmoid" else ipo_loss
    loss = pair(chosen, rejected, ref_chosen_logps, ref_rejected_logps, beta=beta)
    return loss + alpha * jnp.where(policy_sample_chosen, rejected, chosen)
