"""Freed memory on a CPU under Linux: how much of it glibc keeps for the next step, and when it stops to.

The settings are glibc's tunables, which the commands start their process with (`jaxalign.cli.huge_pages`).
"""

import ctypes
import os
from collections.abc import Mapping

# A block larger than this part of the machine's memory is given back after use: holes make what is kept two to three
# times as large as the largest block.
KEPT_PART = 1 / 8
# Nothing is kept for a model whose weights take more than this part: the temporaries of its steps are beyond what
# glibc can lay out without holes, and were kept at 1.6 times the time of a step (docs/performance.md).
LARGE_PART = 1 / 128
# From malloc.h; and what glibc's own rule, which learns from what is freed, grows to.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
OWN_LARGEST = 32 << 20


def kept(total: int) -> dict[str, int]:
    """glibc's settings by which freed blocks are kept, but for large ones, on a machine with `total` bytes."""
    largest = int(total * KEPT_PART)
    return {
        # One heap: those of threads hold blocks up to 64 MiB only.
        "glibc.malloc.arena_max": 1,
        "glibc.malloc.mmap_threshold": largest,
        "glibc.malloc.trim_threshold": 2 * largest,
    }


def memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def give_back_for(weights: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Has freed blocks given back from now on, where a model is so large that keeping them does harm.

    Args:
      weights: bytes of the model's weights.
      environment: of this process. Nothing is changed where it does not hold the settings of `kept`.

    Returns:
      Whether it was changed.
    """
    total = memory()
    name = "glibc.malloc.mmap_threshold"
    if f"{name}={kept(total)[name]}" not in environment.get("GLIBC_TUNABLES", "").split(":"):
        return False
    if weights <= total * LARGE_PART:
        return False
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, OWN_LARGEST)
    libc.mallopt(TRIM_THRESHOLD, 2 * OWN_LARGEST)
    libc.malloc_trim(0)
    return True
