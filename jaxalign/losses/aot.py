"""AOT: alignment of whole distributions, by comparing rows of equal rank."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range, check_shapes, float32
from jaxalign.losses.margins import check_vectors, pair_log_ratios, smoothed_logistic


def aot_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    label_smoothing: Scalar = 0.0,
    matched: Float[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Alignment via optimal transport on pairs: one loss per pair.

    p = policy_chosen - policy_rejected;  q = ref_chosen - ref_rejected
    m_i = beta * (p_i - q_j),  where q_j has the rank among all q that p_i has among all p
    loss = -(1 - s) * log_sigmoid(m) - s * log_sigmoid(-m)

    Every quantile of the policy's margins is pushed above the reference's. With one row it is `dpo_loss`.

    Ranks couple rows. A micro-batch is given `matched`, the q_j of its rows, found over the whole batch by
    `rank_matched(p, q)`; p is then the policy's before this update. The parts equal the whole.

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.
      label_smoothing: s, in [0, 0.5).
      matched: the reference margin of the same rank in nats, no gradient; None: among these rows.

    Returns:
      float32, unreduced; row i is that of pair i (TRL's means are over rows in sorted order).

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2406.05882, with hard ranks and the logistic loss.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("label_smoothing", label_smoothing, 0.0, 0.5, open_high=True)
    check_vectors(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    policy = float32(policy_chosen_logps) - float32(policy_rejected_logps)
    if matched is None:
        matched = rank_matched(policy, float32(ref_chosen_logps) - float32(ref_rejected_logps))
    check_shapes(policy_chosen_logps=policy, matched=matched)
    m = beta * (policy - jax.lax.stop_gradient(float32(matched)))
    return smoothed_logistic(m, label_smoothing)


def aot_unpaired_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    label_smoothing: Scalar = 0.0,
    matched_rejected: Float[Array, " B"] | None = None,
    matched_chosen: Float[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Alignment via optimal transport for chosen and rejected completions of different prompts: one loss per row.

    c, r = policy - ref of the chosen and of the rejected completion of a row
    f(m) = -(1 - s) * log_sigmoid(beta * m) - s * log_sigmoid(-beta * m)
    loss_i = (f(c_i - r_j) + f(c_k - r_i)) / 2,  where r_j has c_i's rank, and c_k has r_i's rank

    The mean over rows is that over ranks, f(k-th of all c - k-th of all r), and so is its gradient: what a
    row is compared with gets its gradient from its own row, not from this one. Rows must weigh the same.

    Ranks couple rows. A micro-batch is given `matched_rejected`, the r_j of its rows, and `matched_chosen`,
    the c_k, found over the whole batch by `rank_matched(c, r)` and `rank_matched(r, c)`, with the policy
    before this update. The parts equal the whole.

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.
      label_smoothing: s, in [0, 0.5).
      matched_rejected, matched_chosen: log-ratios of the same rank in nats, both or none; None: among these
        rows. No gradient.

    Returns:
      float32, unreduced.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range, or only one of the two matches is given.

    Source: arXiv:2406.05882, with hard ranks and the logistic loss.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("label_smoothing", label_smoothing, 0.0, 0.5, open_high=True)
    chosen, rejected = pair_log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    if matched_rejected is None and matched_chosen is None:
        matched_rejected, matched_chosen = rank_matched(chosen, rejected), rank_matched(rejected, chosen)
    if matched_rejected is None or matched_chosen is None:
        raise ValueError("matched_rejected and matched_chosen must be given together")
    check_shapes(policy_chosen_logps=chosen, matched_rejected=matched_rejected, matched_chosen=matched_chosen)
    others = jax.lax.stop_gradient((float32(matched_rejected), float32(matched_chosen)))
    up = smoothed_logistic(beta * (chosen - others[0]), label_smoothing)
    down = smoothed_logistic(beta * (others[1] - rejected), label_smoothing)
    # Each comparison stands in two rows: half its value in each, but all of its gradient by c_i in one and
    # by r_j in the other.
    total = up + down
    return total - jax.lax.stop_gradient(0.5 * total)


def rank_matched(values: Float[Array, " B"], targets: Float[Array, " B"]) -> Float[Array, " B"]:
    """The target of the same rank for each value: the optimal transport of one sample onto another.

    matched_i = sorted(targets)[rank of values_i],  ties in the order of the rows

    Args:
      values, targets: one per row, of the whole batch.

    Returns:
      float32, without gradient.

    Raises:
      AssertionError: shapes differ.
    """
    check_vectors(values=values, targets=targets)
    values, targets = jax.lax.stop_gradient((float32(values), float32(targets)))
    ranks = jnp.argsort(jnp.argsort(values))
    return jnp.sort(targets)[ranks]
