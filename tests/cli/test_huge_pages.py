"""Large pages for the command line."""

import os
import subprocess
import sys

import pytest

from jaxalign.cli import huge_pages

needs_support = pytest.mark.skipif(not huge_pages.supported(), reason="no glibc >= 2.35, or pages turned off")


@pytest.fixture
def supported(monkeypatch):
    monkeypatch.setattr(huge_pages, "supported", lambda: True)


@pytest.mark.usefixtures("supported")
def test_the_setting_is_added_to_those_that_are_there():
    changed = huge_pages.changed_environment({"A": "b", "GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert changed == {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}
    assert huge_pages.changed_environment({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


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
    clean = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "JAXALIGN_HUGE_PAGES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--a=b c", "ü"], stdout=subprocess.PIPE, text=True, env=clean
    )
    out, _ = process.communicate(timeout=60)
    assert out.strip() == f"{process.pid} ['--a=b c', 'ü'] glibc.malloc.hugetlb=1"
