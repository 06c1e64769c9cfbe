"""The cache of compiled programs: on where a command runs on an accelerator, and only then."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxalign.cli.compile_cache import cache_folder, set_compile_cache
from jaxalign.runs import RunConfig
from jaxalign.training.sft import SFTConfig


@pytest.fixture
def folder(monkeypatch):
    """Asks for JAX's setting, which is none at first."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def settings(**run):
    return SFTConfig(run=RunConfig(**run))


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_it_is_on_for_accelerators(backend, folder, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    set_compile_cache(settings(), {"XDG_CACHE_HOME": "/cache"})
    assert folder() == "/cache/jaxalign/xla"


def test_it_is_off_for_cpus_by_its_key_and_for_commands_that_run_nothing(folder, monkeypatch):
    set_compile_cache(settings(), {})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    set_compile_cache(settings(device="cpu"), {})
    set_compile_cache(settings(compile_cache=False), {})
    set_compile_cache(SimpleNamespace(target="h100x8"), {})
    assert folder() is None


def test_a_cache_of_ones_own_stays(folder, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.config.update("jax_compilation_cache_dir", "/own")
    set_compile_cache(settings(), {"XDG_CACHE_HOME": "/cache"})
    assert folder() == "/own"


def test_the_folder_is_the_users():
    assert cache_folder({"JAX_COMPILATION_CACHE_DIR": "/own", "XDG_CACHE_HOME": "/c"}) == Path("/own")
    assert cache_folder({"XDG_CACHE_HOME": ""}) == Path.home() / ".cache" / "jaxalign" / "xla"


def test_importing_the_library_changes_no_setting_of_jax():
    program = (
        "import os; os.environ.pop('JAX_COMPILATION_CACHE_DIR', None); import jax; before = dict(jax.config.values)\n"
        "import jaxalign.cli.main, jaxalign.losses, jaxalign.runs\n"
        "assert dict(jax.config.values) == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
