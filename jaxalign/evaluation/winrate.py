"""Win rate of one model's completions over another's, on the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.uncertainty import bootstrap_interval, wilson_interval


@dataclass(frozen=True)
class WinRate:
    """A win rate.

    Attributes:
      rate: wins, and half of the ties, as a fraction of all.
      low, high: bounds of its interval.
      wins, ties, losses: counts.
    """

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


def win_rate(
    scores: Sequence[float] | np.ndarray,
    baseline_scores: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    interval: str = "wilson",
    seed: int = 0,
) -> WinRate:
    """Compares two completions of each prompt by their scores.

    Args:
      scores: [N], of the model's completions; larger is better.
      baseline_scores: [N], of the baseline's completions of the same prompts in the same order.
      confidence: of the interval, in (0, 1).
      interval: `wilson`, or `bootstrap` over prompts.
      seed: of the bootstrap.

    Raises:
      ValueError: different lengths, no row, a NaN score, or an unknown interval.
    """
    ours, theirs = np.asarray(scores, np.float64), np.asarray(baseline_scores, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or ours.size == 0:
        raise ValueError(f"expected two score arrays of equal length, got {ours.shape} and {theirs.shape}")
    if np.isnan(ours).any() or np.isnan(theirs).any():
        raise ValueError("a score is NaN")
    points = np.where(ours > theirs, 1.0, np.where(ours == theirs, 0.5, 0.0))
    if interval == "wilson":
        low, high = wilson_interval(float(points.sum()), points.size, confidence=confidence)
    elif interval == "bootstrap":
        low, high = bootstrap_interval(points, seed=seed, confidence=confidence)
    else:
        raise ValueError(f"interval must be wilson or bootstrap, got {interval}")
    wins, losses = int((points == 1).sum()), int((points == 0).sum())
    return WinRate(float(points.mean()), low, high, wins, points.size - wins - losses, losses)
