"""How the driver lets one child run while the other waits: a child runs steps only when it is told to.

The driver writes lines `run N`, `report` and `stop`; the child answers each with one JSON line: how the N steps went,
what all steps so far computed, what it needed in all. The pipes are inherited, numbered by BENCH_READ and BENCH_WRITE,
so what libraries print does not disturb them.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stop(BaseException):
    """The driver wants no more steps."""


class Gate:
    """Stands between two steps.

    Args:
      finish: waits until all work that was begun is done.
      facts: more to report at each stop, for example counts of compilations.

    Attributes:
      report: gives what the steps so far computed, for the check of both sides; set by the child's task.
      spent: seconds by name since the last command; what nobody took the time of is the step itself.
      tokens: tokens that count, of each step so far.
    """

    def __init__(self, finish: Callable[[], None], facts: Callable[[], dict[str, Any]] = dict) -> None:
        self._commands = os.fdopen(int(os.environ["BENCH_READ"]), "r")
        self._answers = os.fdopen(int(os.environ["BENCH_WRITE"]), "w")
        self._finish, self._facts = finish, facts
        self._left = self._steps = 0
        self._begun: tuple[float, float, float, float] | None = None
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.tokens: list[int] = []
        self._counted = 0
        self.report: Callable[[], dict[str, Any]] = dict

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Adds the time of a block to `spent`."""
        began = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - began

    def count(self, tokens: int) -> None:
        """Called once a step: how many tokens count in it."""
        self.tokens.append(int(tokens))

    def between(self) -> None:
        """Called before each step.

        Raises:
          Stop: the driver has had enough.
        """
        if self._left == 0:
            if self._begun is not None:
                self._finish()
                wall, cpu, waited, machine = (b - a for a, b in zip(self._begun, clocks(), strict=True))
                self.answer(
                    steps=self._steps,
                    seconds=wall,
                    cpu=cpu,
                    # Threads of this process that wait for one another are its own affair.
                    waited=min(waited, max(0.0, machine - cpu)),
                    tokens=sum(self.tokens[self._counted :]),
                    spent=dict(self.spent),
                    **self._facts(),
                )
            self._wait()
        self._left -= 1

    def answer(self, **values: Any) -> None:
        """Sends one line."""
        print(json.dumps(values), file=self._answers, flush=True)

    def close(self) -> None:
        """Lets go of the pipes."""
        self._commands.close()
        self._answers.close()

    def _wait(self) -> None:
        while (words := self._commands.readline().split()) == ["report"]:
            # What a report compiles is no recompilation of a step: the facts come after it.
            self.answer(**{"tokens": self.tokens, **self.report(), **self._facts()})
        if words[:1] != ["run"]:
            raise Stop
        self._left = self._steps = int(words[1])
        self._counted = len(self.tokens)
        self.spent.clear()
        self._begun = clocks()


def clocks() -> tuple[float, float, float, float]:
    """Seconds: wall time, this process's CPU time, its threads ready without a core, the machine's CPU time."""
    waited = 0.0
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/schedstat") as file:
                waited += int(file.read().split()[1]) / 1e9
        except (OSError, IndexError):
            pass  # the thread ended, or the kernel does not tell
    with open("/proc/stat") as file:
        user, nice, system, _, _, interrupts, soft, stolen = map(int, file.readline().split()[1:9])
    machine = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), time.process_time(), waited, machine


def peak_memory() -> int:
    """The most memory this process has held, in bytes (of this program alone, as ru_maxrss is not after exec)."""
    return _status("VmHWM")


def memory() -> int:
    """The memory this process holds, in bytes."""
    return _status("VmRSS")


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
