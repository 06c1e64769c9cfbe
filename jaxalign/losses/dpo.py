"""Direct preference losses on four log-probs: DPO, its robust form, IPO and hinge."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range
from jaxalign.losses.margins import preference_margin, smoothed_logistic


def dpo_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, " B"]:
    """Direct preference optimization: one loss per pair.

    Online DPO (arXiv:2402.04792) is this loss, or `ipo_loss`, of pairs that the policy sampled and a judge or
    reward model ranked, with log-probs summed over the completion. Of means per token it is TRL's sigmoid_norm.

    m = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    loss = -(1 - s) * log_sigmoid(m) - s * log_sigmoid(-m)

    Args:
      policy_*_logps: log p(completion | prompt), summed over completion tokens, in nats;
        any float dtype, computed in float32.
      ref_*_logps: the same under the frozen reference; no gradient.
      beta: strength of the pull to the reference; positive.
      label_smoothing: s, chance that a label is flipped; in [0, 0.5).

    Returns:
      float32, unreduced; log 2 wherever policy equals reference.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2305.18290, eq. 7. Smoothing is the conservative variant (Mitchell, 2023).
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("label_smoothing", label_smoothing, 0.0, 0.5, open_high=True)
    m = beta * preference_margin(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return smoothed_logistic(m, label_smoothing)


def robust_dpo_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    label_smoothing: Scalar,
) -> Float[Array, " B"]:
    """DPO, unbiased when labels are flipped with probability s: one loss per pair.

    loss = (-(1 - s) * log_sigmoid(m) + s * log_sigmoid(-m)) / (1 - 2 s),  m as in `dpo_loss`

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.
      label_smoothing: s, in [0, 0.5).

    Returns:
      float32, unreduced; may be negative.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2403.00409, eq. 12.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("label_smoothing", label_smoothing, 0.0, 0.5, open_high=True)
    m = beta * preference_margin(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    loss = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(m) + label_smoothing * jax.nn.log_sigmoid(-m)
    return loss / (1.0 - 2.0 * label_smoothing)


def ipo_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
) -> Float[Array, " B"]:
    """Identity preference optimization: a squared distance to a finite margin.

    loss = (h - 1 / (2 beta))^2,  h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)

    Args:
      policy_*_logps, ref_*_logps: sums over completion tokens as in the paper, or means a
        token as in TRL: the caller's choice.
      beta: tau in the paper; positive.

    Returns:
      float32, unreduced.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2310.12036, eq. 17.
    """
    check_range("beta", beta, 0.0, open_low=True)
    h = preference_margin(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return jnp.square(h - 1.0 / (2.0 * beta))


def hinge_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
) -> Float[Array, " B"]:
    """SLiC's hinge on the DPO margin: max(0, 1 - m),  m as in `dpo_loss`.

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.

    Returns:
      float32, unreduced; 1 wherever policy equals reference.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2309.06657, table 1 (hinge-norm).
    """
    check_range("beta", beta, 0.0, open_low=True)
    m = beta * preference_margin(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return jax.nn.relu(1.0 - m)
