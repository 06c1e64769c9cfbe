"""One case: start both sides, check that they compute the same, then let them run in turns."""

import contextlib
import json
import os
import random
import select
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import CHECKED, PPO_RELEASE, Case

from jaxalign.cli.cpu_memory import changed_environment

HERE = Path(__file__).parent
# Steps before the first one that counts.
WARM_UP = CHECKED + 2
# As many more where rows have many lengths, so that most shapes of packed rows have been compiled.
LENGTHS_WARM_UP = 30
# Seconds that a side has for an answer at least; and so many times the minutes of its case.
PATIENCE, TIMES = 600, 10
# A repetition whose threads, all added up, waited for a core longer than this share of its time, while other processes
# ran, is measured again.
WAITED = 0.06


class BenchmarkError(Exception):
    """A case that cannot be measured; one line."""


@dataclass
class Child:
    """A running side.

    Attributes:
      name: ours or peer.
      process: its process.
      commands: where commands go.
      answers: where answers come from.
      started: when it was started, on the clock of `time.perf_counter`.
      log: what it printed.
      patience: seconds that it has for an answer.
    """

    name: str
    process: subprocess.Popen
    commands: Any
    answers: Any
    started: float
    log: Path
    patience: float

    @classmethod
    def start(
        cls, name: str, command: list[str], log: Path, environment: dict[str, str], patience: float = PATIENCE
    ) -> "Child":
        """Starts a side; it waits for its first command."""
        read, commands = os.pipe()
        answers, write = os.pipe()
        began = time.perf_counter()
        with open(log, "w") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(read, write),
                env={**os.environ, **environment, "BENCH_READ": str(read), "BENCH_WRITE": str(write)},
            )
        os.close(read)
        os.close(write)
        return cls(name, process, os.fdopen(commands, "w"), os.fdopen(answers, "r"), began, log, patience)

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
          BenchmarkError: the side ended instead (with the end of what it printed), or let us wait too long.
        """
        # One line an answer, and one answer a command: nothing is left in the file's own buffer.
        if not select.select([self.answers], [], [], self.patience)[0]:
            raise BenchmarkError(
                f"{self.name} gave no answer in {self.patience / 60:.3g} minutes ({self.log})"
            )
        line = self.answers.readline()
        if not line:
            self.process.wait()
            tail = " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
            raise BenchmarkError(
                f"{self.name} ended with status {self.process.returncode}: {tail} ({self.log})"
            )
        return json.loads(line)

    def run(self, steps: int) -> dict[str, Any]:
        """Some steps."""
        return self.ask(f"run {steps}")

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `read` says
            print(command, file=self.commands, flush=True)
        return self.read()

    def report(self) -> dict[str, Any]:
        """What its steps so far computed."""
        return self.ask("report")

    def stop(self) -> dict[str, Any]:
        """Its last answer."""
        last = self.ask("stop")
        self.process.wait(timeout=300)
        return last

    def kill(self) -> None:
        """Ends it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.commands.close()
        self.answers.close()


@dataclass(frozen=True)
class Sides:
    """How the two sides are started.

    Attributes:
      ours: Python interpreter of jaxalign.
      peer: Python interpreter of the peer.
      releases: folder of older releases of TRL, one folder each.
    """

    ours: str
    peer: str
    releases: Path

    def start(self, name: str, case: Case, folder: Path) -> Child:
        """Starts `ours` or `peer` on a case whose inputs are in the folder.

        Raises:
          BenchmarkError: the release of TRL that the case needs is not there.
        """
        log, patience = folder / f"{name}.log", max(PATIENCE, TIMES * 60 * case.minutes)
        # What `jaxalign` sets for itself on the command line.
        own = changed_environment({"JAX_PLATFORMS": "cpu"}) or {}
        pages = {name: value for name, value in own.items() if name == "GLIBC_TUNABLES"}
        if name == "ours":
            environment = {
                "PYTHONPATH": str(HERE.parent),
                "JAX_PLATFORMS": "cpu",
                # The case's own, so that what is compiled does not depend on what ran before.
                "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                **pages,
            }
            command = [self.ours, str(HERE / "ours.py"), case.name, str(folder)]
            return Child.start(name, command, log, environment, patience)
        environment = pages if case.peer.get("huge_pages") else {}
        if case.task == "ppo":
            release = self.releases / PPO_RELEASE
            if not (release / "trl").is_dir():
                raise BenchmarkError(f"{release}: no TRL there; `make bench-peers` fetches it")
            environment = {**environment, "BENCH_PPO_RELEASE": str(release)}
        command = [self.peer, str(HERE / "peer.py"), case.name, str(folder)]
        return Child.start(name, command, log, environment, patience)


def measure(case: Case, folder: Path, sides: Sides, *, pairs: int, seconds: float) -> dict[str, Any]:
    """Measures the time of a case's steps, once both sides are seen to compute the same.

    Args:
      case: which.
      folder: with its inputs; logs are written there.
      sides: who is compared.
      pairs: repetitions of each side, in the order A B B A.
      seconds: how long a repetition should last.

    Returns:
      All that was measured, ready for JSON.

    Raises:
      BenchmarkError: a side failed, or the sides do not compute the same.
    """
    children: list[Child] = []
    try:
        for name in ("ours", "peer"):
            children.append(sides.start(name, case, folder))
        versions: dict[str, str] = {}
        for side in children:
            versions |= side.read()["versions"]
        warm_up = 2 if case.task == "generate" else WARM_UP
        startup, warm = {}, {}
        for side in children:
            # One at a time, from the start to the end of the first step; the other waits for its first command.
            side.run(1)
            startup[side.name] = time.perf_counter() - side.started
            warm[side.name] = side.run(warm_up - 1)
        reports = {side.name: side.report() for side in children}
        check(case, reports)
        if case.chat:
            for side in children:
                warm[side.name] = side.run(LENGTHS_WARM_UP)
        slower = max(w["seconds"] / w["steps"] for w in warm.values())
        steps = max(1, round(seconds / slower))
        taken: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        for pair in range(pairs):
            for side in children if pair % 2 == 0 else children[::-1]:
                if case.task != "generate":
                    # While the other side had its turn the memory that this one had freed may have gone back to the
                    # host of a virtual machine, from where its next step fetches it: no step of a run of its own does.
                    side.run(1)
                taken[side.name].append(repeated(side, steps))
        last = {side.name: side.stop() for side in children}
    finally:
        for side in children:
            side.kill()

    def each(value: Any) -> dict[str, list[float]]:
        return {name: [value(r) for r in repetitions] for name, repetitions in taken.items()}

    return {
        "case": case.name,
        "versions": versions,
        "steps_a_repetition": steps,
        "seconds_a_step": each(lambda r: r["seconds"] / r["steps"]),
        "tokens_a_step": each(lambda r: r["tokens"] / r["steps"]),
        "cpu_seconds_a_step": each(lambda r: r["cpu"] / r["steps"]),
        "waited_share": each(lambda r: r["waited"] / r["seconds"]),
        "split": {name: split(repetitions) for name, repetitions in taken.items()},
        "first_step_after": startup,
        "compile_seconds": warm["ours"]["compile_seconds"],
        "programs": warm["ours"]["programs"],
        "recompilations": taken["ours"][-1]["programs"] - max(x["ours"]["programs"] for x in (warm, reports)),
        "memory": {name: answer["memory"] for name, answer in last.items()},
        **kept(reports),
    }


def kept(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a result keeps of both sides' reports: what was compared, and the forms that jaxalign computed in."""
    return {
        "compared": {
            name: {key: report.get(key, [])[:CHECKED] for key in COMPARED} for name, report in reports.items()
        },
        "packing_gap": reports["peer"].get("packing_gap"),
        "forms": reports["ours"]["forms"],
    }


def split(repetitions: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds of a step by part; `step` is what is in no other part."""
    steps = sum(r["steps"] for r in repetitions)
    names = sorted({name for r in repetitions for name in r["spent"]})
    parts = {name: sum(r["spent"].get(name, 0.0) for r in repetitions) / steps for name in names}
    return {**parts, "step": sum(r["seconds"] for r in repetitions) / steps - sum(parts.values())}


def repeated(side: Child, steps: int) -> dict[str, Any]:
    """One repetition; up to twice more where other processes held the cores."""
    best = side.run(steps)
    for _ in range(2):
        if best["waited"] <= WAITED * best["seconds"]:
            break
        again = side.run(steps)
        best = min(best, again, key=lambda r: r["waited"] / r["seconds"])
    return best


# Relative differences that are allowed: of losses, of the critic's losses, and of gradient norms.
EXACT = (1e-4, 1e-4, 1e-3)
# The same where either side computes in bfloat16: mostly three to four times the largest that rounding was seen to make
# in a task's cases (DPO: one and a half to two, by model M). Losses of random tokens stay near ln V whatever is wrong:
# labels shifted by one move sft-s by 1.4e-4, and would pass wider bounds.
ROUNDED = {
    "sft": (8e-5, 0.0, 1.3e-2),
    "reward": (2.5e-4, 0.0, 1.2e-2),
    "dpo": (1.6e-2, 0.0, 8e-3),
    "grpo": (1e-4, 0.0, 4e-3),
    "ppo": (1e-4, 1e-2, 4e-3),
}

# What is compared of the first steps.
COMPARED = ("tokens", "losses", "value_losses", "grad_norms")


def check(case: Case, reports: dict[str, dict[str, Any]]) -> None:
    """Both sides computed the same: tokens, losses and gradient norms of the first steps, or greedy tokens.

    Raises:
      BenchmarkError: they did not.
    """
    ours, peer = reports["ours"], reports["peer"]
    if case.task == "generate":
        pairs = [
            (a, b)
            for x, y in zip(ours["greedy"], peer["greedy"], strict=True)
            for a, b in zip(x, y, strict=True)
        ]
        equal = sum(a == b for a, b in pairs) / len(pairs)
        # One rounding that turns a near tie changes all that follows it in that row.
        if equal < (0.3 if case.low_precision else 0.9):
            raise BenchmarkError(f"only {equal:.1%} of the greedy tokens are equal")
        return
    if case.peer.get("packing"):
        # Other rows a step: what can be compared is that its packed rows do not see each other.
        if not peer["packing_gap"] < 1e-4:
            raise BenchmarkError(
                f"packed rows of the peer change each other's logits by {peer['packing_gap']:.3g}"
            )
        return
    bounds = ROUNDED[case.task] if case.low_precision else EXACT
    tolerances: dict[str, float] = dict(zip(COMPARED, (0.0, *bounds), strict=True))
    # Where rows are sampled, a loss is the mean of terms of size 1 that cancel.
    least = 0.1 if case.task in ("grpo", "ppo") else 1e-2
    steps = CHECKED if case.kind == "time" else 1
    for name in COMPARED if case.task == "ppo" else [n for n in COMPARED if n != "value_losses"]:
        # jaxalign logs a step when the next is under way: where it is stopped soon it has logged one less.
        pairs = list(zip(ours[name][:CHECKED], peer[name][:CHECKED], strict=False))
        if len(pairs) < steps:
            raise BenchmarkError(f"{len(pairs)} {name} to compare, expected {steps}")
        for step, (a, b) in enumerate(pairs, start=1):
            allowed = tolerances[name] * max(abs(b), least)
            if not abs(a - b) <= allowed:
                raise BenchmarkError(f"step {step}: {name} {a:.6g} here, {b:.6g} there")


def ratio(result: dict[str, Any], *, draws: int = 10_000) -> tuple[float, float, float]:
    """Median over pairs of the peer's time by ours, for as many tokens, and its 95% bootstrap interval."""
    times, tokens = result["seconds_a_step"], result["tokens_a_step"]
    each = {
        side: [t / n for t, n in zip(times[side], tokens[side], strict=True)] for side in ("ours", "peer")
    }
    return of_pairs(each["ours"], each["peer"], draws=draws)


def of_pairs(ours: list[float], peer: list[float], *, draws: int = 10_000) -> tuple[float, float, float]:
    """Median over pairs of peer / ours, and its 95% bootstrap interval."""
    ratios = [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(draws))
    return statistics.median(ratios), medians[int(0.025 * draws)], medians[int(0.975 * draws)]
