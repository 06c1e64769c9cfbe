"""The reward that a configuration names: a model or an ensemble, Python functions, or a weighted mix."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jax.sharding import Mesh

from jaxalign import models
from jaxalign.config_values import as_tuples
from jaxalign.data import check_separator
from jaxalign.errors import ConfigError
from jaxalign.models.heads import ScalarModel
from jaxalign.rewards import EnsembleReward, ModelReward, ProcessReward, WeightedMix, load_function
from jaxalign.rewards.process import StepScore
from jaxalign.runs import Run
from jaxalign.training.core import setup
from jaxalign.training.core.mesh_fit import tell_fit
from jaxalign.training.core.required_steps import StepsRequired


@dataclass(frozen=True, kw_only=True)
class RewardSource:
    """Where rewards come from: a reward model, Python functions, or a weighted mix of both.

    Attributes:
      model: folder (or run folder) of a reward model, a process reward model or a reward ensemble; empty uses none.
      models: folders of several reward models that form an ensemble, in place of `model`.
      aggregate: how an ensemble's scores become one: mean, mean_minus_std (mean - aggregate_coefficient * standard
        deviation over the members) or worst (the minimum).
      aggregate_coefficient: lambda of mean_minus_std.
      step_score: how a process reward model rewards a step: minimum (change of the lowest probability so far),
        difference (change of the probability), probability or logit; auto uses probability with
        loss.advantages=process, else minimum.
      separator: text that ends a step; empty uses the one that the process reward model was trained with.
      functions: reward functions in Python, as package.module:function or file.py:function.
      model_weight: weight of the reward model (or ensemble) in the sum.
      weights: weights of the functions, in order; empty weights each by 1.
      texts: always pass prompts and completions to functions as text. Otherwise, if prompts are messages, functions
        without a `columns` parameter receive messages, as in TRL.
      missing_stop_penalty: amount to subtract from the score of a completion without a stop token.
      missing_stop_score: score that replaces the score of a completion without a stop token; null keeps it.
      clip: clip scores to [-clip, clip] (token rewards are not clipped); 0 disables clipping.
      normalize: subtract the running mean from scores and divide them by their running standard deviation (token
        rewards are left as they are).
      whiten: scale token rewards to variance 1 over the rollout without shifting their mean.
    """

    model: str = ""
    models: tuple[str, ...] = ()
    aggregate: Literal["mean", "mean_minus_std", "worst"] = "mean"
    aggregate_coefficient: float = 1.0
    step_score: Literal["auto"] | StepScore = "auto"
    separator: str = ""
    functions: tuple[str, ...] = ()
    model_weight: float = 1.0
    weights: tuple[float, ...] = ()
    texts: bool = False
    missing_stop_penalty: float = 0.0
    missing_stop_score: float | None = None
    clip: float = 0.0
    normalize: bool = False
    whiten: bool = False

    def __post_init__(self) -> None:
        as_tuples(self, "models", "functions", "weights")
        if self.model and self.models:
            raise ValueError("reward.model and reward.models: choose one")
        if len(self.models) == 1:
            raise ValueError(
                "reward.models: expected two or more folders, got 1; set a single one as reward.model"
            )
        if self.aggregate_coefficient < 0:
            raise ValueError(
                f"reward.aggregate_coefficient must not be negative, got {self.aggregate_coefficient}"
            )
        if self.aggregate_coefficient != 1.0 and self.aggregate != "mean_minus_std":
            raise ValueError(
                f"reward.aggregate_coefficient = {self.aggregate_coefficient} is read with "
                f"reward.aggregate=mean_minus_std only, got {self.aggregate}"
            )
        check_separator("reward.separator", self.separator)
        if self.weights and self.functions:
            check_weights(self.weights, len(self.functions))

    @property
    def named(self) -> bool:
        """Whether it names any reward."""
        return bool(self.model or self.models or self.functions)


def check_weights(weights: Sequence[float], functions: int) -> None:
    """Raises ValueError unless there is a weight for each function."""
    if weights and len(weights) != functions:
        raise ValueError(
            f"reward.weights: expected one weight for each of the {functions} functions, got {len(weights)}"
        )


def build_reward(
    source: RewardSource,
    reward: Any,
    *,
    mesh: Mesh,
    batch_size: int,
    vocabulary: int,
    tokenizer: Any = None,
    by_step: bool = False,
    run: Run | None = None,
) -> tuple[Any, ScalarModel | None]:
    """The reward, and the reward model in it where there is one (of an ensemble: its first member).

    Args:
      source: what the configuration names.
      reward: in place of `source`: a live reward, a scalar model, several scalar models (an ensemble), or a list of
        functions and scalar models (a mix by `source.weights`); or None.
      mesh: the devices that reward models, live ones too, are sharded over, and the rows that they score. A live
        reward stays where its model is.
      batch_size: packed rows that a reward model scores at once.
      vocabulary: the policy's; a reward model must know as many tokens.
      tokenizer: the policy's; a process reward model needs it.
      by_step: whether the algorithm reads the rewards of steps: token rewards must then say where steps end (see
        `StepsRequired`), and `step_score=auto` is the probability of each step instead of the change of the minimum.
      run: is told how the models fit the mesh.

    Raises:
      ConfigError: no reward, no such function, a rule for ensembles where there is none, or a process reward
        model that is a member of one or has no separator.
      ModelError, UserError: a reward model that is damaged or does not fit.
    """
    step_score: StepScore = "probability" if by_step else "minimum"

    def placed(part: Any) -> Any:
        scalar = isinstance(part, ScalarModel)
        return setup.placed(part, mesh, run=run, section="reward") if scalar else part

    reward = [placed(part) for part in reward] if isinstance(reward, (list, tuple)) else placed(reward)
    load = partial(_load, source, mesh, run)
    found, model = _build(source, reward, load, batch_size, vocabulary, tokenizer, step_score)
    return (StepsRequired(found) if by_step else found), model


def _build(
    source: RewardSource,
    reward: Any,
    load: Callable[[], ScalarModel | list[ScalarModel]],
    batch_size: int,
    vocabulary: int,
    tokenizer: Any,
    step_score: StepScore,
) -> tuple[Any, ScalarModel | None]:
    def scored_by(found: ScalarModel | Sequence[ScalarModel]) -> tuple[Any, ScalarModel]:
        if isinstance(found, ScalarModel):
            if source.aggregate != "mean":
                raise ConfigError(
                    f"reward.aggregate={source.aggregate} needs an ensemble; there is only one reward model"
                )
            return alone(found), found
        if any(member.steps for member in found):
            raise ConfigError("reward.models: a process reward model cannot be a member of an ensemble")
        ensemble = EnsembleReward(
            found,
            aggregate=source.aggregate,
            coefficient=source.aggregate_coefficient,
            batch_size=batch_size,
            vocabulary=vocabulary,
        )
        return ensemble, found[0]

    def alone(found: ScalarModel) -> ModelReward | ProcessReward:
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

    if isinstance(reward, ScalarModel) or _is_ensemble(reward):
        return scored_by(reward)
    if isinstance(reward, (list, tuple)):
        return _mix_of(reward, source, alone)
    if source.weights and not source.functions:
        raise ConfigError("reward.weights: no reward.functions to weight")
    if reward is not None:
        return WeightedMix({_name_of(reward): reward}, texts=True) if source.texts else reward, None
    model = None
    rewards: dict[str, Any] = {}
    weights: dict[str, float] = {}
    if source.model or source.models:
        rewards["model"], model = scored_by(load())
        weights["model"] = source.model_weight
    elif source.aggregate != "mean":
        raise ConfigError(
            f"reward.aggregate={source.aggregate} needs an ensemble, but there is no reward model"
        )
    for index, name in enumerate(source.functions):
        label = _free(name.rpartition(":")[2], rewards, index)
        rewards[label] = load_function(name)
        weights[label] = source.weights[index] if source.weights else 1.0
    if not rewards:
        raise ConfigError("reward: expected reward.model, reward.models or reward.functions, got none")
    if (source.separator or source.step_score != "auto") and (model is None or model.steps is None):
        name = "separator" if source.separator else "step_score"
        raise ConfigError(f"reward.{name} needs a process reward model in reward.model")
    return WeightedMix(rewards, weights, texts=source.texts), model


def _mix_of(
    parts: Sequence[Any], source: RewardSource, scored_by: Callable[[ScalarModel], Any]
) -> tuple[WeightedMix, ScalarModel | None]:
    """A mix of live functions and scalar models, and the first model in it."""
    try:
        check_weights(source.weights, len(parts))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    rewards: dict[str, Any] = {}
    for index, part in enumerate(parts):
        if not isinstance(part, ScalarModel) and not callable(part) and not hasattr(part, "score"):
            raise ConfigError(f"reward: expected functions, rewards or scalar models, got {part!r:.60}")
        label = _free("model" if isinstance(part, ScalarModel) else _name_of(part), rewards, index)
        rewards[label] = scored_by(part) if isinstance(part, ScalarModel) else part
    if not rewards:
        raise ConfigError("reward: expected at least one function, got none")
    weights = dict(zip(rewards, source.weights or [1.0] * len(rewards), strict=True))
    model = next((part for part in parts if isinstance(part, ScalarModel)), None)
    return WeightedMix(rewards, weights, texts=source.texts), model


def _name_of(reward: Any) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def _free(label: str, taken: Mapping[str, Any], index: int) -> str:
    return label if label not in taken else f"{label}_{index}"


def _is_ensemble(reward: Any) -> bool:
    return isinstance(reward, Sequence) and bool(reward) and all(isinstance(r, ScalarModel) for r in reward)


def _load(source: RewardSource, mesh: Mesh, run: Run | None) -> ScalarModel | list[ScalarModel]:
    def loaded(folder: str) -> ScalarModel:
        tell_fit(run, "reward", models.load_config(folder), mesh)
        return models.load_reward_model(folder, mesh=mesh)

    if source.models:
        return [loaded(setup.model_folder(path)) for path in source.models]
    folder = setup.model_folder(source.model)
    if models.is_reward_ensemble(folder):
        members = models.load_reward_ensemble(folder, mesh=mesh)
        for member in members:
            tell_fit(run, "reward", member.config, mesh)
        return members
    return loaded(folder)
