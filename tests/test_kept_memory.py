"""Freed memory is kept for the next step, and given back where a model is large."""

import subprocess
import sys

import pytest

from jaxalign.cli import huge_pages
from jaxalign.kept_memory import LARGE, give_back_for, kept, memory

SETTINGS = {"GLIBC_TUNABLES": ":".join(f"{name}={value}" for name, value in kept(memory()).items())}
# Frees a block of 96 MiB, twice: before a model of so many bytes is there, and after.
CODE = """
import os, sys
import numpy as np
from jaxalign.kept_memory import give_back_for, is_kept

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def left():
    before = resident()
    block = np.full(12 << 20, 1.0)
    del block
    return resident() - before

print(left(), is_kept(), give_back_for(int(sys.argv[1])), left(), is_kept())
"""


def left_behind(weights, environment):
    """MiB that a freed block leaves before and after `give_back_for(weights)`, which is in between."""
    command = [sys.executable, "-c", CODE, str(weights)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    before, kept_before, changed, after, kept_after = result.stdout.split()
    assert kept_before == "True" and kept_after == str(changed == "False")
    return int(before), changed == "True", int(after)


@pytest.mark.skipif(not huge_pages.supported(), reason="no glibc >= 2.35, or pages turned off")
def test_freed_blocks_stay_until_a_large_model_is_there():
    before, changed, after = left_behind(LARGE + 1, SETTINGS)
    assert changed and before > 80 and after < 10
    before, changed, after = left_behind(LARGE, SETTINGS)
    # The second block lies where the first one lay.
    assert not changed and before > 80 and -10 < after < 10


def test_a_users_own_settings_are_left_alone():
    for own in ("", "glibc.malloc.mmap_threshold=4096", "glibc.malloc.hugetlb=1"):
        assert not give_back_for(LARGE + 1, {"GLIBC_TUNABLES": own})
    assert not give_back_for(LARGE + 1, {})


def test_a_container_has_the_memory_it_may_use(tmp_path):
    machine = memory(tmp_path / "none")
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "less").write_text(f"{machine // 2}\n")
    (tmp_path / "more").write_text(f"{machine * 2}\n")
    assert memory(tmp_path / "max") == memory(tmp_path / "more") == machine
    assert memory(tmp_path / "less") == machine // 2
