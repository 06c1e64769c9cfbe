"""Memory that the optimizer steps of an update have freed, held while the next rollout is sampled and scored.

The host of a virtual machine may take back what lies free in it for a second or two, and whoever asks for it again
waits until it is fetched: a step whose temporaries of 3.9 GB had gone took 5.4 seconds in place of 3.8
(docs/memory.md). So a thread takes them again when sampling begins, and frees them right before the next step. Where
glibc keeps freed memory (see `kept_memory`) there is nothing to hold.
"""

import math
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from jaxalign.kept_memory import OWN_LARGEST, is_kept

# Seconds between two looks at how much memory is resident.
PERIOD = 0.05
# Bytes that are made resident at once: what `give_back` may have to wait for.
PIECE = 64 << 20
# Seconds without any less memory, after which a step that has ended has given its own back: XLA frees it on a thread
# of its own, after the results are there (within 0.2 for 3 GB).
SETTLING = 0.5


class Parked:
    """What optimizer steps need more memory for than what comes between them; used by one thread.

    It holds no more than that, so that the process has its peak where it had it before: in the steps.

    Args:
      on_cpu: whether programs run on the CPU; on other devices nothing is held.
      environment: of this process; `JAXALIGN_KEEP_MEMORY=0` holds nothing.
    """

    def __init__(self, *, on_cpu: bool, environment: Mapping[str, str] = os.environ) -> None:
        wanted = environment.get("JAXALIGN_KEEP_MEMORY") != "0"
        self._may = wanted and on_cpu and sys.platform == "linux"
        self._environment = environment
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._block: mmap.mmap | None = None
        # The most bytes that were resident in steps, and between them beside what was held; 0 before it was seen.
        self._in_steps = self._between = 0

    @property
    def size(self) -> int:
        """Bytes that are held now."""
        return 0 if self._block is None else len(self._block)

    def hold(self) -> None:
        """Holds, from what the steps have freed, all but what came between them at most; a thread does it.

        The first time it only looks how much comes between them.
        """
        self.close()
        if self._may and self._in_steps and not is_kept(self._environment):
            self._start(self._hold)

    @contextmanager
    def steps(self) -> Iterator[None]:
        """While optimizer steps run: frees what is held, and looks how much they need."""
        self.close()
        if self._may and not is_kept(self._environment):
            self._start(self._look)
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Frees what is held."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._block is not None:
            self._block.close()
            self._block = None

    def _start(self, function: Callable[[], None]) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=function, name="parked memory", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        self._in_steps = max(self._in_steps, self._most())

    def _hold(self) -> None:
        least, settled = math.inf, 0.0
        while (now := resident()) > self._between:
            if now < least:
                least, settled = now, time.monotonic() + SETTLING
            if time.monotonic() > settled:
                break
            if self._stop.wait(SETTLING / 50):
                return
        size = self._in_steps - max(self._between, now) if self._between else 0
        if size > OWN_LARGEST:
            self._block = resident_block(size, self._stop, self._environment)
        self._between = max(self._between, self._most() - self.size)

    def _most(self) -> int:
        """The most bytes that are resident until it is stopped."""
        most = resident()
        while not self._stop.wait(PERIOD):
            most = max(most, resident())
        return most


def resident_block(size: int, stop: threading.Event, environment: Mapping[str, str]) -> mmap.mmap | None:
    """Memory that is resident but for what is left when `stop` is set; None where there is none."""
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError):
        return None
    with suppress(AttributeError, OSError):  # a child of this process needs none of it
        block.madvise(mmap.MADV_DONTFORK)
    if environment.get("JAXALIGN_HUGE_PAGES") != "0":
        with suppress(AttributeError, OSError):
            block.madvise(mmap.MADV_HUGEPAGE)
    pages = np.frombuffer(block, np.uint8)[:: mmap.PAGESIZE]
    for start in range(0, len(pages), PIECE // mmap.PAGESIZE):
        if stop.is_set():
            break
        pages[start : start + PIECE // mmap.PAGESIZE] = 1
    return block


def resident(file: Path = Path("/proc/self/statm")) -> int:
    """Bytes of this process that are in memory."""
    return int(file.read_text().split()[1]) * mmap.PAGESIZE
