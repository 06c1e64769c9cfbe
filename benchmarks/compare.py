"""One case: start both sides, check that they compute the same, then let them run in turns."""

import json
import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import CHECKED, Case

HERE = Path(__file__).parent
# Steps before the first one that counts.
WARM_UP = CHECKED + 2
# A repetition whose threads, all added up, waited for a core longer than this share of its time is measured again.
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
    """

    name: str
    process: subprocess.Popen
    commands: Any
    answers: Any
    started: float
    log: Path

    @classmethod
    def start(cls, name: str, command: list[str], log: Path, environment: dict[str, str]) -> "Child":
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
        return cls(name, process, os.fdopen(commands, "w"), os.fdopen(answers, "r"), began, log)

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
          BenchmarkError: the side ended instead; with the end of what it printed.
        """
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
        print(f"run {steps}", file=self.commands, flush=True)
        return self.read()

    def stop(self) -> dict[str, Any]:
        """Its last answer."""
        print("stop", file=self.commands, flush=True)
        last = self.read()
        self.process.wait(timeout=300)
        return last

    def kill(self) -> None:
        """Ends it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def start_both(case: Case, folder: Path, ours: str, peer: str) -> tuple[Child, Child]:
    """The two sides of a case; `ours` and `peer` are Python interpreters."""
    root = {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    # What `jaxalign` sets for itself on the command line.
    pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    theirs = pages if case.peer.get("huge_pages") else {}
    script = [case.name, str(folder)]
    first = Child.start(
        "ours", [ours, str(HERE / "ours.py"), *script], folder / "ours.log", {**root, **pages, **cache}
    )
    second = Child.start("peer", [peer, str(HERE / "peer.py"), *script], folder / "peer.log", theirs)
    return first, second


def measure(case: Case, folder: Path, ours: str, peer: str, *, pairs: int, seconds: float) -> dict[str, Any]:
    """Measures one case.

    Args:
      case: which.
      folder: with its inputs; logs are written there.
      ours: Python interpreter of jaxalign.
      peer: Python interpreter of the peer.
      pairs: repetitions of each side, in the order A B B A.
      seconds: how long a repetition should last.

    Returns:
      All that was measured, ready for JSON.

    Raises:
      BenchmarkError: a side failed, or the sides do not compute the same.
    """
    sides = start_both(case, folder, ours, peer)
    try:
        versions: dict[str, str] = {}
        for side in sides:
            versions |= side.read()["versions"]
        warm_up = 2 if case.task == "generate" else WARM_UP
        startup, warm = {}, {}
        for side in sides:
            # One at a time, from the start to the end of the first step; the other waits for its first command.
            side.run(1)
            startup[side.name] = time.perf_counter() - side.started
            warm[side.name] = side.run(warm_up - 1)
        slower = max(w["seconds"] / w["steps"] for w in warm.values())
        steps = max(1, round(seconds / slower))
        taken: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        for pair in range(pairs):
            for side in sides if pair % 2 == 0 else sides[::-1]:
                taken[side.name].append(repeated(side, steps))
        last = {side.name: side.stop() for side in sides}
    finally:
        for side in sides:
            side.kill()
    check(case, last)
    programs = [warm["ours"].get("programs"), taken["ours"][-1].get("programs")]
    return {
        "case": case.name,
        "versions": versions,
        "steps_a_repetition": steps,
        "seconds_a_step": {name: [r["seconds"] / r["steps"] for r in reps] for name, reps in taken.items()},
        "cpu_seconds_a_step": {name: [r["cpu"] / r["steps"] for r in reps] for name, reps in taken.items()},
        "waited_share": {name: [r["waited"] / r["seconds"] for r in reps] for name, reps in taken.items()},
        "first_step_after": startup,
        "compile_seconds": warm["ours"].get("compile_seconds"),
        "programs": programs[0],
        "recompilations": programs[1] - programs[0],
        "memory": {name: answer["memory"] for name, answer in last.items()},
        "split": last["ours"].get("split", {}),
        "losses": {name: answer.get("losses", [])[:CHECKED] for name, answer in last.items()},
    }


def repeated(side: Child, steps: int) -> dict[str, Any]:
    """One repetition; up to twice more where other processes held the cores."""
    best = side.run(steps)
    for _ in range(2):
        if best["waited"] <= WAITED * best["seconds"]:
            break
        again = side.run(steps)
        best = min(best, again, key=lambda r: r["waited"] / r["seconds"])
    return best


def check(case: Case, last: dict[str, dict[str, Any]]) -> None:
    """Both sides computed the same: losses and gradient norms of the first steps, or greedy tokens.

    Raises:
      BenchmarkError: they did not.
    """
    ours, peer = last["ours"], last["peer"]
    low = case.bf16 or bool(case.peer.get("bf16"))
    if case.task == "generate":
        pairs = [
            (a, b)
            for x, y in zip(ours["tokens"], peer["tokens"], strict=True)
            for a, b in zip(x, y, strict=True)
        ]
        equal = sum(a == b for a, b in pairs) / len(pairs)
        # One rounding that turns a near tie changes all that follows it in that row.
        if equal < (0.3 if low else 0.9):
            raise BenchmarkError(f"{case.name}: only {equal:.1%} of the greedy tokens are equal")
        return
    if case.peer.get("packing"):
        return  # other rows a step: nothing to compare
    tolerance = 2e-2 if low else 1e-4
    for name in ("losses", "grad_norms"):
        for step, (a, b) in enumerate(zip(ours[name][:CHECKED], peer[name][:CHECKED], strict=True), start=1):
            if abs(a - b) > tolerance * max(abs(b), 1e-2) * (1 if name == "losses" else 10):
                raise BenchmarkError(f"{case.name}: step {step}: {name} {a:.6g} here, {b:.6g} there")


def ratio(result: dict[str, Any], *, draws: int = 10_000) -> tuple[float, float, float]:
    """Median over pairs of peer's time / ours, and its 95% bootstrap interval."""
    import random

    times = result["seconds_a_step"]
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["peer"], strict=True)]
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(draws))
    return statistics.median(ratios), medians[int(0.025 * draws)], medians[int(0.975 * draws)]
