"""Rewards of completions: computed, normalized, clipped and shaped by the rules for a missing stop token."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxalign.rewards import RewardRequest, Rewards, evaluate_reward
from jaxalign.rollout import Completions
from jaxalign.training.core.reward_source import RewardSource


@dataclass
class RunningMoments:
    """Mean and variance of all scores seen, by Chan's parallel update; part of the checkpoint."""

    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    def update(self, values: np.ndarray) -> None:
        """Adds values; an empty array changes nothing."""
        values = np.asarray(values, np.float64)
        if not values.size:
            return
        delta = float(values.mean()) - self.mean
        total = self.count + values.size
        self.square += float(values.var() * values.size) + delta**2 * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total

    @property
    def std(self) -> float:
        """Population standard deviation; 1 before there are two values."""
        return float(np.sqrt(self.square / self.count)) if self.count > 1 and self.square > 0 else 1.0


@dataclass(frozen=True)
class ShapedRewards:
    """What N completions earned.

    Attributes:
      rewards: as they were given; 0 after the end of a completion.
      raw: float [N], their sums before any shaping.
      scores: float32 [N], after it, without the token rewards.
    """

    rewards: Rewards
    raw: np.ndarray
    scores: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """Bool [N]: completions to which a reward applies."""
        return np.asarray(self.rewards.valid)

    @property
    def token_sums(self) -> np.ndarray:
        """[N]: sums of the token rewards."""
        return np.asarray(self.rewards.token_rewards).sum(1)


def shaped_rewards(
    reward: Any,
    source: RewardSource,
    request: RewardRequest,
    completions: Completions,
    moments: RunningMoments,
) -> ShapedRewards:
    """Asks `reward` about completions and shapes what it says as `source` has it.

    Changes `moments` where scores are normalised.
    """
    rewards = rewards_of(reward, request, completions)
    raw = np.asarray(rewards.scores) + np.asarray(rewards.token_rewards).sum(1)
    return ShapedRewards(rewards, raw, final_scores(source, rewards, completions, moments))


def rewards_of(reward: Any, request: RewardRequest, completions: Completions) -> Rewards:
    """Rewards of completions, checked (see `evaluate_reward`); 0 after the end of a completion."""
    rewards = evaluate_reward(reward, request)
    assert rewards.token_rewards is not None
    steps = None if rewards.steps is None else rewards.steps & completions.mask
    return replace(rewards, token_rewards=np.where(completions.mask, rewards.token_rewards, 0.0), steps=steps)


def final_scores(
    source: RewardSource, rewards: Rewards, completions: Completions, moments: RunningMoments
) -> np.ndarray:
    """Scores [N] after normalisation, clipping and the rules for a missing stop token.

    Changes `moments` where scores are normalised.
    """
    assert rewards.scores is not None and rewards.valid is not None
    scores = np.array(rewards.scores, np.float32)
    if source.normalize:
        moments.update(scores[rewards.valid])
        scores = ((scores - moments.mean) / (moments.std + 1e-8)).astype(np.float32)
    if source.clip:
        scores = np.clip(scores, -source.clip, source.clip)
    unfinished = np.array([reason != "stop" for reason in completions.finish_reason])
    if source.missing_stop_score is not None:
        scores = np.where(unfinished, np.float32(source.missing_stop_score), scores)
    scores = scores - np.float32(source.missing_stop_penalty) * unfinished
    return np.where(rewards.valid, scores, 0.0).astype(np.float32)
