"""Memory for training on a CPU under Linux: in large pages, and kept between the steps.

XLA allocates the temporaries of a program anew at each call. glibc takes them from the kernel, in pages of 4 KiB,
each cleared and mapped at its first touch, and gives them back afterwards. Pages of 2 MiB are a few hundred in place
of 160,000 a step (a Llama of 8 million weights, batch 8 x 256). Memory that is kept need not be cleared again, nor
be fetched from the host of a virtual machine, which takes back what lies free for a second (docs/performance.md).
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from jaxalign.kept_memory import kept, memory

PAGES = "glibc.malloc.hugetlb"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Where the kernel shows accelerators: their programs have their temporaries elsewhere.
ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "kfd")


def run_in_huge_pages(environment: Mapping[str, str] = os.environ) -> None:
    """Starts this process over, with glibc told to ask for large pages and to keep them, where it was not told yet.

    glibc reads the settings before the first line of Python runs, so nothing short of a new start (30 ms) will
    do. The process id stays. `JAXALIGN_HUGE_PAGES=0` turns all of it off, as does a value of one's own for
    `glibc.malloc.hugetlb` in `GLIBC_TUNABLES`; `JAXALIGN_KEEP_MEMORY=0` has memory given back after each step.
    """
    changed = changed_environment(environment)
    if changed is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)


def changed_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment that asks for large pages; None where it would change nothing."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    if environment.get("JAXALIGN_HUGE_PAGES") == "0" or PAGES in tunables or not supported():
        return None
    added = {PAGES: 1} | (kept(memory()) if keeps(environment) else {})
    parts = [tunables, *(f"{name}={value}" for name, value in added.items() if name not in tunables)]
    return {**environment, "GLIBC_TUNABLES": ":".join(part for part in parts if part)}


def keeps(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Whether programs run on the CPU, and nobody asked for memory to be given back."""
    if environment.get("JAXALIGN_KEEP_MEMORY") == "0":
        return False
    on_cpu = environment.get("JAX_PLATFORMS", "") == "cpu"
    return on_cpu or not any(next(devices.glob(name), None) for name in ACCELERATORS)


def supported() -> bool:
    """Whether the C library (glibc 2.35 or newer) and the kernel know of it."""
    library, version = platform.libc_ver()
    numbers = tuple(int(x) for x in version.split(".")[:2] if x.isdigit())
    try:
        setting = SETTING.read_text()
    except OSError:
        return False
    return library == "glibc" and numbers >= (2, 35) and "[never]" not in setting
