"""The loss of held-out rows: sums over batches, and what they say with their intervals."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxalign.processes import fetch
from jaxalign.training.core.state import TrainState
from jaxalign.uncertainty import wilson_interval

# Two-sided 95% quantile of the normal distribution.
Z95 = 1.959964


def evaluation(
    evaluate_batch: Callable[[Any, Any, Any], dict[str, tuple[Any, Any]]],
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    frozen: Any,
    place: Callable[[Mapping[str, Any]], Any],
    limit: int = 0,
) -> Callable[[TrainState], dict[str, float]]:
    """An evaluation over held-out batches: sums and counts are added, then divided once; see `summary`."""

    def evaluate(state: TrainState) -> dict[str, float]:
        sums: dict[str, np.ndarray] = {}
        for index, batch in enumerate(batches()):
            if limit and index >= limit:
                break
            part = fetch(evaluate_batch(state.params, frozen, place(batch)))
            for name, pair in part.items():
                sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        return summary(sums)

    return evaluate


def summary(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means of (sum, count) pairs, with 95% intervals where the rows are independent.

    `accuracy` gets `accuracy_low` and `accuracy_high` (Wilson); a metric X with a companion
    `X_square` (the sum of its squares) gets `X_low` and `X_high` (normal), and the companion is left out. `X_mean` with
    a companion `X_square` gets `X_std`, the population's standard deviation.
    """
    values: dict[str, float] = {}
    for name, (total, count) in sums.items():
        if name.endswith("_square"):
            mean = sums.get(f"{name.removesuffix('_square')}_mean")
            if mean is not None:
                average = mean[0] / max(mean[1], 1e-9)
                variance = max(float(total / max(count, 1e-9)) - average**2, 0.0)
                values[f"{name.removesuffix('_square')}_std"] = math.sqrt(variance)
            continue
        values[name] = mean = float(total / max(count, 1e-9))
        if name == "accuracy" and count >= 1:
            values["accuracy_low"], values["accuracy_high"] = wilson_interval(total, round(count))
        if f"{name}_square" in sums and count > 1:
            square = float(sums[f"{name}_square"][0])
            deviation = math.sqrt(max(square - count * mean**2, 0.0) / (count - 1))
            reach = Z95 * deviation / math.sqrt(count)
            values[f"{name}_low"], values[f"{name}_high"] = mean - reach, mean + reach
    return values
