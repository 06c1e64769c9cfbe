"""ORPO: the odds-ratio term."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range, float32
from jaxalign.losses.margins import check_vectors

CERTAIN = -1e-7
"""Mean log-probs above this count as this: at 0 the odds are infinite."""


def orpo_loss(
    chosen_mean_logps: Float[Array, " B"],
    rejected_mean_logps: Float[Array, " B"],
    *,
    beta: Scalar,
) -> Float[Array, " B"]:
    """Odds-ratio preference optimization, the odds-ratio term alone: one loss per pair.

    log_odds(l) = l - log(1 - exp(l))
    loss = -beta * log_sigmoid(log_odds(chosen) - log_odds(rejected))

    The method adds the negative log-likelihood of the chosen completion, `sft_loss`; in TRL that is over the
    prompt's tokens too.

    Args:
      *_mean_logps: log p(completion | prompt) divided by the number of completion tokens, in nats. Above
        -1e-7 they count as -1e-7, in value and slope, so that a certain completion has finite odds.
      beta: weight of the term, lambda in the paper; positive.

    Returns:
      float32, unreduced; beta log 2 where the two are equally likely.

    Raises:
      AssertionError: the shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2403.07691, eqs. 4 and 7.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_vectors(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    margin = _log_odds(chosen_mean_logps) - _log_odds(rejected_mean_logps)
    return -beta * jax.nn.log_sigmoid(margin)


def _log_odds(mean_logps: Float[Array, " B"]) -> Float[Array, " B"]:
    logps = float32(mean_logps)
    # The bound moves the value and not the slope: a rejected completion that is certain must still be pushed down.
    logps += jax.lax.stop_gradient(jnp.minimum(logps, CERTAIN) - logps)
    return logps - jnp.log(-jnp.expm1(logps))
