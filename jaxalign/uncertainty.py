"""Uncertainty: standard errors and intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean and its uncertainty.

    Attributes:
      mean: of the values.
      standard_deviation: of one value (divides by n - 1).
      standard_error: of the mean.
      low, high: interval of the mean, by the normal distribution.
      count: values.
    """

    mean: float
    standard_deviation: float
    standard_error: float
    low: float
    high: float
    count: int


def estimate_mean(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Mean, standard deviation, standard error and interval of independent values.

    For a single value, deviation and error are 0.

    Raises:
      ValueError: no value, or a confidence outside (0, 1).
    """
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("expected at least one value")
    mean = float(array.mean())
    deviation = float(array.std(ddof=1)) if array.size > 1 else 0.0
    error = deviation / math.sqrt(array.size)
    reach = _quantile(confidence) * error
    return Estimate(mean, deviation, error, mean - reach, mean + reach, int(array.size))


def wilson_interval(successes: float, count: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a proportion; unlike the normal interval it stays in [0, 1] and is accurate near the ends.

    With p = successes / n and z the normal quantile:

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Args:
      successes: in [0, count]; a tie may count as half.
      count: trials, at least 1 (a fraction where it is an effective number).
      confidence: in (0, 1).

    Raises:
      ValueError: a number out of range.

    Source: Wilson, 1927 (J. Am. Stat. Assoc. 22).
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"expected 0 <= successes <= count and count >= 1, got {successes} of {count}")
    z, p = _quantile(confidence), successes / count
    centre = p + z * z / (2 * count)
    reach = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # Rounding must not leave the proportion itself outside.
    return max(0.0, min(p, (centre - reach) / scale)), min(1.0, max(p, (centre + reach) / scale))


def clustered_interval(
    successes: Sequence[float] | np.ndarray, counts: Sequence[float] | np.ndarray, *, confidence: float = 0.95
) -> tuple[float, float]:
    """(low, high) of a proportion whose trials come in clusters: the steps of one problem's solutions, say.

    With p = sum s / sum n over G clusters:

        v = G / (G - 1) * sum (s_i - p n_i)^2 / (sum n)^2       variance of p between clusters
        m = p (1 - p) / v, at least 1 and at most sum n         effective number of trials

    and Wilson's interval of m p successes in m trials. Where v is 0 (all trials succeed, say) m is G.

    Args:
      successes: s, one number per cluster.
      counts: n, trials of each cluster; at least one trial in all.
      confidence: in (0, 1).

    Raises:
      ValueError: a number out of range.

    Source: effective sample size: L. Kish, Survey Sampling (1965); for intervals of proportions: Korn and
    Graubard, 1998 (Survey Methodology 24).
    """
    s, n = np.asarray(successes, np.float64), np.asarray(counts, np.float64)
    if s.shape != n.shape or n.sum() < 1 or (s < 0).any() or (s > n).any():
        raise ValueError("expected 0 <= successes <= counts, cluster by cluster, and at least one trial")
    p, clusters = s.sum() / n.sum(), len(n)
    variance = np.square(s - p * n).sum() / n.sum() ** 2 * clusters / max(clusters - 1, 1)
    trials = min(p * (1 - p) / variance, n.sum()) if variance > 0 else clusters
    trials = max(float(trials), 1.0)
    return wilson_interval(float(p) * trials, trials, confidence=confidence)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    seed: int,
    statistic: Callable[[np.ndarray], float] = lambda x: float(np.mean(x)),
    confidence: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """(low, high) of any statistic by the percentile bootstrap: rows are resampled with replacement.

    Args:
      values: [N] or [N, ...]; rows are resampled.
      seed: of the resampling.
      statistic: of an array like `values`.
      confidence: in (0, 1).
      resamples: number of resamples.

    Raises:
      ValueError: no value, or a number out of range.
    """
    array = np.asarray(values)
    if len(array) == 0 or resamples < 1:
        raise ValueError("expected at least one value and one resample")
    _quantile(confidence)
    rng = np.random.default_rng(seed)
    draws = [statistic(array[rng.integers(0, len(array), len(array))]) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)
