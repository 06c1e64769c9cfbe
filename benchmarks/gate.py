"""How the driver lets one child run while the other waits: a child runs steps only when it is told to.

The driver writes lines `run N` and `stop`; the child answers each with one JSON line. The pipes are inherited,
numbered by BENCH_READ and BENCH_WRITE, so what libraries print does not disturb them.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any


class Stop(BaseException):
    """The driver wants no more steps."""


class Gate:
    """Stands between two steps.

    Args:
      finish: waits until all work that was begun is done.
      facts: more to report at each stop, for example counts of compilations.
    """

    def __init__(self, finish: Callable[[], None], facts: Callable[[], dict[str, Any]] = dict) -> None:
        self._commands = os.fdopen(int(os.environ["BENCH_READ"]), "r")
        self._answers = os.fdopen(int(os.environ["BENCH_WRITE"]), "w")
        self._finish, self._facts = finish, facts
        self._left = self._steps = 0
        self._begun: tuple[float, float, float] | None = None

    def between(self) -> None:
        """Called before each step.

        Raises:
          Stop: the driver has had enough.
        """
        if self._left == 0:
            if self._begun is not None:
                self._finish()
                wall, cpu, waited = (b - a for a, b in zip(self._begun, clocks(), strict=True))
                self.answer(steps=self._steps, seconds=wall, cpu=cpu, waited=waited, **self._facts())
            self._wait()
        self._left -= 1

    def answer(self, **values: Any) -> None:
        """Sends one line."""
        print(json.dumps(values), file=self._answers, flush=True)

    def _wait(self) -> None:
        words = self._commands.readline().split()
        if words[:1] != ["run"]:
            raise Stop
        self._left = self._steps = int(words[1])
        self._begun = clocks()


def clocks() -> tuple[float, float, float]:
    """Seconds of wall time, of this process's CPU time, and that its threads were ready but had no core."""
    waited = 0.0
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/schedstat") as file:
                waited += int(file.read().split()[1]) / 1e9
        except (OSError, IndexError):
            pass  # the thread ended, or the kernel does not tell
    return time.perf_counter(), time.process_time(), waited


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0
