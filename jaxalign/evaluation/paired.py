"""How much one model's figure differs from another's, on the items that both have."""

import math
from collections.abc import Mapping

from jaxalign.evaluation.items import Item
from jaxalign.evaluation.metrics.significance import Difference, paired_bootstrap
from jaxalign.evaluation.results import Figure

RESAMPLES = 2000


def paired_difference(
    metric: str,
    ours: tuple[Figure, Mapping[int, Item]],
    baseline: tuple[Figure, Mapping[int, Item]],
    *,
    confidence: float = 0.95,
) -> Difference | None:
    """The mean of our scores less the baseline's, over the items with the same prompt that both have a score of.

    Args:
      metric: a name in the items' scores.
      ours, baseline: the figure, and the items by index.
      confidence: of the interval, in (0, 1).

    Returns:
      None where a figure is no mean of its items' scores (a perplexity, say), or fewer than two items pair up.
    """
    scores = [_scores(metric, items) for _, items in (ours, baseline)]
    for (figure, _), own in zip((ours, baseline), scores, strict=True):
        # Five digits: figures may have been rounded when they were written.
        if not own or not math.isclose(
            sum(own.values()) / len(own), figure.value, rel_tol=1e-5, abs_tol=1e-9
        ):
            return None
    both = [i for i in scores[0] if i in scores[1] and ours[1][i].prompt == baseline[1][i].prompt]
    if len(both) < 2:
        return None
    first, second = ([own[i] for i in both] for own in scores)
    return paired_bootstrap(first, second, seed=0, confidence=confidence, resamples=RESAMPLES)


def _scores(metric: str, items: Mapping[int, Item]) -> dict[int, float]:
    found = {index: item.scores.get(metric) for index, item in items.items()}
    return {index: score for index, score in found.items() if score is not None and math.isfinite(score)}
