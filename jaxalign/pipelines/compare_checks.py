"""What is wrong with a comparison, told before anything is trained."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxalign.config import describe
from jaxalign.config_values import nearest
from jaxalign.data import DataConfig
from jaxalign.data.files import check_there
from jaxalign.data.readers import read_records, reading_of
from jaxalign.errors import ConfigError
from jaxalign.inference.generate import prompt_of
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_methods import (
    BEGINNINGS,
    METHODS,
    files_of,
    flat,
    load,
    trainer_config,
    trains_proxy,
)
from jaxalign.training.core.reward_source import RewardSource


def checked(config: CompareConfig) -> CompareConfig:
    """The configuration with the methods that are compared, `sft` first.

    Raises:
      UserError: an unknown method or key, a method without its data, a file that is not there, or a gold reward that
        methods optimize.
    """
    methods = config.methods or tuple(name for name in METHODS if not _lacks(config, name))
    for name in methods:
        if name not in METHODS:
            close = nearest(name, list(METHODS))
            hint = f"did you mean {close}?" if close else f"there are {', '.join(METHODS)}"
            raise ConfigError(f"methods: no method {name!r}; {hint}")
        if lacking := _lacks(config, name):
            raise ConfigError(f"methods: {name} needs {lacking}")
    config = replace(config, methods=("sft", *(name for name in methods if name != "sft")))
    if not (config.model or config.sft):
        raise ConfigError("--model: expected a base model (or --sft, a supervised one); got nothing")
    if not (config.sft or config.data.demonstrations):
        raise ConfigError("data.demonstrations: expected files, or a supervised model in --sft; got nothing")
    if not config.data.held_out_prompts:
        raise ConfigError("data.held_out_prompts: expected a file, on which the methods are measured")
    _check_gold(config)
    _check_settings(config)
    data = config.data
    every = (data.demonstrations, data.pairs, data.feedback, data.prompts, data.held_out_pairs)
    check_there([*(file for files in every for file in files), data.held_out_prompts])
    check_there([*config.tasks.values(), *config.shots.values()])
    for name, method in METHODS.items():
        if name in config.methods and method.config:
            trainer_config(config, name, seed=0, folder=Path("run"), start="start")
    for name in BEGINNINGS:
        if (name == "sft" and not config.sft) or (name == "reward" and trains_proxy(config)):
            trainer_config(config, name, seed=0, folder=Path("run"), start="start", beginning=True)
    return config


def _lacks(config: CompareConfig, name: str) -> str:
    """The data that a method needs and has not; empty where it has all."""
    method = METHODS[name]
    if method.data and not files_of(config, method):
        return f"data.{method.data}" + (" or data.pairs" if method.data == "prompts" else "")
    if method.proxy and not (config.proxy.named or config.data.pairs):
        return "a reward in proxy, or data.pairs to train one on"
    return ""


def _check_gold(config: CompareConfig) -> None:
    if shared := _parts(config.gold) & _parts(config.proxy):
        raise ConfigError(
            f"gold: {sorted(shared)[0]} is the proxy too; a reward that methods optimize cannot judge them"
        )


def _parts(source: RewardSource) -> set[str]:
    """The models and functions of a reward, files by their real paths."""

    def place(name: str) -> str:
        path, colon, rest = name.rpartition(":")
        path, rest = (path, rest) if colon else (name, "")
        return (os.path.realpath(path) if Path(path).exists() else path) + colon + rest

    return {place(name) for name in (source.model, *source.models, *source.functions) if name}


def _check_settings(config: CompareConfig) -> None:
    known = {"all": "", **METHODS, **BEGINNINGS}
    for name, values in config.settings.items():
        if name not in known or name == "best_of_n":
            close = nearest(name, list(known))
            raise ConfigError(
                f"settings.{name}: expected a method that trains, reward or all"
                + (f"; did you mean {close}?" if close else "")
            )
        if name == "all":
            classes = [load(m.config) for m in (*METHODS.values(), *BEGINNINGS.values()) if m.config]
            keys = {key.name for cls in classes for key in describe(cls)}
            if wrong := [key for key, _ in flat(values, keys) if key not in keys]:
                close = nearest(wrong[0], sorted(keys))
                hint = f"; did you mean {close}?" if close else ""
                raise ConfigError(f"settings.all.{wrong[0]}: no method has this key{hint}")


def shared_prompts(config: CompareConfig) -> tuple[int, int]:
    """How many of the different held-out prompts are among the training prompts, and how many there are.

    Letters' case and spaces do not count. Parts of prompts are told by each evaluation (see
    `evaluation.answer_measures.contamination`).
    """
    data = config.data
    held_out = set(_prompts([data.held_out_prompts], config, ""))
    trained: set[str] = set()
    for name, files in (
        ("sft", data.demonstrations if not config.sft else ()),
        ("dpo", data.pairs),
        ("feedback", data.feedback),
        ("grpo", data.prompts),
    ):
        trained |= set(_prompts(files, config, name))
    return len(held_out & trained), len(held_out)


def _prompts(files: Sequence[str], config: CompareConfig, name: str) -> Iterable[str]:
    if not files:
        return []
    keys = {key.name for key in describe(DataConfig)}
    given = [*flat(config.settings.get("all", {}), set()), *flat(config.settings.get(name, {}), set())]
    # `data.columns` may be a mapping, which `flat` takes apart where it does not know the key.
    settings: dict[str, Any] = {}
    for key, value in given:
        part, _, rest = key.removeprefix("data.").partition(".")
        if key.startswith("data.") and part in keys:
            settings[part] = {**settings.get(part, {}), rest: value} if rest else value
    # Rows that training leaves out are no training prompts, but it is safer to count them.
    reading = reading_of(DataConfig(**{k: v for k, v in settings.items() if k in ("columns", "format")}))
    records, _ = read_records(list(files), reading=reading, kind="prompt", on_bad_row="skip")
    texts = (
        prompt if isinstance(prompt := prompt_of(record), str) else prompt[-1]["content"] if prompt else ""
        for record in records
    )
    return [" ".join(text.split()).casefold() for text in texts]
