"""The texts of `--help`: the common keys of a command, all of them, or those of one section."""

import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from jaxalign.config import Key
from jaxalign.config_values import nearest
from jaxalign.errors import ConfigError

# Heading -> the keys that most runs set, of whichever command has them. Keys without a dot are common in any case.
COMMON: dict[str, tuple[str, ...]] = {
    "model": (
        "model.path", "patient.path", "reference.path", "model.compute_dtype", "lora.enabled", "lora.rank",
    ),
    "data": (
        "data.train", "data.validation", "data.columns", "data.limit", "data.max_length", "data.max_prompt_length",
        "data.truncation", "data.on_bad_row",
    ),
    "reward": ("reward.model", "reward.functions", "judge.function", "rewards.dimension", "kl.coefficient"),
    "training": (
        "train.updates", "train.steps", "train.epochs", "train.prompts", "train.minibatches", "train.batch_size",
        "train.accumulation_steps", "train.packing", "optimizer.name", "optimizer.learning_rate", "optimizer.schedule",
        "optimizer.warmup_ratio", "loss.name", "loss.labels", "loss.preset", "loss.beta",
    ),
    "sampling": (
        "sampling.max_new_tokens", "sampling.temperature", "sampling.top_k", "sampling.top_p", "sampling.num_samples",
    ),
    "run": (
        "run.output", "run.resume", "run.seed", "run.device", "mesh.data", "run.log_every", "run.eval_every",
        "run.save_every", "run.sample_every", "run.best_metric", "run.wandb", "eval.generate.every",
    ),
}  # fmt: skip


def asked_for(arguments: Sequence[str]) -> tuple[bool, str] | None:
    """(all keys, a section) of the help that the arguments of a command ask for; None where they ask for none."""
    for position, item in enumerate(arguments):
        if item == "--help-all":
            return True, ""
        if item in ("-h", "--help"):
            following = "".join(arguments[position + 1 : position + 2])
            return False, "" if following.startswith("-") else following
    return None


def overview(
    commands: Mapping[str, str], flags: Mapping[str, str], shipped: Sequence[str], *, width: int = 0
) -> str:
    """The text of `jaxalign --help`.

    Args:
      commands: name -> what it does.
      flags: flag -> meaning, of those that every command has.
      shipped: names of the configurations in the package.
      width: columns; 0 for those of the terminal.
    """
    width = width or columns()
    longest = max(map(len, [*commands, *(f"--{flag}" for flag in flags)]))

    def table(rows: Iterable[tuple[str, str]]) -> list[str]:
        return [line for name, text in rows for line in _row(name, text, longest, width)]

    return "\n".join(
        [
            *_usage("COMMAND", width),
            "",
            "commands:",
            *table(commands.items()),
            "",
            "common flags:",
            *table((f"--{flag}", meaning) for flag, meaning in flags.items()),
            "",
            *textwrap.wrap(
                f"shipped configurations: {', '.join(shipped) or 'none'}", width, subsequent_indent="  "
            ),
            *textwrap.wrap(
                "`jaxalign COMMAND --help` lists the most common keys, `--help-all` every key with its type, "
                "default and meaning, `--help SECTION` the keys of one section (data, loss, ...).",
                width,
            ),
            *textwrap.wrap(
                "Exit status: 0 success, 2 invalid input (described in one line), 1 any other error.", width
            ),
        ]
    )


def command_help(
    name: str,
    function: Callable,
    keys: Sequence[Key],
    short: Mapping[str, str],
    *,
    everything: bool = False,
    section: str = "",
    positional: str = "",
    width: int = 0,
) -> str:
    """The text of `jaxalign COMMAND --help`, `--help-all` or `--help SECTION`.

    Args:
      name: the command.
      function: what it calls; its docstring says what it does.
      keys: of its configuration.
      short: flag -> dotted key that it is short for.
      everything: print all keys.
      section: print the keys of this section alone.
      positional: key that an argument right after the command sets.
      width: columns; 0 for those of the terminal.

    Raises:
      ConfigError: there is no such section.
    """
    width = width or columns()
    flags = {key: flag for flag, key in short.items() if flag != key}
    sections = list(dict.fromkeys(key.name.partition(".")[0] for key in keys if "." in key.name))
    lines = [*_usage(f"{name} [{positional.upper()}]" if positional else name, width), ""]
    lines += textwrap.wrap((function.__doc__ or "").strip().partition("\n\n")[0], width) + [""]
    if section:
        if section not in sections:
            close = nearest(section, sections)
            hint = f"did you mean {close}?" if close else f"sections: {', '.join(sections)}"
            raise ConfigError(f"--help {section}: no such section; {hint}")
        keys = [key for key in keys if key.name.startswith(f"{section}.")]
    if everything or section:
        for group, members in groupby(keys, lambda key: key.name.rpartition(".")[0]):
            lines += [f"{group or 'top'}:"]
            for key in members:
                lines += _entry(key, flags, width)
        return "\n".join(lines)
    known = {key.name: key for key in keys}
    groups = {heading: [known[key] for key in some if key in known] for heading, some in COMMON.items()}
    groups = {"": [key for key in keys if "." not in key.name]} | groups
    for heading, members in groups.items():
        if members:
            lines += [f"{heading or name}:"]
            for key in members:
                lines += _entry(key, flags, width)
            lines += [""]
    shown = sum(map(len, groups.values()))
    if shown == len(keys):
        return "\n".join(lines[:-1])
    more = (
        f"{shown} of {len(keys)} keys shown. `jaxalign {name} --help-all` lists all, `--help SECTION` those of one "
        f"section: {', '.join(sections)}."
    )
    return "\n".join([*lines, *textwrap.wrap(more, width)])


def columns() -> int:
    """How wide help is: the terminal, within what reads well."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 40), 120)


def _entry(key: Key, flags: Mapping[str, str], width: int) -> list[str]:
    """A key: how it is typed, its type and default, and under it what it means."""
    spelled = f"--{key.name}"
    if key.name in flags:
        spelled = f"--{flags[key.name].replace('_', '-')}, {spelled}"
    default = f"; default {key.default}" if key.default not in ("''", "required") else ""
    what = f"({key.type}{'; required' if key.default == 'required' else default})"
    head = textwrap.wrap(
        f"{spelled}  {what}", width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
    return head + textwrap.wrap(key.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _usage(command: str, width: int) -> list[str]:
    typed = f"usage: jaxalign {command} [--config FILE_OR_NAME] [--key=value ...]"
    return textwrap.wrap(typed, width, subsequent_indent="  ", break_on_hyphens=False)


def _row(name: str, text: str, longest: int, width: int) -> list[str]:
    indent = " " * (longest + 4)
    return textwrap.wrap(text, width, initial_indent=f"  {name:{longest}s}  ", subsequent_indent=indent)
