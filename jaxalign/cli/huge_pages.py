"""Memory in large pages on Linux: a training step on a CPU spends up to a third of its time getting small ones.

XLA allocates the temporaries of a program anew at each call; glibc takes them from the kernel in pages of 4 KiB,
each cleared and mapped at its first touch. With pages of 2 MiB there are a few hundred in place of 160,000 a
step (a Llama of 8 million weights, batch 8 x 256; figures in docs/performance.md).
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def run_in_huge_pages(environment: Mapping[str, str] = os.environ) -> None:
    """Starts this process over, with glibc told to ask for large pages, where it can and was not told anything yet.

    glibc reads the setting before the first line of Python runs, so nothing short of a new start (30 ms) will
    do. The process id stays. `JAXALIGN_HUGE_PAGES=0` turns it off, as does a value of one's own for
    `glibc.malloc.hugetlb` in `GLIBC_TUNABLES`.
    """
    changed = changed_environment(environment)
    if changed is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)


def changed_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment that asks for large pages; None where it would change nothing."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    if environment.get("JAXALIGN_HUGE_PAGES") == "0" or TUNABLE in tunables or not supported():
        return None
    return {**environment, "GLIBC_TUNABLES": ":".join(x for x in (tunables, f"{TUNABLE}=1") if x)}


def supported() -> bool:
    """Whether the C library (glibc 2.35 or newer) and the kernel know of it."""
    library, version = platform.libc_ver()
    numbers = tuple(int(x) for x in version.split(".")[:2] if x.isdigit())
    try:
        setting = SETTING.read_text()
    except OSError:
        return False
    return library == "glibc" and numbers >= (2, 35) and "[never]" not in setting
