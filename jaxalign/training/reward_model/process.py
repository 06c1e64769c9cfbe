"""Process reward models: where each step of a solution ends, the logit of its being right.

Sources: arXiv:2305.20050 (labels by people), arXiv:2312.08935 (by the share of continuations that come out right).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxalign.arrays import AnyArray
from jaxalign.losses import process_reward_loss, token_mean
from jaxalign.processes import fetch
from jaxalign.training.core.batch import TokenBatch
from jaxalign.training.core.offline import DatasetFeed, Evaluation
from jaxalign.training.core.scoring import ScalarPolicy
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.step import mean_of
from jaxalign.uncertainty import clustered_interval


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class StepBatch(TokenBatch):
    """Solutions in steps; `mask` is True where a step ends.

    Attributes:
      labels: the probability that the step is right, 0 where none ends.
    """

    labels: Float[AnyArray, "B T"]


def step_count(batch: StepBatch) -> jax.Array:
    """The number of steps that count, float32."""
    return jnp.sum(batch.rows().mask, dtype=jnp.float32)


def process_loss(policy: ScalarPolicy):
    """Builds the loss function of `make_update`: the mean over the steps of the whole batch."""

    def loss(params: Any, frozen: Any, batch: StepBatch, key: Any, counts: jax.Array):
        rows = batch.rows()
        logits = policy.per_token(params, frozen, rows, key=key)
        terms = process_reward_loss(logits, batch.labels, rows.mask)
        metrics = {"step_accuracy": mean_of((logits > 0) == (batch.labels >= 0.5), rows.mask)}
        return token_mean(terms, rows.mask, count=counts), metrics

    return loss


def held_out_steps(policy: ScalarPolicy, feed: DatasetFeed, frozen: Any) -> Evaluation:
    """An evaluation over the held-out solutions of a feed; see `step_measures`."""
    examples, limit = feed.data.validation, feed.train.eval_batches

    @jax.jit
    def forward(params: Any, frozen: Any, batch: StepBatch):
        rows = batch.rows()
        logits = policy.per_token(params, frozen, rows)
        return logits, process_reward_loss(logits, batch.labels, rows.mask)

    def evaluate(state: TrainState) -> dict[str, float]:
        solutions, clusters, total = [], [], 0.0
        for batch in itertools.islice(feed.held_out(), limit or None):
            placed = feed.place(batch, training=False)
            logits, terms = fetch(forward(state.params, frozen, placed))
            total += float(np.sum(terms, dtype=np.float64))
            for row in np.flatnonzero(batch["valid"]):
                ends = batch["mask"][row]
                solutions.append((logits[row, ends], batch["labels"][row, ends]))
                clusters.append(examples[int(batch["row_ids"][row])].group)
        steps = sum(len(labels) for _, labels in solutions)
        return {"loss": total / max(steps, 1)} | step_measures(solutions, clusters)

    return evaluate


def step_measures(
    solutions: Sequence[tuple[np.ndarray, np.ndarray]], clusters: Sequence[str]
) -> dict[str, float]:
    """How well steps, and the first wrong step of a solution, are found.

    A step is called right where its logit is above 0, and is right where its label is 0.5 or more.

    Args:
      solutions: (logits, labels) of each solution's steps, in order.
      clusters: one a solution; those of a problem share it, and are not independent.

    Returns:
      `step_accuracy` with its 95% interval (`_low`, `_high`), clustered; `right_step_accuracy` and
      `wrong_step_accuracy`, of steps that are right and wrong; and the measures of ProcessBench:
      `first_error_accuracy`, the part of solutions with a wrong step whose first one is the first called wrong;
      `all_right_accuracy`, the part of solutions without one in which no step is called wrong;
      `first_error_f1`, the harmonic mean of these two. What there is no step or solution for is left out.

    Source: ProcessBench, arXiv:2412.06559.
    """
    called = [logits > 0 for logits, _ in solutions]
    truly = [labels >= 0.5 for _, labels in solutions]
    hits = [a == b for a, b in zip(called, truly, strict=True)]
    found: dict[str, float] = {}
    if hits:
        totals: dict[str, np.ndarray] = {}
        for name, hit in zip(clusters, hits, strict=True):
            totals[name] = totals.get(name, np.zeros(2)) + (hit.sum(), hit.size)
        successes, counts = np.stack(list(totals.values())).T
        found["step_accuracy"] = float(successes.sum() / counts.sum())
        found["step_accuracy_low"], found["step_accuracy_high"] = clustered_interval(successes, counts)
    every, right = (np.concatenate([*x, np.zeros(0, bool)]) for x in (hits, truly))
    first = [(_first_wrong(a), _first_wrong(b)) for a, b in zip(called, truly, strict=True)]
    parts = {
        "right_step_accuracy": every[right],
        "wrong_step_accuracy": every[~right],
        "first_error_accuracy": np.asarray([a == b for a, b in first if b >= 0]),
        "all_right_accuracy": np.asarray([a == b for a, b in first if b < 0]),
    }
    found |= {name: float(x.mean()) for name, x in parts.items() if x.size}
    if {"first_error_accuracy", "all_right_accuracy"} <= found.keys():
        one, other = found["first_error_accuracy"], found["all_right_accuracy"]
        found["first_error_f1"] = 2 * one * other / (one + other) if one + other else 0.0
    return found


def _first_wrong(right: np.ndarray) -> int:
    """The index of the first step that is not right; -1 where all are."""
    return -1 if right.all() else int(np.argmin(right))
