"""What the wheel holds, and what it asks for: built here without a network, never installed (`make wheel-check` is)."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import jaxalign
from jaxalign.runs.trackers import TRACKERS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxalign"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What fsspec imports for the scheme of a URL.
BY_SCHEME = {"gcsfs", "s3fs"}
# Extras that bring tools, or jax for a device, and no package of ours imports.
TOOLS = {"dev", "docs", "notebooks", "parity", "cuda", "tpu"}
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "orbax": "orbax-checkpoint",
    "yaml": "pyyaml",
    "llama_cpp": "llama-cpp-python",
    "reasoning_gym": "reasoning-gym",
}
# Come with a package that is declared, and are only used with it.
BROUGHT = {"jaxlib": "jax", "tokenizers": "transformers", "pandas": "trackio"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the checkout: setuptools writes beside what it builds."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(PACKAGE, folder / "jaxalign", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, "dist"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (folder / "dist").iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def imported():
    """Top-level names that any module of the package imports, lazily or not, and those that trackers are opened by."""
    names = {package for package, _ in TRACKERS.values()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"jaxalign"}


def distribution(name):
    """The normalized name of the distribution that an import, or a requirement, is of."""
    name = re.match(r"[\w.-]+", name)[0]
    return DISTRIBUTIONS.get(name, name).lower().replace("_", "-")


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert "jaxalign/py.typed" in ours and any(name.endswith(".yaml") for name in ours)
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == ours


def test_the_wheel_names_its_version_license_and_command(wheel):
    def read(name):
        (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
        return wheel.read(path)

    told = message_from_bytes(read("METADATA"))
    assert (told["Name"], told["Version"]) == ("jaxalign", jaxalign.__version__)
    assert told["License-Expression"] == "Apache-2.0" and read("licenses/LICENSE")
    assert b"jaxalign = jaxalign.cli.main:run" in read("entry_points.txt")


def test_every_extra_brings_only_what_is_imported(imported):
    used = {distribution(name) for name in imported} | BY_SCHEME
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name not in TOOLS}
    idle = {name: idle for name, wanted in extras.items() if (idle := {*map(distribution, wanted)} - used)}
    assert extras and idle == {}


def test_every_import_is_of_a_package_that_is_declared(imported):
    extras = {name for name in PROJECT["optional-dependencies"] if name not in TOOLS}
    declared = [
        *PROJECT["dependencies"],
        *(one for name in extras for one in PROJECT["optional-dependencies"][name]),
    ]
    unnamed = {distribution(BROUGHT.get(name, name)) for name in imported} - {*map(distribution, declared)}
    assert unnamed == set()
