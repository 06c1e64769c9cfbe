"""Memory for training on a CPU under Linux: makes glibc use large pages, and keep the memory that a step frees for
the next.

XLA allocates the temporaries of a program anew at each call. glibc takes them from the kernel in pages of 4 KiB, each
cleared and mapped at its first touch, and gives them back afterwards. `docs/performance_appendix.md` has what either
setting saves. From Python: start the process with these settings in `GLIBC_TUNABLES`.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

PAGES = "glibc.malloc.hugetlb"
# Larger blocks are given back after use: kept, those of a large model leave holes, and its steps get slower.
LARGEST_KEPT = 1 << 30
SETTINGS = {
    PAGES: 1,
    # One heap: those of threads hold blocks up to 64 MiB only.
    "glibc.malloc.arena_max": 1,
    "glibc.malloc.mmap_threshold": LARGEST_KEPT,
    "glibc.malloc.trim_threshold": 2 * LARGEST_KEPT,
}
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Where the kernel shows accelerators: their programs have their temporaries elsewhere.
ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "kfd")


def set_cpu_memory(environment: Mapping[str, str] = os.environ) -> None:
    """Restarts this process with `SETTINGS` if programs run on the CPU and they are not set yet.

    glibc reads them before the first line of Python runs, so nothing short of a new start (30 ms) will do. The
    process id stays. `JAXALIGN_HUGE_PAGES=0` turns it off, as does a value of one's own for `glibc.malloc.hugetlb` in
    `GLIBC_TUNABLES`.
    """
    changed = changed_environment(environment)
    if changed is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)
    # Said once, by the process that stays.
    if "JAXALIGN_KEEP_MEMORY" in environment:
        print(
            "warning: JAXALIGN_KEEP_MEMORY is no longer used; JAXALIGN_HUGE_PAGES=0 returns freed memory to the "
            "system",
            file=sys.stderr,
        )


def changed_environment(
    environment: Mapping[str, str], devices: Path = Path("/dev")
) -> dict[str, str] | None:
    """The environment with `SETTINGS`, but for those it has; None where nothing is to change."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    off = environment.get("JAXALIGN_HUGE_PAGES") == "0" or PAGES in tunables
    on_cpu = environment.get("JAX_PLATFORMS", "") == "cpu"
    if off or not (on_cpu or not any(next(devices.glob(name), None) for name in ACCELERATORS)):
        return None
    if not supported():
        return None
    added = [f"{name}={value}" for name, value in SETTINGS.items() if name not in tunables]
    return {**environment, "GLIBC_TUNABLES": ":".join([tunables, *added] if tunables else added)}


def supported() -> bool:
    """Whether the C library (glibc 2.35 or newer) and the kernel know of large pages."""
    library, version = platform.libc_ver()
    numbers = tuple(int(x) for x in version.split(".")[:2] if x.isdigit())
    try:
        setting = KERNEL.read_text()
    except OSError:
        return False
    return library == "glibc" and numbers >= (2, 35) and "[never]" not in setting
