"""Large pages for the command line."""

import os
import subprocess
import sys

import pytest

from jaxalign.cli import huge_pages
from jaxalign.kept_memory import kept, memory

needs_support = pytest.mark.skipif(not huge_pages.supported(), reason="no glibc >= 2.35, or pages turned off")


@pytest.fixture
def supported(monkeypatch):
    monkeypatch.setattr(huge_pages, "supported", lambda: True)
    monkeypatch.setattr(huge_pages, "memory", lambda: 8 << 30)


KEPT = (
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648"
)
ON_CPU = {"JAX_PLATFORMS": "cpu"}


def tunables(environment):
    changed = huge_pages.changed_environment(environment)
    assert changed is not None
    return changed["GLIBC_TUNABLES"]


@pytest.mark.usefixtures("supported")
def test_the_settings_are_added_to_those_that_are_there():
    assert tunables(ON_CPU) == f"glibc.malloc.hugetlb=1:{KEPT}"
    there = ON_CPU | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}
    added = KEPT.removeprefix("glibc.malloc.arena_max=1:")
    assert tunables(there) == f"glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1:{added}"


@pytest.mark.usefixtures("supported")
def test_memory_is_given_back_where_that_is_asked_for():
    assert tunables(ON_CPU | {"JAXALIGN_KEEP_MEMORY": "0"}) == "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("device", ["nvidia0", "accel0", "kfd"])
def test_memory_is_kept_where_programs_run_on_the_cpu(tmp_path, device):
    (tmp_path / "null").touch()
    assert huge_pages.keeps({}, tmp_path)
    (tmp_path / device).touch()
    assert not huge_pages.keeps({}, tmp_path)
    assert huge_pages.keeps(ON_CPU, tmp_path)


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize(
    "environment",
    [{"JAXALIGN_HUGE_PAGES": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}],
)
def test_a_user_who_decided_is_left_alone(environment):
    assert huge_pages.changed_environment(environment) is None


def test_nothing_changes_where_it_is_not_known(monkeypatch):
    monkeypatch.setattr(huge_pages, "supported", lambda: False)
    assert huge_pages.changed_environment({}) is None


@needs_support
def test_a_new_start_keeps_process_and_arguments():
    code = (
        "import os, sys; from jaxalign.cli.huge_pages import run_in_huge_pages as go; go();"
        "print(os.getpid(), sys.argv[1:], os.environ['GLIBC_TUNABLES'])"
    )
    own = ("GLIBC_TUNABLES", "JAXALIGN_HUGE_PAGES", "JAXALIGN_KEEP_MEMORY")
    clean = {k: v for k, v in os.environ.items() if k not in own} | ON_CPU
    settings = {huge_pages.PAGES: 1} | kept(memory())
    told = ":".join(f"{name}={value}" for name, value in settings.items())
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--a=b c", "ü"], stdout=subprocess.PIPE, text=True, env=clean
    )
    out, _ = process.communicate(timeout=60)
    assert out.strip() == f"{process.pid} ['--a=b c', 'ü'] {told}"
