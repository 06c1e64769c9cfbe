"""`jaxalign plan COMMAND`: compiles the programs of a command for devices that need not be there, and says what they
take of each."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.plan import fit
from jaxalign.plan.figures import figures
from jaxalign.plan.program import DoesNotFit
from jaxalign.plan.report import report
from jaxalign.plan.steps import model_of
from jaxalign.plan.targets import parse_target


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What to plan; all other flags are those of the command.

    Attributes:
      command: training command to plan: sft, distill, reward, dpo, grpo, online-dpo, ppo or tfpo.
      target: kind and number of devices: h100x8 (H100 SXM, 80 GB); a TPU slice by Google Cloud's name, such as v5p-8,
        v5e-64 or v6e-8, or several, such as v5e-16x2; cpux8 compiles for virtual CPU devices, whose bytes and
        collectives differ from an accelerator's.
      tokens: length of a row, prompt and completion.
      collectives: number of collectives to list, largest first.
      fit: also search, by compiling more, for the largest micro-batch that fits at remat=none, minimal and full, and
        print the command to run.
    """

    command: str
    target: str = "h100x8"
    tokens: int = 2048
    collectives: int = 3
    fit: bool = False

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("collectives", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Plan:
    """A plan and the configuration of the command that it is for.

    Attributes:
      own: what to plan.
      settings: the command's configuration.
      file: where that was read.
      typed: flags and values of the command, as they were typed.
    """

    own: PlanConfig
    settings: Any
    file: str | None = None
    typed: Sequence[tuple[str, str]] = ()


def plan(asked: Plan) -> None:
    """Compiles a training command's step and rollout for a target, and prints bytes and collectives of a device.

    Only config.json of the model is read: no weights, no data.

    Args:
      asked: what to plan, and the command's configuration.

    Raises:
      UserError: an invalid configuration, a compiler that is not installed, or one that refuses the program.
    """
    own, config = asked.own, asked.settings
    target = parse_target(own.target)
    if own.fit:
        fit.check_target(target)
    model_of(own.command, config)  # before the compiler is looked for
    try:
        found = figures(own.command, config, target, own.tokens)
    except DoesNotFit as error:
        if not own.fit:
            raise
        config = fit.smallest(config, target)
        print(f"{error}; planned with model.remat={fit.LAST} and the smallest micro-batches instead")
        print()
        found = figures(own.command, config, target, own.tokens)
    for line in report(own.command, config, target, own.tokens, own.collectives, found):
        print(line)
    if not target.memory:
        return
    print()
    if not own.fit:
        print("--fit=true finds the micro-batch and the level of remat that fit, by compiling more")
        return
    choices = fit.fitting(own.command, config, target, own.tokens, found, _aside)
    lines = fit.report(own.command, config, target, choices, found, file=asked.file, typed=asked.typed)
    for line in lines:
        print(line)


def _aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
