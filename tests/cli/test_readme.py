"""The README's commands and code: every flag is one that the program knows."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from jaxalign.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = [
    line
    for language, body in BLOCKS
    if language in ("", "sh", "bash")
    for line in re.sub(r"\\\n\s*", "", body).splitlines()
]
COMMANDS = [line for line in SHELL if line.startswith("jaxalign ")]
TARGETS = [line.split()[1] for line in SHELL if line.startswith("make ")]
PYTHON = [body for language, body in BLOCKS if language == "python"]


def test_the_readme_has_commands_and_code():
    assert len(COMMANDS) >= 5
    assert {"demo", "test"} <= set(TARGETS)
    assert PYTHON


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line):
    _, name, *arguments = shlex.split(line, comments=True)
    if "--help" not in arguments and "--version" not in arguments:
        cli.read_settings(cli.find_command(name), arguments)


@pytest.mark.parametrize("target", TARGETS)
def test_target_is_in_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("code", PYTHON)
def test_code_imports_names_that_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
