"""The process that `soak.py` kills: the command line, which marks what it is at.

It is forked from a process that has imported all and started nothing, or runs on its own:

usage: python benchmarks/soak_process.py MARKS ARGUMENT...
"""

import atexit
import contextlib
import importlib
import mmap
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRAINERS = ("sft", "distill", "reward", "dpo", "ppo", "grpo", "online-dpo", "tfpo")
# In the order in which a run meets them, with how often each is aimed at.
PHASES = {"import": 1, "opening": 2, "restore": 2, "step": 4, "rollout": 4, "save": 5, "export": 3}


class Marks:
    """What a process is at, in memory that outlives it: per phase entries and seconds, and the phase it is in.

    Args:
      path: a file of the memory, which both processes map.
    """

    def __init__(self, path: Path) -> None:
        self.names = [*PHASES]
        size = 8 * (2 * len(self.names) + 1)
        if not path.is_file():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self.cells = memoryview(mmap.mmap(file.fileno(), size)).cast("d")

    def entries(self, phase: str) -> int:
        """How often the process entered a phase."""
        return int(self.cells[self.names.index(phase)])

    def seconds(self, phase: str) -> float:
        """How long it was in it, on average."""
        index = self.names.index(phase)
        return self.cells[len(self.names) + index] / max(self.cells[index], 1)

    @property
    def now(self) -> str:
        """The phase that it is in."""
        return self.names[int(self.cells[-1])]

    @contextlib.contextmanager
    def within(self, phase: str):
        """The phase for a while; then the one before again."""
        before, began = self.now, time.perf_counter()
        self.enter(phase)
        try:
            yield
        finally:
            self.cells[len(self.names) + self.names.index(phase)] += time.perf_counter() - began
            self.cells[-1] = self.names.index(before if before != "opening" or phase != "step" else "step")

    def enter(self, phase: str) -> None:
        """From now on the process is in this phase."""
        self.cells[self.names.index(phase)] += 1
        self.cells[-1] = self.names.index(phase)

    def around(self, owner: Any, name: str, phase: str) -> None:
        """Calls of a function are of a phase from now on."""
        plain = getattr(owner, name)

        def called(*arguments: Any, **named: Any) -> Any:
            with self.within(phase):
                return plain(*arguments, **named)

        setattr(owner, name, called)


def import_all() -> None:
    """What the commands import, sooner or later."""
    import transformers  # noqa: F401

    from jaxalign.cli.main import COMMANDS

    for name in TRAINERS:
        importlib.import_module(COMMANDS[name].function.partition(":")[0])
    for name in ("jaxalign.runs.report", "jaxalign.runs.plots", "jaxalign.rollout"):
        importlib.import_module(name)


def run_command(marks: Marks, arguments: Sequence[str]) -> None:
    """The command line, with its phases marked; does not return. A process that has not joined still imports."""
    marks.enter("import")
    import_all()
    from jaxalign import processes
    from jaxalign.checkpoints import CheckpointStore
    from jaxalign.cli import main
    from jaxalign.rollout import Sampler
    from jaxalign.training.core import exports
    from jaxalign.training.core.step import Update

    for name in ("save", "wait", "close"):
        marks.around(CheckpointStore, name, "save")
    marks.around(CheckpointStore, "restore_newest", "restore")
    marks.around(Update, "__call__", "step")
    marks.around(Sampler, "generate", "rollout")
    marks.around(exports, "write_folder", "export")
    if join := [word.partition("=")[2] for word in arguments if word.startswith("--distributed=")]:
        processes.join(join[0])
    marks.enter("opening")
    sys.argv[1:] = arguments
    main.run()


def forked(marks: Marks, arguments: Sequence[str], log: Path) -> int:
    """The process id of a fork that runs the command line."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        os.setsid()
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run_command(marks, arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        if not status:
            atexit._run_exitfuncs()  # as Python would: of several processes those that are done wait for the others
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def spawned(marks: Path, arguments: Sequence[str], log: Path) -> int:
    """The same as a process of its own, which imports all."""
    command = [sys.executable, __file__, str(marks), *arguments]
    with log.open("ab", buffering=0) as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True).pid


if __name__ == "__main__":
    run_command(Marks(Path(sys.argv[1])), sys.argv[2:])
