"""A sign of life of a running process, and the stacks of one that hangs."""

import faulthandler
import json
import os
import platform
import threading
import time
from typing import Any

from jaxalign import processes
from jaxalign.runs.run import Run

# Seconds between two signs of life.
EVERY = 10.0
# The status of a process that `run.hang_exit` ends: EX_TEMPFAIL of sysexits.h, start it again.
HUNG = 75


class Heartbeat:
    """Rewrites `heartbeat.json` in the run folder while the run trains; a context manager.

    It holds the step, the seconds since that step ended, the time, the process and its host. The file is gone when
    the context ends: one that is older than a minute belongs to a process that died. Of several processes each but
    the first writes `heartbeat-RANK.json`.

    Where no step has ended for `run.hang_minutes`, the stacks of all Python threads are appended to `stacks.txt`
    (`stacks-RANK.txt`), with a warning, once until the next step. Compilation, evaluation, samples and saving belong
    to the step that they follow.

    Args:
      run: the open run.
      total: number of its steps.
    """

    def __init__(self, run: Run, total: int) -> None:
        self._run, self._total = run, total
        self._minutes, self._exits = run.config.hang_minutes, run.config.hang_exit
        suffix = "" if processes.first() else f"-{processes.rank()}"
        self._file, self._stacks = run.folder / f"heartbeat{suffix}.json", run.folder / f"stacks{suffix}.txt"
        self._last: tuple[int, float] = (0, time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="heartbeat")

    def __enter__(self) -> "Heartbeat":
        self._last = (0, time.monotonic())
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def beat(self, step: int) -> None:
        """A step has been taken (given to the device, which may still be at work on it)."""
        self._last = (step, time.monotonic())

    def _watch(self) -> None:
        said = -1.0
        while not self._stop.wait(EVERY):
            step, since = self._last
            silent = time.monotonic() - since
            self._write(step, silent)
            if self._minutes and silent >= 60 * self._minutes and said != since:
                said = since
                self._tell(step, silent)

    def _write(self, step: int, silent: float) -> None:
        about = {
            "step": step,
            "total": self._total,
            "seconds_since_step": round(silent, 1),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "process": os.getpid(),
            "host": platform.node(),
        }
        temporary = self._file.with_name(f".{self._file.name}")
        try:
            temporary.write_text(json.dumps(about))
            os.replace(temporary, self._file)
        except OSError:  # a full disk, which what must be written there will say
            return

    def _tell(self, step: int, silent: float) -> None:
        with self._stacks.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {silent:.0f} s after step {step}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        ends = f"; the process ends with status {HUNG} (run.hang_exit)" if self._exits else ""
        self._run.warn(
            f"no step has ended for {silent / 60:.3g} minutes (run.hang_minutes={self._minutes:g}), since step {step}; "
            f"stacks: {self._stacks}{ends}"
        )
        if self._exits:
            os._exit(HUNG)
