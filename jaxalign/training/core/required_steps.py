"""Process supervision needs to know where steps end: a reward that gives token rewards must say so."""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from jaxalign.errors import ConfigError
from jaxalign.processes import by_first
from jaxalign.rewards import (
    EnsembleReward,
    ModelReward,
    ProcessReward,
    RewardRequest,
    Rewards,
    WeightedMix,
    evaluate_reward,
)


class StepsRequired:
    """A reward whose token rewards come with `steps`, in every part of a mix.

    Without them a step would be where a token reward is not 0, and a wrong step that earns 0 would count nowhere.

    Args:
      reward: see `jaxalign.rewards`.
    """

    def __init__(self, reward: Any) -> None:
        self.silent: list[str] = []
        self.reward = self._heard(reward)

    def offload(self) -> None:
        """See `WeightedMix.offload`."""
        if hasattr(self.reward, "offload"):
            self.reward.offload()

    def score(self, request: RewardRequest) -> Rewards:
        """What the reward says.

        Raises:
          ConfigError: it gave token rewards and no steps.
        """
        found = evaluate_reward(self.reward, request)
        by_first(self._check)  # of several processes the first alone calls functions
        # Asked again, zeros would be token rewards.
        return replace(found, token_rewards=None) if found.steps is None else found

    def _check(self) -> None:
        if self.silent:
            raise ConfigError(
                f"loss.advantages=process: reward {self.silent[0]} returned token rewards but no steps, so a step "
                "with reward 0 would be ignored; return Rewards(token_rewards=..., steps=...), steps a bool array "
                "[N, C]"
            )

    def _heard(self, reward: Any) -> Any:
        """The same reward, of which `silent` learns when it says nothing of steps."""
        if isinstance(reward, WeightedMix):
            mix = copy.copy(reward)
            mix.rewards = {name: self._heard(part) for name, part in reward.rewards.items()}
            return mix
        if isinstance(reward, (ModelReward, EnsembleReward, ProcessReward)):
            return reward
        name = getattr(reward, "__name__", type(reward).__name__)

        def noted(result: Any) -> Any:
            if _without_steps(result):
                self.silent.append(name)
            return result

        return _Scoring(reward, noted) if hasattr(reward, "score") else _calling(reward, noted)


class _Scoring:
    """A reward with a method `score`, whose results are seen by another function."""

    def __init__(self, reward: Any, noted: Callable[[Any], Any]) -> None:
        self.reward, self.noted = reward, noted
        self.__name__ = getattr(reward, "__name__", type(reward).__name__)

    def offload(self) -> None:
        if hasattr(self.reward, "offload"):
            self.reward.offload()

    def score(self, request: RewardRequest) -> Any:
        return self.noted(self.reward.score(request))


def _calling(function: Callable[..., Any], noted: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function with the same signature, whose results are seen by another one."""
    call = type(function).__call__ if not inspect.isroutine(function) else function
    if inspect.iscoroutinefunction(call):

        @functools.wraps(function)
        async def awaited(*args: Any, **options: Any) -> Any:
            return noted(await function(*args, **options))

        return awaited

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        return noted(function(*args, **options))

    return called


def _without_steps(result: Any) -> bool:
    if isinstance(result, Rewards):
        return result.token_rewards is not None and result.steps is None
    try:
        return np.ndim(result) == 2
    except ValueError:  # rows of different lengths: refused elsewhere
        return False
