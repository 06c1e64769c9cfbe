"""DPO with divergences other than the reverse KL."""

import math
from typing import Literal

import jax
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range
from jaxalign.losses.margins import pair_log_ratios, power_score, smoothed_logistic


def f_divergence_dpo_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"],
    alpha: Scalar = 0.5,
) -> Float[Array, " B"]:
    """DPO with an f-divergence to the reference in place of the reverse KL: one loss per pair.

    t = exp(policy - ref) of each completion
    loss = -log_sigmoid(beta * (f'(t_chosen) - f'(t_rejected)))
    reverse_kl: f' = log t, which is `dpo_loss`
    forward_kl: f' = 1 - 1 / t, which is alpha = 0
    js:         f' = log(2 t / (1 + t))
    alpha:      f' = (t^(alpha - 1) - 1) / (alpha - 1), which tends to log t at alpha = 1

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.
      divergence: which.
      alpha: of the alpha-divergence as TRL counts it; the exponent of the paper is 1 - alpha. Within 1e-6 of
        1 it counts as 1. The other divergences do not look at it.

    Returns:
      float32, unreduced; log 2 wherever policy equals reference. Exponents above 80 nats, as of forward_kl
      where a log-ratio is below -80, count as 80 and have no gradient.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete beta out of range, or no such divergence.

    Source: arXiv:2309.16240.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("alpha", alpha)
    ratios = pair_log_ratios(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    if divergence == "reverse_kl":
        chosen, rejected = ratios
    elif divergence == "js":
        chosen, rejected = (math.log(2.0) + jax.nn.log_sigmoid(x) for x in ratios)
    elif divergence == "forward_kl":
        chosen, rejected = (power_score(x, -1.0) for x in ratios)
    elif divergence == "alpha":
        chosen, rejected = (power_score(x, alpha - 1.0) for x in ratios)
    else:
        raise ValueError(f"divergence must be reverse_kl, forward_kl, js or alpha, got {divergence!r}")
    return smoothed_logistic(beta * (chosen - rejected), 0.0)
