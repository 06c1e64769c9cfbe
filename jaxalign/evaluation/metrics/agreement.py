"""How far raters agree, beyond chance.

Ratings are one array [N, R], items by raters: numbers (codes of categories, where they are nominal), NaN where a rater
did not see an item. Items with fewer than two ratings say nothing, and do not count. A measure is NaN where it is not
defined: nothing can be said of raters who only ever gave one rating.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Ratings = Sequence[Sequence[float]] | np.ndarray
Level = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A measure of agreement.

    Attributes:
      value: 1 is perfect; 0 is chance, but for the raw agreement.
      low, high: its interval by the percentile bootstrap over items.
      items: with two ratings or more.
      undefined: resamples without a value, which are left out.
    """

    value: float
    low: float
    high: float
    items: int
    undefined: int


def with_interval(
    measure: Callable[[np.ndarray], float],
    ratings: Ratings,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> Agreement:
    """A measure with its interval: items are resampled with replacement, raters stay.

    `uncertainty.bootstrap_interval` has no place for resamples in which the statistic is not defined.

    Args:
      measure: a function of this module, with its options: `partial(krippendorff_alpha, level="ordinal")`.
      ratings: [N, R].
      seed: of the resampling.
      confidence: in (0, 1).
      resamples: their number.

    Raises:
      ValueError: no item with two ratings, or a number out of range.
    """
    array = _rated(ratings)
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"expected confidence in (0, 1) and a resample, got {confidence} and {resamples}")
    rng = np.random.default_rng(seed)
    draws = [measure(array[rng.integers(0, len(array), len(array))]) for _ in range(resamples)]
    known = [draw for draw in draws if not np.isnan(draw)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if known else (np.nan, np.nan)
    return Agreement(
        value=measure(array),
        low=float(low),
        high=float(high),
        items=len(array),
        undefined=resamples - len(known),
    )


def raw_agreement(ratings: Ratings) -> float:
    """The share of pairs of raters who give an item the same rating, averaged over items.

    P_i = sum_c n_ic (n_ic - 1) / (n_i (n_i - 1)), n_ic ratings c of item i;  value = mean P_i

    Args:
      ratings: [N, R].

    Raises:
      ValueError: no item with two ratings.

    Source: Fleiss, 1971 (Psychol. Bull. 76), eq. 1 and 2, here for any number of ratings an item.
    """
    return float(_by_item(_counts(_rated(ratings))[1]).mean())


def cohens_kappa(ratings: Ratings, *, weights: Literal["linear", "quadratic"] | None = None) -> float:
    """Cohen's kappa of two raters: each has a distribution of ratings of their own.

    w_ck = [c != k] (None), |c - k| (linear), (c - k)^2 (quadratic);  o_ck, r_c, s_k shares of the items
    kappa = 1 - sum_ck w_ck o_ck / sum_ck w_ck r_c s_k

    Weights are differences of the ratings themselves: give ordered categories as 1, 2, 3, ...

    Args:
      ratings: [N, 2]; items that one of them did not rate do not count.
      weights: how disagreement counts.

    Raises:
      ValueError: not two raters, no item that both rated, or unknown weights.

    Source: Cohen, 1960 (Educ. Psychol. Meas. 20); weighted: Cohen, 1968 (Psychol. Bull. 70).
    """
    array = _rated(ratings)
    if array.shape[1] != 2:
        raise ValueError(f"Cohen's kappa is of two raters, got {array.shape[1]}")
    values, (first, second) = _codes(array.T)
    joint = np.zeros((len(values), len(values)))
    np.add.at(joint, (first, second), 1 / len(array))
    gaps = np.abs(values[:, None] - values)
    if weights not in (None, "linear", "quadratic"):
        raise ValueError(f"weights must be None, linear or quadratic, got {weights}")
    cost = {None: (gaps > 0).astype(float), "linear": gaps, "quadratic": np.square(gaps)}[weights]
    expected = float(np.sum(cost * np.outer(joint.sum(1), joint.sum(0))))
    return 1 - float(np.sum(cost * joint)) / expected if expected > 0 else float("nan")


def fleiss_kappa(ratings: Ratings) -> float:
    """Fleiss' kappa of any number of raters, who may be others for each item; ratings are nominal.

    kappa = (mean P_i - P_e) / (1 - P_e), P_e = sum_c p_c^2, p_c the share of all ratings that are c

    Args:
      ratings: [N, R], the same number of ratings, two or more, for each item that counts.

    Raises:
      ValueError: no item with two ratings, or uneven numbers of them.

    Source: Fleiss, 1971 (Psychol. Bull. 76).
    """
    counts = _counts(_rated(ratings))[1]
    if len(sizes := np.unique(counts.sum(1))) > 1:
        raise ValueError(
            f"Fleiss' kappa needs as many ratings of each item, got {sizes.min():g} to {sizes.max():g}; "
            "krippendorff_alpha takes any number"
        )
    expected = float(np.square(counts.sum(0) / counts.sum()).sum())
    observed = float(_by_item(counts).mean())
    return (observed - expected) / (1 - expected) if counts.shape[1] > 1 else float("nan")


def krippendorff_alpha(ratings: Ratings, *, level: Level = "nominal") -> float:
    """Krippendorff's alpha of any number of raters, some of whose ratings may be missing.

    o_ck = sum_i n_ic (n_ik - [c = k]) / (n_i - 1);  n_c = sum_k o_ck;  n = sum_c n_c
    alpha = 1 - (n - 1) sum_ck o_ck d_ck / sum_ck n_c n_k d_ck
    d_ck = [c != k] (nominal);  (c - k)^2 (interval);  (sum_{g = c .. k} n_g - (n_c + n_k) / 2)^2 (ordinal)

    Args:
      ratings: [N, R].
      level: of measurement; `ordinal` needs the order of the numbers alone.

    Raises:
      ValueError: no item with two ratings, or an unknown level.

    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section E.
    """
    values, counts = _counts(_rated(ratings))
    pairs = (counts / (counts.sum(1, keepdims=True) - 1)).T @ counts
    pairs[np.diag_indices(len(values))] -= (counts / (counts.sum(1, keepdims=True) - 1)).sum(0)
    totals = counts.sum(0)
    if level == "nominal":
        distance = 1.0 - np.eye(len(values))
    elif level == "interval":
        distance = np.square(values[:, None] - values)
    elif level == "ordinal":
        middle = np.cumsum(totals) - totals / 2  # middle rank of each rating
        distance = np.square(middle[:, None] - middle)
    else:
        raise ValueError(f"level must be nominal, ordinal or interval, got {level}")
    expected = float(np.sum(np.outer(totals, totals) * distance))
    observed = float(np.sum(pairs * distance))
    return 1 - float(totals.sum() - 1) * observed / expected if expected > 0 else float("nan")


def _rated(ratings: Ratings) -> np.ndarray:
    """float64 [M, R]: the items with two ratings or more."""
    array = np.asarray(ratings, np.float64)
    if array.ndim != 2 or np.isinf(array).any():
        raise ValueError(f"expected finite ratings, [items, raters], got shape {array.shape}")
    array = array[np.count_nonzero(~np.isnan(array), axis=1) > 1]
    if not len(array):
        raise ValueError("expected at least one item with two ratings")
    return array


def _codes(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted ratings [V], and for each entry the place of its rating among them."""
    values, places = np.unique(array, return_inverse=True)
    return values, places.reshape(array.shape)


def _counts(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted ratings [V], and how often each item has each, [M, V]."""
    there = ~np.isnan(array)
    values, places = _codes(array[there])
    counts = np.zeros((len(array), len(values)))
    np.add.at(counts, (np.nonzero(there)[0], places), 1)
    return values, counts


def _by_item(counts: np.ndarray) -> np.ndarray:
    sizes = counts.sum(1)
    return (counts * (counts - 1)).sum(1) / (sizes * (sizes - 1))
