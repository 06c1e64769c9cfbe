"""The reward that a configuration names: a model, Python functions, or a weighted mix of both."""

from dataclasses import dataclass
from typing import Any, Literal

from jaxalign import models
from jaxalign.data import check_separator
from jaxalign.errors import ConfigError
from jaxalign.models.heads import ScalarModel
from jaxalign.rewards import ModelReward, ProcessReward, WeightedMix, load_function
from jaxalign.rewards.process import StepScore
from jaxalign.training import setup


@dataclass(frozen=True, kw_only=True)
class RewardSource:
    """Where rewards come from: a reward model, Python functions, or a weighted mix of both.

    Attributes:
      model: folder of a reward model (or its run folder), a process reward model too; empty for none.
      step_score: what a step earns by a process reward model: minimum (change of its lowest probability so far),
        difference (change of the probability), probability or logit; auto takes probability where
        loss.advantages=process, else minimum.
      separator: text that ends a step; empty takes what the process reward model was trained with.
      functions: Python functions, as package.module:function or file.py:function.
      model_weight: weight of the reward model in the mix.
      weights: weights of the functions, in their order; empty for 1 each.
      missing_stop_penalty: taken from the score of a completion without a stop token.
      missing_stop_score: score of a completion without a stop token, in place of its own; None keeps it.
      clip: scores are clipped to +-clip (token rewards are not); 0 turns it off.
      normalize: divide scores by their running standard deviation, after taking the running mean away (token
        rewards are left as they are).
      whiten: scale token rewards to variance 1 over the rollout batch, the mean kept.
    """

    model: str = ""
    step_score: Literal["auto"] | StepScore = "auto"
    separator: str = ""
    functions: tuple[str, ...] = ()
    model_weight: float = 1.0
    weights: tuple[float, ...] = ()
    missing_stop_penalty: float = 0.0
    missing_stop_score: float | None = None
    clip: float = 0.0
    normalize: bool = False
    whiten: bool = False

    def __post_init__(self) -> None:
        check_separator("reward.separator", self.separator)
        if self.weights and len(self.weights) != len(self.functions):
            raise ValueError(
                f"reward.weights: expected one weight for each of the {len(self.functions)} functions, "
                f"got {len(self.weights)}"
            )


def build_reward(
    source: RewardSource,
    reward: Any,
    *,
    batch_size: int,
    vocabulary: int,
    tokenizer: Any = None,
    step_score: StepScore = "minimum",
) -> tuple[Any, ScalarModel | None]:
    """The reward, and the reward model in it where there is one.

    Args:
      source: what the configuration names.
      reward: a live reward or scalar model, in place of `source`; or None.
      batch_size: rows that a reward model scores at once.
      vocabulary: the policy's; a reward model must know as many tokens.
      tokenizer: the policy's; a process reward model needs it.
      step_score: what `auto` stands for.

    Raises:
      ConfigError: no reward, no such function, or a process reward model without a separator.
      ModelError, UserError: a reward model that is damaged or does not fit.
    """

    def of(found: ScalarModel) -> ModelReward | ProcessReward:
        if found.steps is None:
            return ModelReward(found, batch_size=batch_size, vocabulary=vocabulary)
        return ProcessReward(
            found,
            tokenizer,
            separator=source.separator,
            score=step_score if source.step_score == "auto" else source.step_score,
            batch_size=batch_size,
            vocabulary=vocabulary,
        )

    if isinstance(reward, ScalarModel):
        return of(reward), reward
    if reward is not None:
        return reward, None
    model = None
    rewards: dict[str, Any] = {}
    weights: dict[str, float] = {}
    if source.model:
        model = models.load_reward_model(setup.model_folder(source.model))
        rewards["model"] = of(model)
        weights["model"] = source.model_weight
    for index, name in enumerate(source.functions):
        label = name.rpartition(":")[2]
        label = label if label not in rewards else f"{label}_{index}"
        rewards[label] = load_function(name)
        weights[label] = source.weights[index] if source.weights else 1.0
    if not rewards:
        raise ConfigError("reward: expected reward.model or reward.functions; there is neither")
    if (source.separator or source.step_score != "auto") and (model is None or model.steps is None):
        name = "separator" if source.separator else "step_score"
        raise ConfigError(f"reward.{name} is for a process reward model; reward.model names none")
    return WeightedMix(rewards, weights), model
