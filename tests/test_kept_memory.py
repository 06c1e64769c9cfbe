"""Freed memory is kept for the next step, and given back where a model is large."""

import subprocess
import sys

import pytest

from jaxalign.cli import huge_pages
from jaxalign.kept_memory import LARGE_PART, give_back_for, kept, memory

SETTINGS = {"GLIBC_TUNABLES": ":".join(f"{name}={value}" for name, value in kept(memory()).items())}
LARGE = int(memory() * LARGE_PART) + 1
# Frees a block of 96 MiB, twice: before a model of so many bytes is there, and after.
CODE = """
import sys
import numpy as np
from jaxalign.kept_memory import give_back_for

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4 // 1024

def left():
    before = resident()
    block = np.full(12 << 20, 1.0)
    del block
    return resident() - before

print(left(), give_back_for(int(sys.argv[1])), left())
"""


def left_behind(weights, environment):
    """MiB that a freed block leaves before and after `give_back_for(weights)`, which is in between."""
    command = [sys.executable, "-c", CODE, str(weights)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    before, changed, after = result.stdout.split()
    return int(before), changed == "True", int(after)


@pytest.mark.skipif(not huge_pages.supported(), reason="no glibc >= 2.35, or pages turned off")
def test_freed_blocks_stay_until_a_large_model_is_there():
    before, changed, after = left_behind(LARGE, SETTINGS)
    assert changed and before > 80 and after < 10
    before, changed, after = left_behind(LARGE - 1, SETTINGS)
    # The second block lies where the first one lay.
    assert not changed and before > 80 and -10 < after < 10


def test_a_users_own_settings_are_left_alone():
    for own in ("", "glibc.malloc.mmap_threshold=4096", "glibc.malloc.hugetlb=1"):
        assert not give_back_for(LARGE, {"GLIBC_TUNABLES": own})
    assert not give_back_for(LARGE, {})
