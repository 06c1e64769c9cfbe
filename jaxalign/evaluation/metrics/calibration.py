"""Reward models on pairs: how often they are right, whether their margins mean what they say, and length bias."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxalign.training.reward_model.ensemble import is_right
from jaxalign.uncertainty import wilson_interval

Binning = Literal["equal_width", "equal_mass"]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Pairs of similar confidence: a point of a reliability diagram.

    Attributes:
      low, high: bounds of the confidence; of equal mass the smallest and the largest there is.
      confidence: mean confidence.
      accuracy: share in which the model is right.
      count: pairs.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, kw_only=True)
class PairCalibration:
    """A reward model on pairs.

    Attributes:
      accuracy: share of pairs whose chosen completion scores higher; a tie is half.
      low, high: Wilson's interval of it.
      expected_calibration_error: in [0, 1].
      brier: mean squared error of the probability, in [0, 1].
      nats: mean negative log-likelihood of the choice.
      bins: those with a pair, by confidence.
      count: pairs.
    """

    accuracy: float
    low: float
    high: float
    expected_calibration_error: float
    brier: float
    nats: float
    bins: tuple[ReliabilityBin, ...]
    count: int


def pair_calibration(
    margins: Sequence[float] | np.ndarray,
    *,
    bins: int = 10,
    binning: Binning = "equal_width",
    confidence: float = 0.95,
) -> PairCalibration:
    """Accuracy and calibration of P(chosen > rejected) = sigmoid(margin).

    p = sigmoid(m);  brier = mean (1 - p)^2;  nats = mean log(1 + exp(-m))
    c = sigmoid(|m|), the confidence in the completion that the model prefers
    error = sum_b n_b / n * |accuracy_b - mean confidence_b|

    A pair has no first side, so confidence in the preferred completion, in [0.5, 1], is what is put in bins: the
    probability of the chosen one would always meet the outcome 1.

    Args:
      margins: m, [N], reward of the chosen completion less that of the rejected one, in units of the Bradley-Terry
        model (logits).
      bins: of [0.5, 1].
      binning: `equal_width`, each (low, high], 0.5 itself in the first; or `equal_mass`, as many
        pairs in each as can be, those of one confidence in one bin. Few pairs a bin make the error larger than it is.
      confidence: of the accuracy's interval.

    Raises:
      ValueError: no margin, one that is not finite, no bin, or an unknown binning.

    Source: expected calibration error: arXiv:1706.04599, eq. 3; equal mass: arXiv:1904.01685; Brier, 1950
    (Mon. Weather Rev. 78).
    """
    m = _finite("margins", margins)
    if not m.size or bins < 1:
        raise ValueError(f"expected at least one margin and one bin, got {m.size} and {bins}")
    right, said = is_right(m), 1.0 / (1.0 + np.exp(-np.abs(m)))
    edges = np.linspace(0.5, 1.0, bins + 1)
    number = _bin_numbers(said, edges, binning)
    parts = []
    for b in np.unique(number):
        inside = number == b
        own = said[inside]
        low, high = (edges[b], edges[b + 1]) if binning == "equal_width" else (own.min(), own.max())
        parts.append(
            ReliabilityBin(
                low=float(low),
                high=float(high),
                confidence=float(own.mean()),
                accuracy=float(right[inside].mean()),
                count=int(own.size),
            )
        )
    low, high = wilson_interval(float(right.sum()), m.size, confidence=confidence)
    # 1 - sigmoid(m) without a cancellation, and without overflow on either side.
    missed = np.exp(-np.logaddexp(0.0, m))
    return PairCalibration(
        accuracy=float(right.mean()),
        low=low,
        high=high,
        expected_calibration_error=sum(b.count * abs(b.accuracy - b.confidence) for b in parts) / m.size,
        brier=float(np.square(missed).mean()),
        nats=float(np.logaddexp(0.0, -m).mean()),
        bins=tuple(parts),
        count=m.size,
    )


def _bin_numbers(said: np.ndarray, edges: np.ndarray, binning: str) -> np.ndarray:
    """The bin of each confidence, from 0."""
    bins = len(edges) - 1
    if binning == "equal_width":
        return np.searchsorted(edges[1:-1], said, side="left")
    if binning == "equal_mass":
        # By mean ranks: equal confidences stay together, in whatever order pairs come.
        return ((_ranks(said) - 0.5) * bins / said.size).astype(int)
    raise ValueError(f"binning must be equal_width or equal_mass, got {binning}")


@dataclass(frozen=True, kw_only=True)
class LengthBias:
    """Whether longer completions are preferred.

    Attributes:
      by_model: of pairs with uneven lengths, the share in which the model prefers the longer completion; a tie of
        rewards is half. NaN without such a pair.
      by_people: the share in which people chose the longer one.
      model_low, model_high, people_low, people_high: Wilson's intervals.
      correlation: Spearman's, of margin and difference of lengths (chosen less rejected), over all pairs; NaN where
        either is constant.
      uneven: pairs with uneven lengths.
      count: pairs.
    """

    by_model: float
    by_people: float
    model_low: float
    model_high: float
    people_low: float
    people_high: float
    correlation: float
    uneven: int
    count: int


def length_bias(
    margins: Sequence[float] | np.ndarray,
    chosen_lengths: Sequence[int] | np.ndarray,
    rejected_lengths: Sequence[int] | np.ndarray,
    *,
    confidence: float = 0.95,
) -> LengthBias:
    """How often the longer completion is preferred, by the model and by people.

    A model that only follows its data has `by_model` near `by_people`; one above it has made length a reward.

    Args:
      margins: [N], reward of the chosen completion less that of the rejected one.
      chosen_lengths, rejected_lengths: [N], of one unit: tokens, words or letters.
      confidence: of the intervals.

    Raises:
      ValueError: different shapes, no pair, or a number that is not finite.

    Source: arXiv:2310.03716 (length and reward); Spearman, 1904, with mean ranks for ties.
    """
    m = _finite("margins", margins)
    difference = _finite("chosen_lengths", chosen_lengths) - _finite("rejected_lengths", rejected_lengths)
    if m.shape != difference.shape or not m.size:
        raise ValueError(
            f"expected as many margins as lengths, at least one, got {m.shape}, {difference.shape}"
        )
    uneven = difference != 0
    longer = is_right(np.sign(difference[uneven]) * m[uneven])
    people = (difference[uneven] > 0).astype(np.float64)
    shares = []
    for preferred in (longer, people):
        nothing = (float("nan"),) * 3
        interval = (float(preferred.sum()), preferred.size)
        shares.append(
            (float(preferred.mean()), *wilson_interval(*interval, confidence=confidence))
            if preferred.size
            else nothing
        )
    (by_model, model_low, model_high), (by_people, people_low, people_high) = shares
    return LengthBias(
        by_model=by_model,
        by_people=by_people,
        model_low=model_low,
        model_high=model_high,
        people_low=people_low,
        people_high=people_high,
        correlation=spearman(m, difference),
        uneven=int(uneven.sum()),
        count=m.size,
    )


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, ties at their mean rank; NaN where either is constant."""
    a, b = (_ranks(np.asarray(values, np.float64)) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _finite(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected one axis of finite numbers, got shape {array.shape}")
    return array
