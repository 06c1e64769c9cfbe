"""The reward that a configuration names: a model, Python functions, or a weighted mix of both."""

from typing import Any

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.models.heads import ScalarModel
from jaxalign.rewards import ModelReward, WeightedMix, load_function
from jaxalign.training import setup
from jaxalign.training.ppo_config import RewardSource


def build_reward(
    source: RewardSource, reward: Any, *, batch_size: int, vocabulary: int
) -> tuple[Any, ScalarModel | None]:
    """The reward, and the reward model in it where there is one.

    Args:
      source: what the configuration names.
      reward: a live reward or scalar model, in place of `source`; or None.
      batch_size: rows that a reward model scores at once.
      vocabulary: the policy's; a reward model must know as many tokens.

    Raises:
      ConfigError: no reward, or no such function.
      ModelError, UserError: a reward model that is damaged or does not fit.
    """
    if isinstance(reward, ScalarModel):
        return ModelReward(reward, batch_size=batch_size, vocabulary=vocabulary), reward
    if reward is not None:
        return reward, None
    model = None
    rewards: dict[str, Any] = {}
    weights: dict[str, float] = {}
    if source.model:
        model = models.load_reward_model(setup.model_folder(source.model))
        rewards["model"] = ModelReward(model, batch_size=batch_size, vocabulary=vocabulary)
        weights["model"] = source.model_weight
    for index, name in enumerate(source.functions):
        label = name.rpartition(":")[2]
        label = label if label not in rewards else f"{label}_{index}"
        rewards[label] = load_function(name)
        weights[label] = source.weights[index] if source.weights else 1.0
    if not rewards:
        raise ConfigError("reward: expected reward.model or reward.functions; there is neither")
    return WeightedMix(rewards, weights), model
