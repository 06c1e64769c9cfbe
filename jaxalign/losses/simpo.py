"""SimPO and AlphaPO: length-normalized log-probs as rewards, without a reference."""

from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range, float32
from jaxalign.losses.margins import check_vectors, power_score, smoothed_logistic


def simpo_loss(
    chosen_mean_logps: Float[Array, " B"],
    rejected_mean_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    gamma: Scalar,
) -> Float[Array, " B"]:
    """Simple preference optimization: one loss per pair.

    loss = -log_sigmoid(beta * (chosen - rejected) - gamma)

    Args:
      *_mean_logps: log p(completion | prompt) divided by the number of completion tokens, in nats.
      beta: positive; about 2, far above that of DPO, since means are small.
      gamma: target margin, absolute: the paper's gamma, not its ratio gamma / beta; not negative.

    Returns:
      float32, unreduced.

    Raises:
      AssertionError: the shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2405.14734, eq. 6.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("gamma", gamma, 0.0)
    check_vectors(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    margin = float32(chosen_mean_logps) - float32(rejected_mean_logps)
    return smoothed_logistic(beta * margin - gamma, 0.0)


def alphapo_loss(
    chosen_mean_logps: Float[Array, " B"],
    rejected_mean_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    gamma: Scalar,
    alpha: Scalar,
) -> Float[Array, " B"]:
    """AlphaPO: SimPO with a reward whose shape alpha sets; it falls off faster or slower for unlikely completions.

    r = (1 - p^(-alpha)) / alpha,  p = exp(mean log-prob);  r = log p at alpha = 0
    loss = -log_sigmoid(beta * (r_chosen - r_rejected) - gamma)

    Args:
      *_mean_logps, beta, gamma: as in `simpo_loss`.
      alpha: any number; 0 (within 1e-6) is `simpo_loss`.

    Returns:
      float32, unreduced. Exponents -alpha * log p above 80 nats count as 80 and have no gradient.

    Raises:
      AssertionError: the shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2501.03884.
    """
    check_range("alpha", alpha)
    check_vectors(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    chosen, rejected = (power_score(float32(x), -alpha) for x in (chosen_mean_logps, rejected_mean_logps))
    return simpo_loss(chosen, rejected, beta=beta, gamma=gamma)
