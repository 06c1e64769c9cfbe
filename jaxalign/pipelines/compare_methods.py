"""The methods that `jaxalign compare` knows, and the configuration of each within one budget."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxalign.config import describe, from_dict, to_dict
from jaxalign.errors import ConfigError, UserError
from jaxalign.pipelines.compare_config import CompareConfig

# Held-out evaluations along a run that samples: the points of its curve.
POINTS = 8


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method, or a step that all begin with.

    Attributes:
      about: what it does, in one line.
      config, function: `module:name` of what trains it; empty where nothing is trained.
      data: the field of `CompareData` that it trains on.
      kind: `fixed` data, `sampled` completions, or nothing.
      proxy: whether it needs the reward that methods optimize.
      settings: its own keys, where they are not the command's defaults.
    """

    about: str
    config: str = ""
    function: str = ""
    data: str = ""
    kind: Literal["fixed", "sampled", ""] = ""
    proxy: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


_SFT: dict[str, Any] = {
    "config": "jaxalign.training.sft:SFTConfig",
    "function": "jaxalign.training.sft:train_sft",
}
_DPO: dict[str, Any] = {
    "config": "jaxalign.training.preference.dpo:DPOConfig",
    "function": "jaxalign.training.preference.dpo:train_dpo",
}
_GRPO: dict[str, Any] = {
    "config": "jaxalign.training.rl.grpo:GRPOConfig",
    "function": "jaxalign.training.rl.grpo:train_grpo",
}

METHODS: dict[str, Method] = {
    "sft": Method(about="the supervised model, from which all others start"),
    "feedback": Method(
        about="rounds of fine-tuning on the answers that people accepted or edited",
        data="feedback",
        kind="fixed",
        **_SFT,
    ),
    "ppo": Method(
        about="PPO against the proxy",
        config="jaxalign.training.rl.ppo:PPOConfig",
        function="jaxalign.training.rl.ppo:train_ppo",
        data="prompts",
        kind="sampled",
        proxy=True,
        settings={"train.epochs": 2},
    ),
    "dpo": Method(about="DPO on the pairs", data="pairs", kind="fixed", **_DPO),
    "kto": Method(
        about="KTO on the answers of the pairs, each labeled good or bad",
        data="pairs",
        kind="fixed",
        settings={"loss.name": "kto"},
        **_DPO,
    ),
    "grpo": Method(
        about="GRPO against the proxy",
        data="prompts",
        kind="sampled",
        proxy=True,
        # Without a reference there would be no KL to draw the reward against.
        settings={"loss.beta": 0.04, "sampling.num_samples": 8},
        **_GRPO,
    ),
    "rloo": Method(
        about="RLOO against the proxy",
        data="prompts",
        kind="sampled",
        proxy=True,
        settings={"loss.name": "rloo", "loss.beta": 0.05, "sampling.num_samples": 4},
        **_GRPO,
    ),
    "best_of_n": Method(about="of n answers of the supervised model the best by the proxy", proxy=True),
    "tfpo": Method(
        about="the supervised model, guided by a doctor trained on the pairs",
        config="jaxalign.llmdoctor.tfpo_config:TFPOConfig",
        function="jaxalign.llmdoctor.tfpo:train_tfpo",
        data="pairs",
        kind="fixed",
    ),
}
# What all methods begin with, by the name of its settings.
BEGINNINGS: dict[str, Method] = {
    "sft": Method(about="the start of all methods", data="demonstrations", kind="fixed", **_SFT),
    "reward": Method(
        about="the reward model that methods optimize",
        config="jaxalign.training.reward_model.trainer:RewardConfig",
        function="jaxalign.training.reward_model.trainer:train_reward",
        data="pairs",
        kind="fixed",
    ),
}
# Keys that the comparison sets itself, and those of them that the user may set where all methods begin.
OWN = {
    "run.output", "run.seed", "run.device", "run.resume", "run.distributed", "model.path", "patient.path",
    "reference.path", "data.train", "data.validation", "data.validation_fraction", "reward.model", "reward.models",
    "reward.functions", "sampling.max_new_tokens", "lora.enabled", "train.batch_size", "train.batch_tokens",
    "train.steps", "train.updates", "train.prompts", "train.minibatches",
}  # fmt: skip
LENGTH = {"train.steps", "train.batch_size", "train.batch_tokens"}


def load(target: str) -> Any:
    """The object that `module:name` names."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def files_of(config: CompareConfig, method: Method) -> tuple[str, ...]:
    """What a method trains on; prompts of the pairs where there are no others."""
    if not method.data:
        return ()
    files = getattr(config.data, method.data)
    return files or (config.data.pairs if method.data == "prompts" else ())


def trains_proxy(config: CompareConfig) -> bool:
    """Whether a reward model is trained on the pairs: all methods are measured by it, also those that optimize none."""
    return not config.proxy.named and bool(config.data.pairs)


def trainer_config(
    config: CompareConfig,
    name: str,
    *,
    seed: int,
    folder: Path,
    start: str,
    beginning: bool = False,
    proxy: str = "",
    files: Sequence[str] = (),
    part: tuple[int, int] = (0, 1),
) -> Any:
    """The configuration of a run.

    Args:
      config: of the comparison.
      name: of a method; with `beginning` of what all methods begin with.
      seed, folder: of the run.
      start: folder of the model that it starts from.
      proxy: folder of the reward model that methods optimize; empty where it has none.
      files: in place of the method's own.
      part: (i, n): of its optimizer steps the i-th of n parts.

    Raises:
      ConfigError: a key or value of `settings`, or a budget that does not suit it; names it.
    """
    method = (BEGINNINGS if beginning else METHODS)[name]
    cls, where = load(method.config), "reward" if name == "reward" else name
    keys = {key.name for key in describe(cls)}
    tree: dict[str, Any] = {}
    values = {**method.settings}
    if name == "ppo" and proxy:
        values |= {"critic.init": "path", "critic.path": proxy}
    values |= {key: value for key, value in _own(config, "all", keys, beginning) if key in keys}
    for key, value in _own(config, where, keys, beginning):
        if key not in keys:
            raise ConfigError(f"settings.{where}.{key}: this method has no such key")
        values[key] = value
    budget, run = config.budget, {"output": str(folder), "seed": seed, "device": config.device}
    values |= {f"run.{key}": value for key, value in run.items()}
    values |= {"run.resume": True, "run.progress": False, "run.keep_last": 1}
    values |= {"data.train": list(files or files_of(config, method)), "data.validation_fraction": 0.0}
    held_out = config.data.held_out_prompts if method.kind == "sampled" else config.data.held_out_pairs
    held_out = [held_out] if isinstance(held_out, str) else list(held_out)
    values["data.validation"] = held_out if method.data in ("pairs", "prompts") else []
    values["patient.path" if name == "tfpo" else "model.path"] = start
    if config.lora.enabled:
        values |= {f"lora.{key}": value for key, value in to_dict(config.lora).items()}
    if "sampling.max_new_tokens" in keys:
        values["sampling.max_new_tokens"] = config.sampling.max_new_tokens
    if method.kind == "sampled":
        values |= _sampled(config, name, values)
    else:
        steps, (i, n) = budget.samples // budget.batch_size, part
        fixed = {"train.batch_size": budget.batch_size, "train.steps": steps * (i + 1) // n - steps * i // n}
        values = {**fixed, **values} if beginning else {**values, **fixed}
        values.setdefault("run.save_every", max(1, values["train.steps"] // 4))
    for key, value in values.items():
        _put(tree, key, value)
    try:
        return from_dict(cls, tree)
    except UserError as error:
        raise ConfigError(f"settings.{where}: {error}") from None


def _sampled(config: CompareConfig, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The length of a run that samples, and how often it is evaluated."""
    budget, group = config.budget, int(values.get("sampling.num_samples", 1))
    if group < 1 or budget.rollout % group:
        raise ConfigError(
            f"settings.{name}.sampling.num_samples={group}: expected a divisor of budget.rollout={budget.rollout}"
        )
    updates = budget.samples // budget.rollout
    return {
        "train.updates": updates,
        "train.prompts": budget.rollout // group,
        "train.minibatches": budget.rollout // budget.batch_size,
        "run.log_every": 1,
        "run.eval_every": values.get("run.eval_every", max(1, updates // POINTS)),
        "run.save_every": values.get("run.save_every", max(1, updates // 4)),
    }


def _own(config: CompareConfig, name: str, keys: set[str], beginning: bool) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the settings of a method.

    Raises:
      ConfigError: a key that the comparison sets.
    """
    for key, value in flat(config.settings.get(name, {}), keys):
        if key in OWN and not (beginning and name != "all" and key in LENGTH):
            raise ConfigError(f"settings.{name}.{key}: set by the comparison, the same for all methods")
        yield key, value


def flat(tree: Mapping[str, Any], keys: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of settings that are dotted, nested or both; a mapping is a value where it is one of keys."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key not in keys and isinstance(value, Mapping):
            yield from flat(value, keys, f"{key}.")
        else:
            yield key, value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for name in groups:
        tree = tree.setdefault(name, {})
    tree[last] = value
