"""Which micro-batch and which level of rematerialization fit the memory of a device, found by compiling."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from jaxalign import config as configs
from jaxalign.errors import ConfigError
from jaxalign.mesh import make_mesh, row_shards
from jaxalign.models.memory import sized
from jaxalign.plan.figures import Figures, step_figures
from jaxalign.plan.program import DoesNotFit
from jaxalign.plan.report import JAX_TAKES
from jaxalign.plan.targets import Target, devices_of

# From most memory to least; and the last resort, which takes the host's.
LEVELS = ("none", "minimal", "full")
LAST = "offload"
# Of a device's memory; a GPU's needs XLA_PYTHON_CLIENT_MEM_FRACTION for more than `JAX_TAKES`.
USABLE = 0.95


@dataclass(frozen=True)
class Choice:
    """A level of rematerialization with the largest micro-batch that fits.

    Attributes:
      remat: the level.
      accumulation_steps: micro-batches of a step.
      rows: of a micro-batch, on all devices (pairs, where a step reads pairs).
      total: bytes of a device at most.
    """

    remat: str
    accumulation_steps: int
    rows: int
    total: int


def fitting(
    command: str, config: Any, target: Target, tokens: int, found: Figures, tell: Callable[[str], None]
) -> list[Choice]:
    """For each of `LEVELS` the largest micro-batch that fits; a level without one is left out, `LAST` where one has.

    Less rematerialization and larger micro-batches are taken to need more memory, so each level begins where the one
    with less memory ended, and bisects.

    Args:
      command: the training command.
      config: its configuration.
      target: the devices, whose memory is known.
      tokens: of a row.
      found: what the configuration takes as it is.
      tell: is told of each compilation.

    Raises:
      ConfigError: as `figures.figures`.
    """
    rows, room = rows_of_step(config), USABLE * target.memory
    counts = possible_counts(config, target)
    known = {(str(config.model.remat), config.train.accumulation_steps): found.while_learning}
    others = max(found.while_sampling, found.patient)

    def total(level: str, count: int) -> float:
        if (level, count) not in known:
            asked = changed(config, level, count)
            name = f"fit: remat={level}, {rows // count} rows a micro-batch"
            try:
                step = step_figures(command, asked, target, tokens)
            except DoesNotFit:
                known[level, count] = 2 * target.memory
                tell(f"{name}: the compiler says that it does not fit")
            else:
                known[level, count] = step.total + sum(found.beside.values()) + found.own
                tell(f"{name}: {sized(known[level, count])} a device ({step.seconds:.0f} s)")
        return max(known[level, count], others)

    def largest(level: str, least: int) -> int | None:
        place = first_that_fits(counts, lambda n: total(level, n) <= room, least)
        if place is not None:
            count = counts[place]
            choices.append(Choice(level, count, rows // count, int(total(level, count))))
        return place

    choices: list[Choice] = []
    least: int | None = 0
    for level in reversed(LEVELS):
        if (least := largest(level, least)) is None:
            break
    if not choices and others <= room:
        largest(LAST, 0)
    return choices[::-1]


def first_that_fits(counts: Sequence[int], fits: Callable[[int], bool], least: int = 0) -> int | None:
    """The place of the first number that fits, by bisection; None where the last does not.

    Args:
      counts: numbers, of which all behind one that fits do too.
      fits: whether one does.
      least: a place before which none does.
    """
    low, high = least, len(counts) - 1
    if low > high:
        return None
    if fits(counts[low]):
        return low
    if low == high or not fits(counts[high]):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(counts[middle]) else (middle, high)
    return high


def rows_of_step(config: Any) -> int:
    """Rows (or pairs) that an optimizer step reads, of all devices."""
    train = config.train
    if hasattr(train, "batch_size"):
        return train.batch_size
    return train.prompts * config.rows_per_prompt // train.minibatches


def possible_counts(config: Any, target: Target) -> list[int]:
    """The numbers of micro-batches, ascending, into which a step's rows can be split evenly over the devices."""
    rows, shards = rows_of_step(config), row_shards(make_mesh(config.mesh, devices_of(target)))
    found = []
    for count in (n for n in range(1, rows + 1) if rows % (n * shards) == 0):
        try:
            changed(config, str(config.model.remat), count)
        except ValueError:  # what the command's configuration refuses
            continue
        found.append(count)
    return found


def smallest(config: Any, target: Target) -> Any:
    """The configuration with the settings that take the least memory."""
    counts = possible_counts(config, target)
    return changed(config, LAST, counts[-1]) if counts else config


def changed(config: Any, remat: str, accumulation_steps: int) -> Any:
    """The configuration with these settings."""
    return replace(
        config,
        model=replace(config.model, remat=remat),
        train=replace(config.train, accumulation_steps=accumulation_steps),
    )


def check_target(target: Target) -> None:
    """Raises ConfigError for devices whose memory is not known."""
    if not target.memory:
        raise ConfigError(
            f"fit=true: {target} has no memory of its own to fit; set --target to GPUs (h100x8) or a TPU slice (v5p-8)"
        )


def report(
    command: str,
    config: Any,
    target: Target,
    choices: Sequence[Choice],
    found: Figures,
    *,
    file: str | None,
    typed: Sequence[tuple[str, str]],
) -> Iterator[str]:
    """The lines about what fits, the command to run last.

    Args:
      command: the training command.
      config: its configuration.
      target: the devices.
      choices: from `fitting`.
      found: what the configuration takes as it is.
      file: of the configuration.
      typed: flags and values as the user gave them.
    """
    room = USABLE * target.memory
    yield f"what fits {sized(room)} of a device ({USABLE:.0%} of its memory), by compiling"
    by_level = {choice.remat: choice for choice in choices}
    for level in (*LEVELS, LAST):
        choice = by_level.get(level)
        if choice is None and level == LAST:
            continue
        if choice is None:
            yield f"  remat={level}: nothing"
            continue
        yield (
            f"  remat={level}: micro-batches of {choice.rows} (train.accumulation_steps={choice.accumulation_steps}), "
            f"{sized(choice.total)}"
        )
    if not choices:
        if found.while_sampling > room:
            yield "the rollout does not fit, whatever the step takes: mesh.tensor, rollout.weights=int8 and"
            yield "rollout.cache=int8 take less of each device"
        else:
            yield "nothing fits: more devices along mesh.fsdp, lora.enabled=true, optimizer.moment_dtype=8bit or"
            yield "shorter rows take less of each device"
        return
    best = choices[0]
    settings = {"model.remat": best.remat, "train.accumulation_steps": best.accumulation_steps}
    yield "the line to run, with the least rematerialization that fits and its largest micro-batch:"
    more = target.kind == "h100" and best.total > JAX_TAKES * target.memory
    prefix = f"XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE} " if more else ""
    yield "  " + prefix + line_to_run(command, type(config), settings, file=file, typed=typed)
    if not config.data.train:
        yield "  (data.train is not set yet)"


def line_to_run(
    command: str,
    cls: type,
    settings: Mapping[str, Any],
    *,
    file: str | None,
    typed: Sequence[tuple[str, str]],
) -> str:
    """The command with what the user gave and with these settings, for a shell.

    Args:
      command: the training command.
      cls: of its configuration.
      settings: values by key, in place of what the user gave; a default that he did not touch is left out.
      file: of the configuration.
      typed: flags and values as the user gave them.
    """
    defaults = configs.defaults(cls)
    spelled = [item for flag, value in typed for item in _spelled(flag, value, settings)]
    given = {flag for flag, _ in spelled}
    words = [f"--config={file}"] if file else []
    words += [f"--{flag}={value}" for flag, value in spelled if flag not in settings]
    words += [
        f"--{key}={value}"
        for key, value in settings.items()
        if file or key in given or value != defaults[key]
    ]
    return " ".join(["jaxalign", command, *map(shlex.quote, words)])


def _spelled(flag: str, value: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A flag as it was typed; a group of keys that holds one of the settings (`--train={...}`) key by key."""
    if not (value.lstrip().startswith("{") and any(key.startswith(flag + ".") for key in settings)):
        yield flag, value
        return
    for key, inner in yaml.safe_load(value).items():
        yield f"{flag}.{key}", inner if isinstance(inner, str) else json.dumps(inner)
