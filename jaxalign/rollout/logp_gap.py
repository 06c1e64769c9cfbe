"""The gap between the log-probs of a sampler and of the training forward."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LogpGap:
    """Differences of log-probs over the sampler's own completions, in nats.

    Attributes:
      tokens: completion tokens compared.
      mean: mean absolute difference per token; 0 if there are no tokens.
      largest: maximum absolute difference of a token.
      kl: KL(sampler || model) per token, by the estimator r - 1 - log r with r = p_model / p_sampler: unbiased
        over the sampler's own samples, and never negative.
    """

    tokens: int
    mean: float
    largest: float
    kl: float


def logp_gap(model_logps: np.ndarray, sampler_logps: np.ndarray, mask: np.ndarray) -> LogpGap:
    """The gap over the tokens of the mask.

    Args:
      model_logps: log-probs under the training forward, of any shape.
      sampler_logps: log-probs that the sampler reported.
      mask: bool, tokens that count.
    """
    # A sampler may report log-probs that are not finite: the gap is not finite then, which callers refuse.
    with np.errstate(over="ignore", invalid="ignore"):
        difference = (np.asarray(model_logps, np.float64) - sampler_logps)[mask]
        kl = np.expm1(difference) - difference
    count = max(difference.size, 1)
    return LogpGap(
        tokens=difference.size,
        mean=float(np.abs(difference).sum() / count),
        largest=float(np.max(np.abs(difference), initial=0.0)),
        kl=float(kl.sum() / count),
    )
