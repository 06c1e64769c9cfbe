"""How far a sampler's log-probs lie from the training forward's: what 8-bit weights or another engine change."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LogpGap:
    """Differences of log-probs of a sampler's own completions, in nats.

    Attributes:
      tokens: completion tokens compared.
      mean: mean absolute difference a token; 0 where there is none.
      largest: of any token.
      kl: KL(sampler || model) a token, by the estimator r - 1 - log r with r = p_model / p_sampler: unbiased
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
    difference = (np.asarray(model_logps, np.float64) - sampler_logps)[mask]
    count = max(difference.size, 1)
    return LogpGap(
        tokens=difference.size,
        mean=float(np.abs(difference).sum() / count),
        largest=float(np.max(np.abs(difference), initial=0.0)),
        kl=float((np.expm1(difference) - difference).sum() / count),
    )
