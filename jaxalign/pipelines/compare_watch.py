"""What a run cost, by its own records; and its rewards on held-out prompts along the way."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.rewards import RewardRequest, Rewards, WeightedMix
from jaxalign.runs import Callback, records
from jaxalign.runs.callbacks import Event


class Watched(WeightedMix):
    """A mix that remembers the mean of each part in every call, for a `Curve`."""

    def __init__(self, rewards: Mapping[str, Any], weights: Mapping[str, float]) -> None:
        super().__init__(rewards, {name: weights[name] for name in rewards})
        self.seen: list[tuple[int, dict[str, float]]] = []

    def score(self, request: RewardRequest) -> Rewards:
        """See `WeightedMix`."""
        found = super().score(request)
        means = {name: float(found.metrics[name]) for name in self.rewards}
        self.seen.append((len(request.completions), means))
        return found

    def taken(self) -> dict[str, float]:
        """Means over all rows since the last time."""
        seen, self.seen = self.seen, []
        rows = sum(count for count, _ in seen)
        return {name: sum(n * means[name] for n, means in seen) / rows for name in self.rewards if rows}


class Curve(Callback):
    """Rewards and KL of each held-out evaluation of a run.

    Args:
      reward: of the run.

    Attributes:
      points: of each evaluation: update, kl (nats a completion; None where the run has no reference), and the mean of
        each of the reward's parts.
    """

    def __init__(self, reward: Watched) -> None:
        self.reward = reward
        self.points: list[dict[str, float | None]] = []

    def on_step(self, event: Event) -> None:
        """What the update's own completions scored is no part of it."""
        self.reward.taken()

    def on_eval(self, event: Event) -> None:
        """See `Callback`."""
        point = {"update": event.step, "kl": event.metrics.get("eval/kl"), **self.reward.taken()}
        self.points = [p for p in self.points if p["update"] != event.step] + [point]

    def state(self) -> Mapping[str, Any]:
        """See `Callback`."""
        return {"points": self.points}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self.points = list(state["points"])


def cost_of(run: Path, *, sampled: bool) -> dict[str, Any]:
    """What a finished run has cost.

    Every record of metrics.jsonl is a mean over the steps since the last one; a resumed run writes them anew from its
    checkpoint, so that their sums are of one run, however often it was stopped. Loading, evaluating and saving are not
    counted; compiling is.

    Args:
      run: its folder.
      sampled: whether it is one that samples: tokens are then those of its completions, else those of its batches.

    Returns:
      `seconds` of its steps, `tokens`, `steps` (or updates), `trainable` parameters and final `metrics`.
    """
    metadata = json.loads((run / "metadata.json").read_text(encoding="utf-8"))
    rows = 0
    if sampled:
        given = metadata["config"]
        rows = given["train"]["prompts"] * given["sampling"]["num_samples"]
    seconds = tokens = 0.0
    before = 0
    for record in records.read(run / "metrics.jsonl"):
        step = record["step"]
        if sampled and "rollout/length" in record:
            parts = [record.get(f"time/{part}_seconds", 0.0) for part in ("sample", "score", "optimize")]
            seconds += (step - before) * sum(parts)
            tokens += (step - before) * rows * record["rollout/length"]
            before = step
        elif not sampled and "time/step_seconds" in record:
            seconds += (step - before) * record["time/step_seconds"]
            tokens += (step - before) * record["time/step_seconds"] * record["time/tokens_per_second"]
            before = step
    return {
        "seconds": round(seconds, 3),
        "tokens": round(tokens),
        "steps": before,
        "trainable": metadata["training"]["trained_parameters"],
        "metrics": metadata.get("final_metrics", {}),
    }
