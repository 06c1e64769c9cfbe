"""`jaxalign COMMAND --config FILE_OR_NAME --dotted.key=value`.

Exit status: 0 done; 2 a mistake of the user's, described in one line on standard error; 1 anything
else, with its traceback; 130 and 143 after SIGINT and SIGTERM.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Sequence
from typing import Any

import jaxalign
from jaxalign import config as configs
from jaxalign.cli import help as help_texts
from jaxalign.cli.commands import COMMANDS, Command
from jaxalign.cli.compile_cache import set_compile_cache
from jaxalign.cli.cpu_memory import set_cpu_memory
from jaxalign.cli.failures import exit_status, one_line, user_lines
from jaxalign.config_values import nearest
from jaxalign.determinism import request_determinism
from jaxalign.errors import ConfigError, RemoteError
from jaxalign.remote import check_url, refuse, scheme

# Flag -> meaning. A training command keeps them under `run`, the others at the top.
PLAIN_FLAGS = {
    "output": "folder (or file) for the results",
    "seed": "seed for Python, NumPy, JAX and the data order",
    "device": "cpu, gpu or tpu; auto uses JAX's default",
    "distributed": "join the processes of a job: auto, true, false or ADDRESS:PORT,NUMBER,RANK",
    "resume": "continue the run in --output",
}

# Flags that mean true where nothing follows them.
MAY_STAND_ALONE = ("--resume", "--distributed", "--merge", "--private")

# Flag -> key, in every command that has the key and no other of the flag's name.
SHORT_FLAGS = {
    "model": "model.path",
    "data": "data.train",
    "on_bad_row": "data.on_bad_row",
    "max_length": "data.max_length",
    "steps": "train.steps",
    "updates": "train.updates",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "packing": "train.packing",
    "learning_rate": "optimizer.learning_rate",
    "profile.steps": "run.profile_steps",
    "beta": "loss.beta",
    "max_new_tokens": "sampling.max_new_tokens",
    "temperature": "sampling.temperature",
    "top_k": "sampling.top_k",
    "top_p": "sampling.top_p",
    "num_samples": "sampling.num_samples",
}


def run() -> None:
    """The console script: runs the command and exits with its status."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        set_cpu_memory()

    def terminate(number: int, frame: Any) -> None:
        # As an exception, so that half-written files are removed on the way out.
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    sys.unraisablehook = ask_again
    status = main(sys.argv[1:])
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM) or (status and processes() is not None):
        # A program that XLA still runs would crash or hold up an interpreter that takes itself apart; and of several
        # processes one that failed would wait for the others to leave with it.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


# Set when the command ends by an exception, which a signal's is.
STOPPING = threading.Event()


def ask_again(lost: Any) -> None:
    """Sends a signal again whose exception was lost, as it came while Python ran a callback (JAX has one in the
    GC)."""
    stopped = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(lost.exc_type)
    if stopped is None:
        sys.__unraisablehook__(lost)
        return

    def ask() -> None:
        # Once the callback is over; and again after a while, for this one may be lost as well.
        wait = 0.05
        while not STOPPING.wait(wait):
            os.kill(os.getpid(), stopped)
            wait = 5.0

    threading.Thread(target=ask, daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
      arguments: what follows `jaxalign` on the command line.

    Returns:
      The exit status.
    """
    # Advice about libraries that jaxalign does not use (torch) is noise to its users.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    name = "jaxalign"
    STOPPING.clear()
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            summaries = {name: command.summary for name, command in COMMANDS.items()}
            print(help_texts.overview(summaries, PLAIN_FLAGS, list(configs.shipped_configs())))
            return 0
        if arguments[0] == "--version":
            print(f"jaxalign {jaxalign.__version__}")
            return 0
        # As in keys, an underscore is as good as a hyphen.
        command_name = arguments[0].replace("_", "-")
        command = find_command(command_name)
        name = f"jaxalign {command_name}"
        if help_wanted := help_texts.asked_for(arguments[1:]):
            print(command_help(command_name, everything=help_wanted[0], section=help_wanted[1]))
            return 0
        settings = read_settings(command, arguments[1:])
        check_urls(settings)
        if getattr(getattr(settings, "run", None), "deterministic", False):
            request_determinism()
        join_processes(settings)
        use_device(settings)
        set_compile_cache(settings)
        check_files(settings)
        report(load(command.function)(settings), getattr(getattr(settings, "run", None), "output", ""))
    except BaseException as error:
        STOPPING.set()
        return failed(error, name)
    return 0


def find_command(name: str) -> Command:
    """The command of that name.

    Raises:
      ConfigError: there is none; the message names the nearest.
    """
    if name in COMMANDS:
        return COMMANDS[name]
    close = nearest(name, list(COMMANDS))
    hint = f"did you mean {close}?" if close else f"commands: {', '.join(COMMANDS)}"
    what = "expected a command first" if name.startswith("-") else "unknown command"
    raise ConfigError(f"{name}: {what}; {hint}")


def load(target: str) -> Any:
    """The object that `module:name` names; the module is imported now, not at start."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def read_settings(command: Command, arguments: Sequence[str]) -> Any:
    """The command's configuration from its arguments.

    Raises:
      ConfigError: a flag, key, value or file that is wrong.
    """
    if command.positional and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{command.positional}={arguments[0]}", *arguments[1:]]
    file, overrides = split_arguments(arguments)
    cls = load(command.config)
    if command in (COMMANDS.get("sweep"), COMMANDS.get("plan")):
        return read_with_command(command, file, overrides)
    return settings_of(command, cls, file, overrides)


def settings_of(command: Command, cls: type, file: str | None, overrides: Sequence[tuple[str, str]]) -> Any:
    """A command's configuration from a file and what was typed, as `read_settings`."""
    paths = short_flags(cls, command)
    given: dict[str, list[tuple[str, str]]] = {}
    for flag, value in overrides:
        if flag in PLAIN_FLAGS and flag not in paths:
            raise ConfigError(f"--{flag}: this command has no such flag")
        # --data={train: [...]} is a group of keys, --data=rows.jsonl a file.
        key = flag if value.lstrip().startswith("{") else paths.get(flag, flag)
        given.setdefault(key, []).append((flag, value))
    return configs.parse(cls, file, [f"--{key}={joined(cls, key, values)}" for key, values in given.items()])


def read_with_command(outer: Command, file: str | None, overrides: Sequence[tuple[str, str]]) -> Any:
    """What `jaxalign sweep COMMAND` or `jaxalign plan COMMAND` takes: its own flags, and all others as that command
    reads them.

    Raises:
      ConfigError: as `read_settings`; a command that does not train.
    """
    name = "sweep" if outer is COMMANDS["sweep"] else "plan"
    cls = load(outer.config)
    keys = {key.name for key in configs.describe(cls)}
    own = settings_of(outer, cls, None, [item for item in overrides if item[0] in keys])
    command = find_command(own.command)
    trainers = [
        name
        for name, each in COMMANDS.items()
        if each.config.startswith(("jaxalign.training.", "jaxalign.llmdoctor."))
    ]
    if command.config not in [COMMANDS[name].config for name in trainers]:
        raise ConfigError(f"{name} {own.command}: expected a command that trains: {', '.join(trainers)}")
    others = [item for item in overrides if item[0] not in keys]
    if name == "plan":
        settings = settings_of(command, load(command.config), file, others)
        return load("jaxalign.plan.plan:Plan")(own, settings, file, others)
    if reserved := [f"--{flag}" for flag, _ in others if flag in ("run.output", "run.resume")]:
        raise ConfigError(f"{reserved[0]}: the sweep sets it for every run")
    settings = settings_of(command, load(command.config), file, others)
    return load("jaxalign.pipelines.sweep:Sweep")(own, load(command.function), settings)


def joined(cls: type, key: str, given: Sequence[tuple[str, str]]) -> str:
    """The value of a key that was typed once, or of a list that was typed in several flags.

    Raises:
      ConfigError: several values of a key that takes one.
    """
    (flag, first), *others = given
    if not others:
        return first
    if not configs.is_list(cls, key):
        raise ConfigError(f"--{flag} is given twice: {first} and {others[0][1]}")
    return json.dumps([item for _, value in given for item in configs.listed(value)])


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """The configuration file, and (flag, value) of everything else in order.

    Raises:
      ConfigError: not a flag, a flag without a value, or two configuration files.
    """
    spelled: list[str] = []
    for position, item in enumerate(arguments):
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        alone = item in MAY_STAND_ALONE and following.lower() not in ("true", "false")
        spelled.append(f"{item}=true" if alone else item)
    file = None
    rest: list[tuple[str, str]] = []
    for key, value in configs.split_overrides(spelled):
        if key != "config":
            rest.append((key, value))
        elif file is not None:
            raise ConfigError(f"--config is given twice: {file} and {value}")
        else:
            file = value
    return file, rest


def short_flags(cls: type, command: Command) -> dict[str, str]:
    """Flag -> dotted key, for all flags that are short for a key of a configuration."""
    keys = {key.name for key in configs.describe(cls)}
    common = {flag: key for flag, key in SHORT_FLAGS.items() if key in keys and flag not in keys}
    return common | plain_flags(cls) | dict(command.aliases)


def plain_flags(cls: type) -> dict[str, str]:
    """Flag -> dotted key, for the plain flags that a configuration has."""
    hints = typing.get_type_hints(cls)
    inner = hints.get("run")
    below = {f.name for f in dataclasses.fields(inner)} if dataclasses.is_dataclass(inner) else set()
    keys = {flag: f"run.{flag}" for flag in PLAIN_FLAGS if flag in below}
    keys |= {flag: flag for flag in PLAIN_FLAGS if flag in hints}
    return keys


def join_processes(settings: Any) -> None:
    """Joins the processes of a job, where the command is one that several can run."""
    setting = getattr(getattr(settings, "run", None), "distributed", "false")
    if setting != "false":
        importlib.import_module("jaxalign.processes").join(setting)


def processes() -> Any:
    """`jaxalign.processes` where this is one of several; else None, and JAX is not imported to know it."""
    module = sys.modules.get("jaxalign.processes")
    return module if module is not None and module.joined() else None


def use_device(settings: Any) -> None:
    """Checks the device that the configuration names, before anything is loaded or written.

    Raises:
      DeviceError: it is not there; the message lists what is.
    """
    kind = getattr(getattr(settings, "run", settings), "device", "auto")
    if kind == "auto":
        return
    import jax

    from jaxalign.mesh import devices_of

    if kind == "cpu":
        # Before JAX starts its backends: arrays made on the way then stay off an accelerator too.
        jax.config.update("jax_platforms", "cpu")
    devices_of(kind)


def check_files(settings: Any) -> None:
    """Checks that the data files of a training command exist, before a model is loaded.

    Raises:
      DataError: naming the first that is not.
    """
    from jaxalign.data.config import DataConfig

    data = getattr(settings, "data", None)
    if isinstance(data, DataConfig):
        from jaxalign.data.files import check_there

        check_there([*data.train, *data.validation])


def check_urls(settings: Any) -> None:
    """Refuses a URL where only a path can be written, or one that cannot be reached here, before anything is loaded.

    Raises:
      RemoteError: naming the key.
    """
    if dataclasses.is_dataclass(settings):
        refuse(configs.to_dict(settings))
        output = str(getattr(getattr(settings, "run", None), "output", ""))
        if scheme(output) not in ("", "file"):
            try:
                check_url(output)
            except RemoteError as error:
                raise RemoteError(f"run.output: {error}") from None


def report(result: Any, output: str = "") -> None:
    """Prints the final metrics of a training run and its folder (and the URL that it was to write to)."""
    folder, metrics = getattr(result, "folder", None), getattr(result, "metrics", None)
    if folder is None or ((others := processes()) is not None and not others.first()):
        return
    for key, value in sorted((metrics or {}).items()):
        print(f"{key:32s} {value:.6g}" if isinstance(value, float) else f"{key:32s} {value}")
    print(f"results: {output} (on this host: {folder})" if scheme(output) else f"results: {folder}")


def failed(error: BaseException, name: str) -> int:
    """Prints the error and returns the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError):
        # The reader (`| head`) went away; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    status, line = exit_status(error), one_line(error)
    if (others := processes()) is not None:
        if others.told(error):
            return status  # the first process says it
        name += others.which()
    if line is None:
        traceback.print_exception(error)
        print(
            f"{name}: this is a bug in jaxalign or a library; the traceback above shows where",
            file=sys.stderr,
        )
    else:
        print(f"{user_lines(error)}{name}: {line}", file=sys.stderr)
    return status


def command_help(name: str, *, everything: bool = False, section: str = "") -> str:
    """The text of `jaxalign COMMAND --help`; see `help.command_help`."""
    command = COMMANDS[name]
    cls = load(command.config)
    keys, short = configs.describe(cls), short_flags(cls, command)
    return help_texts.command_help(
        name,
        load(command.function),
        keys,
        short,
        everything=everything,
        section=section,
        positional=command.positional,
    )
