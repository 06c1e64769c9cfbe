"""How raters rated one model's answers, from 1 to 5."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxalign.evaluation.human_sheet.key import CHOICES, Key, read_key
from jaxalign.evaluation.human_sheet.rated import (
    Rated,
    RaterAgreement,
    agreement_of,
    read_rated,
    unrated_items,
)
from jaxalign.uncertainty import Estimate, estimate_mean


@dataclass(frozen=True, kw_only=True)
class SingleRater:
    """One rater.

    Attributes:
      rated, unrated: of the items given to them.
      mean: of their ratings; NaN where there is none.
      off: mean difference of their ratings from those of the others of the same items: how much kinder they are; None
        where there are no others.
    """

    rated: int
    unrated: int
    mean: float
    off: float | None


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """The ratings of all raters.

    Attributes:
      key: of the sheet.
      ratings: (item, rater) -> 1 to 5.
      scores: mean rating of each rated item.
      mean: of the scores, which are independent where ratings of one item are not.
      counts: of ratings 1 to 5.
      raters: by name, all of the key.
      agreement: ordinal; Cohen's kappa has quadratic weights. None where no item has two ratings.
      unrated: items without any rating.
      missing: ratings that are not there: an item counts once for each of its raters.
    """

    key: Key
    ratings: Mapping[tuple[str, str], int]
    scores: Mapping[str, float]
    mean: Estimate
    counts: Mapping[int, int]
    raters: Mapping[str, SingleRater]
    agreement: RaterAgreement | None
    unrated: tuple[str, ...]
    missing: int


def import_ratings(
    key: str | Path,
    files: Sequence[str],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
) -> Ratings:
    """Reads the sheets of raters, of a sheet of `export_rating_sheet`.

    Args:
      key, files, confidence, seed, resamples: see `pairs.import_pair_ratings`.

    Raises:
      DataError: a wrong key, or a wrong row; see `key.read_key` and `rated.read_rated`.
    """
    found = read_key(str(key), "rating")
    rated = read_rated(found, files)
    codes = {choice: float(choice) for choice in CHOICES["rating"]}
    drawn = {"seed": seed, "confidence": confidence, "resamples": resamples}
    by_item: dict[str, list[int]] = {}
    for (item, _), value in rated.items():
        by_item.setdefault(item, []).append(int(value))
    scores = {item: float(np.mean(by_item[item])) for item in found.items if item in by_item}
    counts = Counter(map(int, rated.values()))
    return Ratings(
        key=found,
        ratings={place: int(value) for place, value in rated.items()},
        scores=scores,
        mean=estimate_mean(list(scores.values()), confidence=confidence),
        counts={int(value): counts[int(value)] for value in CHOICES["rating"]},
        raters={rater: _rater(found, rated, rater) for rater in found.raters},
        agreement=agreement_of(found, rated, codes, "ordinal", **drawn),
        unrated=unrated_items(found, rated),
        missing=sum(map(len, found.raters.values())) - len(rated),
    )


def _rater(key: Key, rated: Rated, rater: str) -> SingleRater:
    mine = {item: int(value) for (item, who), value in rated.items() if who == rater}
    others: dict[str, list[int]] = {}
    for (item, who), value in rated.items():
        if who != rater and item in mine:
            others.setdefault(item, []).append(int(value))
    gaps = [mine[item] - float(np.mean(values)) for item, values in others.items()]
    return SingleRater(
        rated=len(mine),
        unrated=len(key.raters[rater]) - len(mine),
        mean=float(np.mean(list(mine.values()))) if mine else float("nan"),
        off=float(np.mean(gaps)) if gaps else None,
    )
