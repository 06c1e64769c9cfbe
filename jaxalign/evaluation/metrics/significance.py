"""Whether two systems differ: paired tests on the same prompts, and corrections for several of them.

Rows are independent: where a prompt has several answers, take their mean first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Differences whose signs are flipped in every way there is; numbers of a block of resamples.
MOST_EXACT, BLOCK = 16, 2**20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference of paired scores.

    Attributes:
      mean: of the first's scores less the second's.
      low, high: its interval.
      p_value: two-sided, of no difference.
      count: pairs.
    """

    mean: float
    low: float
    high: float
    p_value: float
    count: int


def paired_bootstrap(
    scores: Sequence[float] | np.ndarray,
    baseline_scores: Sequence[float] | np.ndarray,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Difference:
    """The mean difference of paired scores, resampled pair by pair.

    d = scores - baseline_scores;  mean*_r = mean of N differences drawn with replacement, r = 1 .. R
    interval: the percentiles of mean*;  p = (1 + #{|mean*_r - mean| >= |mean|}) / (R + 1)

    The test shifts the resamples so that their mean is 0, as the null hypothesis has it. With few pairs (under about
    20) the interval is too narrow; `permutation_test` is exact there.

    Args:
      scores, baseline_scores: [N], of the same prompts in the same order.
      seed: of the resampling.
      confidence: of the interval, in (0, 1).
      resamples: R.

    Raises:
      ValueError: different shapes, no pair, a number that is not finite or out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16; for systems of language:
    Koehn, 2004 (EMNLP).
    """
    d = _differences(scores, baseline_scores)
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"expected confidence in (0, 1) and a resample, got {confidence} and {resamples}")
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // d.size)
    means = np.concatenate(
        [
            d[rng.integers(0, d.size, (min(size, resamples - start), d.size))].mean(1)
            for start in range(0, resamples, size)
        ]
    )
    mean, tail = float(d.mean()), (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    extreme = np.count_nonzero(np.abs(means - mean) >= abs(mean) - _slack(d))
    return Difference(
        mean=mean,
        low=float(low),
        high=float(high),
        p_value=(1 + extreme) / (resamples + 1),
        count=d.size,
    )


def sign_test(scores: Sequence[float] | np.ndarray, baseline_scores: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of the exact sign test: are wins as likely as losses?

    p = min(1, 2 * P(X >= max(wins, losses))), X ~ Binomial(wins + losses, 1/2); ties are left out

    Args:
      scores, baseline_scores: [N], of the same prompts in the same order.

    Returns:
      p in (0, 1]; 1 where all tie.

    Raises:
      ValueError: different shapes, no pair, or a number that is not finite.

    Source: Dixon and Mood, 1946 (J. Am. Stat. Assoc. 41).
    """
    d = _differences(scores, baseline_scores)
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    count, rarer = wins + losses, min(wins, losses)
    # Whole numbers: exact for any count. C(n, i) from C(n, i - 1).
    ways = total = 1
    for i in range(1, rarer + 1):
        ways = ways * (count - i + 1) // i
        total += ways
    return min(1.0, 2 * total / 2**count)


def permutation_test(
    scores: Sequence[float] | np.ndarray,
    baseline_scores: Sequence[float] | np.ndarray,
    *,
    seed: int,
    resamples: int = 10_000,
) -> float:
    """Two-sided p of the paired permutation test: the signs of the differences are flipped.

    p = share of flips with |sum s_i d_i| >= |sum d_i|

    Exact, over all flips, with up to `MOST_EXACT` differences that are not 0; beyond, over R random flips and the one
    that was seen: (1 + #) / (R + 1), which is a valid test too.

    Args:
      scores, baseline_scores: [N], of the same prompts in the same order.
      seed: of the random flips.
      resamples: R.

    Returns:
      p in (0, 1]; 1 where all tie.

    Raises:
      ValueError: different shapes, no pair, a number that is not finite, or no resample.

    Source: Fisher, The Design of Experiments (1935), chapter 3; the 1 in (1 + #): Phipson and Smyth, 2010
    (Stat. Appl. Genet. Mol. Biol. 9).
    """
    d = _differences(scores, baseline_scores)
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    seen, slack = abs(float(d.sum())), _slack(d) * d.size
    d = d[d != 0]
    if d.size <= MOST_EXACT:
        flips = (np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1
        return float(np.mean(np.abs((1 - 2 * flips) @ d) >= seen - slack))
    rng = np.random.default_rng(seed)
    size, extreme = max(1, BLOCK // d.size), 0
    for start in range(0, resamples, size):
        flips = rng.integers(0, 2, (min(size, resamples - start), d.size), dtype=np.int8)
        extreme += int(np.count_nonzero(np.abs((1.0 - 2.0 * flips) @ d) >= seen - slack))
    return (1 + extreme) / (resamples + 1)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p of several tests, so that the chance of any false finding stays below the level.

    p'_(i) = max_{j <= i} min(1, (n - j + 1) p_(j)), p_(1) <= ... <= p_(n)

    Whatever the tests' dependence. Call a finding what has p' at most the level.

    Args:
      p_values: [n], of all the tests that were looked at.

    Returns:
      float64 [n], in the order given.

    Raises:
      ValueError: a p outside [0, 1].

    Source: Holm, 1979 (Scand. J. Stat. 6).
    """
    p, order = _sorted(p_values)
    return _unsorted(np.maximum.accumulate(np.minimum(1.0, np.arange(p.size, 0, -1) * p)), order)


def benjamini_hochberg(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p of several tests, so that the expected share of false findings stays below the level.

    p'_(i) = min_{j >= i} min(1, n p_(j) / j), p_(1) <= ... <= p_(n)

    For tests that are independent, or positively dependent.

    Args:
      p_values: [n], of all the tests that were looked at.

    Returns:
      float64 [n], in the order given.

    Raises:
      ValueError: a p outside [0, 1].

    Source: Benjamini and Hochberg, 1995 (J. R. Stat. Soc. B 57).
    """
    p, order = _sorted(p_values)
    scaled = np.minimum(1.0, p.size * p / np.arange(1, p.size + 1))
    return _unsorted(np.minimum.accumulate(scaled[::-1])[::-1], order)


def _sorted(p_values: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("expected one axis of p values in [0, 1]")
    order = np.argsort(p, kind="stable")
    return p[order], order


def _unsorted(adjusted: np.ndarray, order: np.ndarray) -> np.ndarray:
    found = np.empty_like(adjusted)
    found[order] = adjusted
    return found


def _differences(
    scores: Sequence[float] | np.ndarray, baseline_scores: Sequence[float] | np.ndarray
) -> np.ndarray:
    ours, theirs = np.asarray(scores, np.float64), np.asarray(baseline_scores, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or ours.size == 0:
        raise ValueError(f"expected two score arrays of equal length, got {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("a score is not finite")
    return ours - theirs


def _slack(d: np.ndarray) -> float:
    """What rounding may take from a mean of these: sums that are equal but for it count as equal."""
    return 1e-12 * float(np.abs(d).max())
