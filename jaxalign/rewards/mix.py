"""A weighted sum of rewards."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.rewards.base import Rewards, begin_reward
from jaxalign.rewards.calls import RewardRequest


class WeightedMix:
    """sum_i weight_i * reward_i, over the rewards that apply to a row.

    A row to which none applies is not valid. A step ends where it ends in any part. Each part's mean is a metric.
    Coroutine functions run concurrently.

    Args:
      rewards: parts by name.
      weights: by name; 1 by default.
      texts: functions get texts also where prompts are messages.
    """

    def __init__(
        self,
        rewards: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
        *,
        texts: bool = False,
    ) -> None:
        weights = weights or {}
        unknown = set(weights) - set(rewards)
        if unknown:
            raise ValueError(f"weights for unknown rewards: {sorted(unknown)}")
        self.rewards = dict(rewards)
        self.texts = texts
        self.weights = {name: float(weights.get(name, 1.0)) for name in self.rewards}

    def offload(self) -> None:
        """Keeps the weights of its reward models in host memory between calls from now on."""
        for reward in self.rewards.values():
            if hasattr(reward, "offload"):
                reward.offload()

    def score(self, request: RewardRequest) -> Rewards:
        """The mix, in `Rewards` form."""
        return self.mixed(self.parts(request), request)

    def parts(self, request: RewardRequest) -> dict[str, Rewards]:
        """What each part says by itself, as `evaluate_reward` returns it; `mixed` adds them up."""
        begun = {
            name: begin_reward(reward, request, name=name, texts=self.texts)
            for name, reward in self.rewards.items()
        }
        return {name: finish() for name, finish in begun.items()}

    def mixed(self, parts: Mapping[str, Rewards], request: RewardRequest) -> Rewards:
        """The weighted sum of the parts of a request."""
        rows = len(request.completions)
        scores = np.zeros(rows, np.float32)
        tokens = np.zeros((rows, request.width), np.float32)
        valid = np.zeros(rows, bool)
        steps: np.ndarray | None = None
        metrics: dict[str, float] = {}
        for name, part in parts.items():
            assert part.scores is not None and part.token_rewards is not None and part.valid is not None
            scores += self.weights[name] * part.scores
            tokens += self.weights[name] * part.token_rewards
            valid |= part.valid
            if part.steps is not None:
                steps = part.steps if steps is None else steps | part.steps
            total = part.scores + part.token_rewards.sum(axis=1)
            metrics |= {f"{name}/{key}": value for key, value in part.metrics.items()}
            metrics[name] = float(total[part.valid].mean()) if part.valid.any() else 0.0
        if steps is None:
            return Rewards(scores, None, valid, metrics)
        return Rewards(scores, tokens, valid, metrics, steps)
