"""CPO: preference optimization against a uniform reference."""

from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range, float32
from jaxalign.losses.margins import check_vectors, smoothed_logistic


def cpo_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, " B"]:
    """Contrastive preference optimization, the preference term: one loss per pair.

    m = beta * (policy_chosen - policy_rejected)
    loss = -(1 - s) * log_sigmoid(m) - s * log_sigmoid(-m)

    This is `dpo_loss` with a reference that finds both completions equally likely. CPO adds the negative
    log-likelihood of the chosen completion: `sft_loss`, reduced and weighted by the caller.

    Args:
      policy_*_logps: log p(completion | prompt), summed over completion tokens, in nats.
      beta: positive.
      label_smoothing: s, chance that a label is flipped; in [0, 0.5).

    Returns:
      float32, unreduced; log 2 where the two are equally likely.

    Raises:
      AssertionError: the shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2401.08417, eq. 3. Smoothing is not in that paper.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("label_smoothing", label_smoothing, 0.0, 0.5, open_high=True)
    check_vectors(policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps)
    margin = float32(policy_chosen_logps) - float32(policy_rejected_logps)
    return smoothed_logistic(beta * margin, label_smoothing)
