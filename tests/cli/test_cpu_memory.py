"""Large pages and kept memory for the command line on a CPU."""

import os
import subprocess
import sys

import pytest

from jaxalign.cli import cpu_memory

needs_support = pytest.mark.skipif(not cpu_memory.supported(), reason="no glibc >= 2.35, or pages turned off")
ON_CPU = {"JAX_PLATFORMS": "cpu"}
ALL = ":".join(f"{name}={value}" for name, value in cpu_memory.SETTINGS.items())


@pytest.fixture
def supported(monkeypatch):
    monkeypatch.setattr(cpu_memory, "supported", lambda: True)


@pytest.mark.usefixtures("supported")
def test_the_settings_are_added_to_those_that_are_there():
    changed = cpu_memory.changed_environment(ON_CPU)
    assert changed == ON_CPU | {"GLIBC_TUNABLES": ALL}
    changed = cpu_memory.changed_environment(ON_CPU | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"})
    assert changed is not None
    added = ALL.replace(":glibc.malloc.arena_max=1", "")
    assert changed["GLIBC_TUNABLES"] == f"glibc.malloc.arena_max=4:{added}"


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize("device", ["nvidia0", "accel0", "kfd"])
def test_nothing_changes_beside_an_accelerator_unless_programs_run_on_the_cpu(tmp_path, device):
    (tmp_path / "null").touch()
    assert cpu_memory.changed_environment({}, tmp_path) is not None
    (tmp_path / device).touch()
    assert cpu_memory.changed_environment({}, tmp_path) is None
    assert cpu_memory.changed_environment(ON_CPU, tmp_path) is not None


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize(
    "environment",
    [{"JAXALIGN_HUGE_PAGES": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}],
)
def test_a_user_who_decided_is_left_alone(environment):
    assert cpu_memory.changed_environment(ON_CPU | environment) is None


def test_nothing_changes_where_it_is_not_known(monkeypatch):
    monkeypatch.setattr(cpu_memory, "supported", lambda: False)
    assert cpu_memory.changed_environment(ON_CPU) is None


@needs_support
def test_a_new_start_keeps_process_and_arguments():
    code = (
        "import os, sys; from jaxalign.cli.cpu_memory import set_cpu_memory as go; go();"
        "print(os.getpid(), sys.argv[1:], os.environ['GLIBC_TUNABLES'])"
    )
    own = ("GLIBC_TUNABLES", "JAXALIGN_HUGE_PAGES")
    clean = {k: v for k, v in os.environ.items() if k not in own} | ON_CPU
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--a=b c", "ü"], stdout=subprocess.PIPE, text=True, env=clean
    )
    out, _ = process.communicate(timeout=60)
    assert out.strip() == f"{process.pid} ['--a=b c', 'ü'] {ALL}"


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_variable_of_earlier_versions_is_not_dropped_without_a_word(value, capsys):
    cpu_memory.set_cpu_memory({"JAXALIGN_HUGE_PAGES": "0", "JAXALIGN_KEEP_MEMORY": value})
    assert "JAXALIGN_KEEP_MEMORY is no longer used" in capsys.readouterr().err
    cpu_memory.set_cpu_memory({"JAXALIGN_HUGE_PAGES": "0"})
    assert capsys.readouterr().err == ""
