"""Freed memory on a CPU under Linux: how much of it glibc keeps for the next step, and when it stops to.

The settings are glibc's tunables, which the commands start their process with (`jaxalign.cli.huge_pages`).
"""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

# A block larger than this part of the memory is given back after use: holes make what is kept two to three times as
# large as the largest block.
KEPT_PART = 1 / 8
# Bytes of weights above which a model's steps have temporaries that glibc cannot lay out without holes: keeping them
# made a step of one with 224 MB take 1.6 times as long, and helped one with 33 MB (docs/memory.md).
LARGE = 128 << 20
# From malloc.h; and what glibc's own rule, which learns from what is freed, grows to.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
OWN_LARGEST = 32 << 20
# What a container may use: a number of bytes, or "max".
LIMIT = Path("/sys/fs/cgroup/memory.max")
# Whether this process has been told to give freed blocks back.
_given_back = False


def kept(total: int) -> dict[str, int]:
    """glibc's settings by which freed blocks are kept, but for large ones, where there are `total` bytes."""
    largest = int(total * KEPT_PART)
    return {
        # One heap: those of threads hold blocks up to 64 MiB only.
        "glibc.malloc.arena_max": 1,
        "glibc.malloc.mmap_threshold": largest,
        "glibc.malloc.trim_threshold": 2 * largest,
    }


def memory(limit: Path = LIMIT) -> int:
    """Bytes of the machine, or of the container where it may use less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(limit.read_text()))
    except (OSError, ValueError):
        return machine


def give_back_for(weights: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Has freed blocks given back from now on, where a model is so large that keeping them does harm.

    Args:
      weights: bytes of the model's weights.
      environment: of this process. What it does not hold of the settings of `kept` is a user's own, and stays.

    Returns:
      Whether it was changed.
    """
    held = set(environment.get("GLIBC_TUNABLES", "").split(":"))
    ours = {name for name, value in kept(memory()).items() if f"{name}={value}" in held}
    if weights <= LARGE or "glibc.malloc.mmap_threshold" not in ours:
        return False
    libc = ctypes.CDLL(None)
    changed = bool(libc.mallopt(MMAP_THRESHOLD, OWN_LARGEST))
    if "glibc.malloc.trim_threshold" in ours:
        libc.mallopt(TRIM_THRESHOLD, 2 * OWN_LARGEST)
    libc.malloc_trim(0)
    global _given_back
    _given_back |= changed
    return changed


def is_kept(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether glibc was told which freed blocks to keep, and no large model has put an end to it."""
    return "glibc.malloc.mmap_threshold" in environment.get("GLIBC_TUNABLES", "") and not _given_back
