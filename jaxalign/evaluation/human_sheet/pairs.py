"""What raters chose between two models' answers: win rates, the raters themselves, and rows to train on."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import DataError
from jaxalign.evaluation.human_sheet.answers import plain
from jaxalign.evaluation.human_sheet.key import Item, Key, read_key
from jaxalign.evaluation.human_sheet.rated import (
    Rated,
    RaterAgreement,
    agreement_of,
    read_rated,
    unrated_items,
)
from jaxalign.evaluation.winrate import WinRate, win_rate
from jaxalign.runs.records import write_whole
from jaxalign.uncertainty import clustered_interval

# Of the choices, how far they are for the answer shown first.
POINTS = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """Two models compared.

    Attributes:
      model, baseline: their names; rates are of the model over the baseline.
      votes: of all choices, each of which counts; its interval is over items, as choices of one item go together.
      items: of the rated items; one is won by whichever model has more choices, and else a tie.
    """

    model: str
    baseline: str
    votes: WinRate
    items: WinRate


@dataclass(frozen=True, kw_only=True)
class FirstShare:
    """How often the answer shown first (A) was preferred.

    Attributes:
      rate: of choices that are no tie; 0.5 without a bias. NaN where all are ties.
      low, high: its interval, over items.
      first, second, ties: counts of choices.
    """

    rate: float
    low: float
    high: float
    first: int
    second: int
    ties: int


@dataclass(frozen=True, kw_only=True)
class PairRater:
    """One rater.

    Attributes:
      rated, unrated: of the items given to them.
      first: how often they preferred the answer shown first.
      votes: (model, baseline) -> of their choices.
      agreed: share of the other raters' choices of the same items that are theirs; None where there is none.
    """

    rated: int
    unrated: int
    first: FirstShare
    votes: Mapping[tuple[str, str], WinRate]
    agreed: float | None


@dataclass(frozen=True, kw_only=True)
class PairRatings:
    """The choices of all raters.

    Attributes:
      key: of the sheet.
      choices: (item, rater) -> A, B or tie.
      pairs: of models, those of which an item was rated.
      raters: by name, all of the key.
      agreement: on A, B and tie, nominal; None where no item has two ratings.
      first: how often the answer shown first was preferred.
      unrated: items without any rating.
      missing: ratings that are not there: an item counts once for each of its raters.
    """

    key: Key
    choices: Rated
    pairs: tuple[PairResult, ...]
    raters: Mapping[str, PairRater]
    agreement: RaterAgreement | None
    first: FirstShare
    unrated: tuple[str, ...]
    missing: int


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """Rows to train on.

    Attributes:
      rows: `prompt`, `chosen`, `rejected`: text, or messages where there are several turns.
      ties: rated items that neither answer wins.
      identical: items that one answer won over its like.
      empty: items that an empty answer won, which nothing can be learned from.
      unrated: items without a rating.
    """

    rows: tuple[Mapping[str, Any], ...]
    ties: int
    identical: int
    empty: int
    unrated: int


def import_pair_ratings(
    key: str | Path,
    files: Sequence[str],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
) -> PairRatings:
    """Reads the sheets of raters, of a sheet of `export_pair_sheet`.

    Args:
      key: key.json of the sheet.
      files: csv files of the raters.
      confidence: of all intervals, in (0, 1).
      seed, resamples: of the bootstrap behind the agreement's intervals.

    Raises:
      DataError: a wrong key, or a wrong row; see `key.read_key` and `rated.read_rated`.
    """
    found = read_key(str(key), "pair")
    choices = read_rated(found, files)
    codes = {choice: float(code) for code, choice in enumerate(POINTS)}
    drawn = {"seed": seed, "confidence": confidence, "resamples": resamples}
    return PairRatings(
        key=found,
        choices=choices,
        pairs=tuple(
            PairResult(
                model=model,
                baseline=baseline,
                votes=_votes(points, confidence),
                items=_items(points, confidence),
            )
            for (model, baseline), points in _by_pair(found, choices).items()
        ),
        raters={rater: _rater(found, choices, rater, confidence) for rater in found.raters},
        agreement=agreement_of(found, choices, codes, "nominal", **drawn),
        first=_first(choices, confidence),
        unrated=unrated_items(found, choices),
        missing=sum(map(len, found.raters.values())) - len(choices),
    )


def preferences(ratings: PairRatings) -> Preferences:
    """A row of each item that one answer wins: whichever more raters chose; ties of raters count for neither."""
    points = _by_item(ratings.choices)
    rows: list[Mapping[str, Any]] = []
    counts = Counter()
    for name, item in ratings.key.items.items():
        ahead = sum(np.sign(p - 0.5) for p in points.get(name, ()))
        if name not in points:
            counts["unrated"] += 1
        elif ahead == 0:
            counts["ties"] += 1
        elif item.answers[0] == item.answers[1]:
            counts["identical"] += 1
        elif not any(text.strip() for role, text in item.answers[int(ahead < 0)] if role == "assistant"):
            counts["empty"] += 1
        else:
            rows.append(_row(item, int(ahead < 0)))
    left = {name: counts[name] for name in ("ties", "identical", "empty", "unrated")}
    return Preferences(rows=tuple(rows), **left)


def write_preferences(path: str | Path, ratings: PairRatings) -> Preferences:
    """Writes the rows of `preferences` to a .jsonl file, which the trainers read; it appears whole or not at all.

    Raises:
      DataError: another kind of name, or no row.
    """
    if Path(path).suffix != ".jsonl":
        raise DataError(f"{path}: expected a name that ends in .jsonl")
    found = preferences(ratings)
    if not found.rows:
        raise DataError(f"{path}: no item has an answer that wins ({found.ties} ties); nothing is written")
    write_whole(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))
    return found


def _row(item: Item, winner: int) -> dict[str, Any]:
    chosen, rejected = item.answers[winner], item.answers[1 - winner]
    return {"prompt": plain(item.prompt), "chosen": plain(chosen), "rejected": plain(rejected)}


def _by_item(choices: Rated) -> dict[str, list[float]]:
    """Points of each rated item for the answer shown first."""
    found: dict[str, list[float]] = {}
    for (item, _), choice in choices.items():
        found.setdefault(item, []).append(POINTS[choice])
    return found


def _by_pair(key: Key, choices: Rated) -> dict[tuple[str, str], list[list[float]]]:
    """(model, baseline) -> the points of each rated item for the model, in the order of the key's models."""
    found: dict[tuple[str, str], list[list[float]]] = {pair: [] for pair in combinations(key.models, 2)}
    for name, points in _by_item(choices).items():
        first, second = key.items[name].models
        straight = (first, second) in found
        pair = (first, second) if straight else (second, first)
        found[pair].append(points if straight else [1 - p for p in points])
    return {pair: points for pair, points in found.items() if points}


def _votes(points: Sequence[Sequence[float]], confidence: float) -> WinRate:
    """Of all choices, with an interval over items."""
    flat = np.concatenate([np.asarray(one) for one in points])
    low, high = clustered_interval(
        [sum(one) for one in points], [len(one) for one in points], confidence=confidence
    )
    wins, losses = int((flat == 1).sum()), int((flat == 0).sum())
    return WinRate(float(flat.mean()), low, high, wins, flat.size - wins - losses, losses)


def _items(points: Sequence[Sequence[float]], confidence: float) -> WinRate:
    """Of items: whichever model has more choices."""
    fors, against = ([one.count(p) for one in map(list, points)] for p in (1.0, 0.0))
    return win_rate(fors, against, confidence=confidence)


def _first(choices: Rated, confidence: float) -> FirstShare:
    counts = Counter(choices.values())
    decided = [[p for p in points if p != 0.5] for points in _by_item(choices).values()]
    decided = [points for points in decided if points]
    rate = low = high = float("nan")
    if decided:
        sums, sizes = [sum(points) for points in decided], [len(points) for points in decided]
        rate = sum(sums) / sum(sizes)
        low, high = clustered_interval(sums, sizes, confidence=confidence)
    return FirstShare(
        rate=rate, low=low, high=high, first=counts["A"], second=counts["B"], ties=counts["tie"]
    )


def _rater(key: Key, choices: Rated, rater: str, confidence: float) -> PairRater:
    own = {place: choice for place, choice in choices.items() if place[1] == rater}
    mine = {item: choice for (item, _), choice in own.items()}
    same = [
        choice == mine[item] for (item, other), choice in choices.items() if other != rater and item in mine
    ]
    return PairRater(
        rated=len(own),
        unrated=len(key.raters[rater]) - len(own),
        first=_first(own, confidence),
        votes={pair: _votes(points, confidence) for pair, points in _by_pair(key, own).items()},
        agreed=float(np.mean(same)) if same else None,
    )
