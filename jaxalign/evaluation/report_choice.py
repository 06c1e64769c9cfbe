"""Which items of a task a report shows: all of few; of many the worst, the best, and some drawn at random."""

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

from jaxalign.evaluation.items import Item
from jaxalign.evaluation.results import Figures

Items = Mapping[int, Item]


def shares_of(item: Item) -> np.ndarray:
    """Each choice's part of all choices' probability: float64 [K], exp(logps) / sum exp(logps)."""
    logps = np.asarray(item.logps, np.float64)
    with np.errstate(invalid="ignore"):  # all impossible: NaN each
        return np.exp(logps - np.logaddexp.reduce(logps))


def shown_items(
    items: Sequence[Items], metrics: Figures, *, most: int, seed: int
) -> dict[int, tuple[str, ...]]:
    """The items to show, by index, with why each is shown; no reason where all are.

    Of more than `most`, a part each: drawn at random (from all, so that they stand for all), the worst and the best by
    the first metric that items have scores of, and of several models those that they differ on most. Equal scores are
    told apart by the right choices' probability, then at random.

    Args:
      items: of each model; the first model's order and scores decide.
      metrics: of the task.
      most: items to show, at least 1.
      seed: of what is drawn.

    Returns:
      In the order: worst, differing, best, random; all items by their index where they are few.

    Raises:
      ValueError: most is below 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    first = items[0]
    if len(first) <= most:
        return dict.fromkeys(sorted(first), ())
    rng = random.Random(seed)
    metric = headline(items, metrics)
    reasons = {} if metric is None else _ranked(items, metric, metrics[metric].better, rng)
    found: dict[int, list[str]] = {}
    drawn = rng.sample(sorted(first), max(1, most // (len(reasons) + 1)))
    left = most - len(drawn)
    for place, (reason, order) in enumerate(reasons.items()):
        part = left // (len(reasons) - place)
        for index in order[:part]:
            found.setdefault(index, []).append(reason)
        left -= part
    for index in drawn:
        found.setdefault(index, []).append("random")
    return {index: tuple(why) for index, why in found.items()}


def headline(items: Sequence[Items], metrics: Figures) -> str | None:
    """The first metric of which an item has a score."""
    return next(
        (name for name in metrics if any(_score(item, name) is not None for item in items[0].values())), None
    )


def verdict_metric(items: Sequence[Items], metrics: Figures) -> str | None:
    """The first metric that says of each item whether it is right: 1, 0 or (a tie) a half; higher being better."""
    for name, figure in metrics.items():
        scores = {_score(item, name) for one in items for item in one.values()} - {None}
        if figure.better == "higher" and scores and scores <= {0.0, 0.5, 1.0}:
            return name
    return None


def verdict(item: Item | None, metric: str | None) -> str:
    """right, wrong or tie, by `verdict_metric`; empty where nothing is known."""
    score = None if item is None or metric is None else _score(item, metric)
    return "" if score is None else "right" if score > 0.5 else "tie" if score == 0.5 else "wrong"


def _ranked(items: Sequence[Items], metric: str, better: str, rng: random.Random) -> dict[str, list[int]]:
    """Indices from the most telling one, by reason."""
    first = items[0]
    known = {index: score for index, item in first.items() if (score := _score(item, metric)) is not None}
    keys = {index: (score, _certainty(first[index]), rng.random()) for index, score in known.items()}
    rising = sorted(keys, key=keys.__getitem__)
    falling = rising[::-1]
    gaps = {index: _gap(items, index, metric) for index in known}
    differing = sorted((i for i in gaps if gaps[i] > 0), key=lambda i: (-gaps[i], keys[i][2]))
    names = ("worst", "best") if better else ("lowest", "highest")
    bad, good = (falling, rising) if better == "lower" else (rising, falling)
    middle = {"differing": differing} if differing else {}
    return {names[0]: bad, **middle, names[1]: good}


def _gap(items: Sequence[Items], index: int, metric: str) -> float:
    """How far the models' scores of an item lie apart."""
    scores = [_score(one[index], metric) for one in items if index in one]
    known = [score for score in scores if score is not None]
    return max(known) - min(known)


def _certainty(item: Item) -> float:
    return float(shares_of(item)[list(item.right)].sum()) if item.logps and item.right else 0.0


def _score(item: Item, metric: str) -> float | None:
    score = item.scores.get(metric)
    return score if score is not None and math.isfinite(score) else None
