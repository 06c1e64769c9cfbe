"""Configuration of GRPO and its relatives; the algorithms themselves are in `recipes`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from jaxalign.rollout import SamplingConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.rl.grpo_advantages import ADVANTAGES, Advantages
from jaxalign.training.rl.on_policy_config import (
    ImportanceLevel,
    ImportanceMode,
    OnPolicyConfig,
    RolloutTrainConfig,
    check_cap,
)
from jaxalign.training.rl.recipes import RL_RECIPES, Recipe

LossName = Literal[tuple(RL_RECIPES)]
AdvantageName = Literal[tuple(ADVANTAGES)]
T = TypeVar("T")


def _names(holds: Callable[[Recipe], Any]) -> str:
    return ", ".join(name for name, recipe in RL_RECIPES.items() if holds(recipe))


def _told(cls: type[T]) -> type[T]:
    """Fills the tables' names into the docstring of a configuration, which `--help` prints."""
    cls.__doc__ = (cls.__doc__ or "").format(
        losses=", ".join(RL_RECIPES),
        advantages="; ".join(f"{name} ({each.meaning})" for name, each in ADVANTAGES.items()),
        rows=_names(lambda recipe: recipe.of_rows),
        dual=_names(lambda recipe: recipe.takes_dual_clip),
    )
    return cls


@_told
@dataclass(frozen=True, kw_only=True)
class GRPOLossConfig:
    """Advantages and the policy loss.

    Attributes:
      name: the algorithm: {losses}.
      advantages: how rewards become advantages: {advantages}; auto uses the algorithm's own.
      clip_low: clip the ratio at 1 - clip_low; -1 uses the algorithm's own value.
      clip_high: clip the ratio at 1 + clip_high (cispo: at clip_high); -1 uses the algorithm's own value.
      dual_clip: upper bound, above 1, on the ratio of tokens with a negative advantage ({dual}); 0 disables it.
      beta: weight of the KL to the reference, a k3 estimate per token in the loss (rloo: a k1 estimate per
        completion, subtracted from the reward; reinforce++: a k1 estimate per token, subtracted from the token's
        reward); 0 needs no reference.
      entropy_weight: weight of the entropy bonus.
      mask_truncated: leave completions that were cut at the length limit out of the loss (DAPO's overlong filtering);
        their rewards still contribute to the group's mean and standard deviation.
      overlong_buffer: number of tokens before the maximum length over which a penalty grows from 0 to
        overlong_penalty (DAPO); 0 disables it.
      overlong_penalty: amount to subtract from the score of a completion of the maximum length.
      importance_cap: maximum importance weight (ratio of the policy to the sampler) of a token or completion, which
        corrects for truncated sampling or another engine; 0 disables the correction, -1 uses 2 with a server and 0
        otherwise.
      importance_level: one importance weight per token, or one per sequence (the whole completion); auto is sequence
        for {rows}, which have one loss per completion, and token otherwise.
      importance_mode: what to do with a weight above the cap: truncate (set it to the cap) or mask (set it to 0).
      function: your own loss, as file.py:function or package.module:function, used in place of the one that `name`
        selects; it receives the same arrays and none of the options. For grpo: loss(logps[B, T], old_logps[B, T],
        advantages[B, T], mask[B, T]) -> [B, T].
      advantage_function: your own advantages, as file.py:function or package.module:function, called as
        advantages(rewards[B], group_size, mask[B]) -> [B] on a whole rollout: the group_size completions of a prompt
        are consecutive, and mask is True for completions with a reward.
    """

    name: LossName = "grpo"
    advantages: Literal["auto"] | AdvantageName = "auto"
    clip_low: float = -1.0
    clip_high: float = -1.0
    dual_clip: float = 0.0
    beta: float = 0.0
    entropy_weight: float = 0.0
    mask_truncated: bool = False
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    importance_cap: float = -1.0
    importance_level: ImportanceLevel = "auto"
    importance_mode: ImportanceMode = "truncate"
    function: str = ""
    advantage_function: str = ""

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"loss.beta must not be negative, got {self.beta}")
        if self.dual_clip and (self.dual_clip <= 1 or not self.recipe.takes_dual_clip):
            raise ValueError(
                "loss.dual_clip must be above 1 and needs a loss.name of "
                f"{_names(lambda recipe: recipe.takes_dual_clip)}; got {self.dual_clip} for {self.name}"
            )
        check_cap(self.importance_cap)
        if self.importance_cap and self.importance_level == "token" and self.recipe.of_rows:
            raise ValueError(
                f"loss.importance_level=token weights tokens, but loss.name={self.name} has one loss per completion; "
                f"use sequence or auto, or a loss.name of {_names(lambda recipe: not recipe.of_rows)}"
            )
        if self.advantage.steps and self.recipe.of_rows:
            raise ValueError(
                f"loss.advantages=process gives one advantage per token, but loss.name={self.name} has one loss per "
                f"completion; use one of {_names(lambda recipe: not recipe.of_rows)}"
            )

    @property
    def kl_in_reward(self) -> bool:
        """Whether beta's KL is subtracted from the rewards, before advantages; otherwise it is a term of the loss."""
        return self.recipe.kl_in_score or self.advantage.takes_kl

    @property
    def weighs(self) -> Literal["token", "sequence"]:
        """What importance weights are of."""
        if self.importance_level != "auto":
            return self.importance_level
        return "sequence" if self.recipe.of_rows else "token"

    @property
    def recipe(self) -> Recipe:
        """The algorithm's settings, with those of the configuration in their place."""
        base = RL_RECIPES[self.name]
        low, high = (
            own if own >= 0 else theirs
            for own, theirs in zip((self.clip_low, self.clip_high), base.clip, strict=True)
        )
        named = base.advantages if self.advantages == "auto" else self.advantages
        return replace(base, advantages=named, clip=(low, high))

    @property
    def advantage(self) -> Advantages:
        """How rewards become advantages."""
        return ADVANTAGES[self.recipe.advantages]


@dataclass(frozen=True, kw_only=True)
class GRPOTrainConfig(RolloutTrainConfig):
    """Size of a rollout, and the updates made from it.

    Attributes:
      sampling_rounds: maximum number of rounds of prompts to sample until enough groups have rewards that differ
        (DAPO's dynamic sampling); 1 only drops groups whose rewards are all equal, as they give no gradient.
    """

    sampling_rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling_rounds < 1:
            raise ValueError(f"train.sampling_rounds must be 1 or more, got {self.sampling_rounds}")


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(OnPolicyConfig):
    """Policy gradients from groups of completions, without a critic.

    Attributes:
      sampling: how completions are sampled; num_samples is the group size.
      loss: advantages and loss.
    """

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(num_samples=8))
    loss: GRPOLossConfig = field(default_factory=GRPOLossConfig)
    train: GRPOTrainConfig = field(default_factory=GRPOTrainConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-6, schedule="constant")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rollout.check_corrected(self.importance_cap)
        groups = self.loss.advantage.groups and not self.loss.advantage_function
        if self.sampling.num_samples < 2 and groups:
            raise ValueError(
                f"sampling.num_samples must be 2 or more: loss.name={self.loss.name} compares the completions of "
                f"a prompt; got {self.sampling.num_samples}"
            )
        if self.reward.whiten:
            raise ValueError(
                "reward.whiten is for PPO; for GRPO, loss.advantages sets how rewards are scaled"
            )

    @property
    def importance_cap(self) -> float:
        """Largest importance weight of a token or completion; 0 where none is weighed."""
        return self.rollout.importance_cap(self.loss.importance_cap)
