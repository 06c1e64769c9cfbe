"""The commands and code of the README and the docs: every flag and value is one that the program takes."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

import jaxalign
from jaxalign.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "docs" / "reference"
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if GENERATED not in p.parents)]


def blocks(page, *languages):
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def shell(page):
    return [
        line for body in blocks(page, "", "sh", "bash") for line in re.sub(r"\\\n\s*", "", body).splitlines()
    ]


README = shell(ROOT / "README.md")
COMMANDS = [
    pytest.param(line, id=f"{page.stem}-{line.split()[1]}-{i}")
    for page in PAGES
    for i, line in enumerate(shell(page))
    if line.startswith("jaxalign ") and " ... " not in line
]
TARGETS = sorted({line.split()[1] for page in PAGES for line in shell(page) if line.startswith("make ")})
PYTHON = [
    pytest.param(body, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, body in enumerate(blocks(page, "python"))
]


def test_the_readme_and_the_quickstart_have_commands_and_code():
    assert {"make demo", "make test"} <= {" ".join(line.split()[:2]) for line in README}
    assert (
        len([line for line in shell(ROOT / "docs" / "quickstart.md") if line.startswith("jaxalign ")]) >= 20
    )
    assert PYTHON


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line):
    _, name, *arguments = shlex.split(line, comments=True)
    if not any(argument.startswith(("--help", "--version")) for argument in arguments):
        cli.read_settings(cli.find_command(name), arguments)


@pytest.mark.parametrize("target", TARGETS)
def test_target_is_in_the_makefile(target):
    assert re.search(rf"^([\w-]+ )*{target}( [\w-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("code", PYTHON)
def test_code_imports_names_that_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ja":
            assert hasattr(jaxalign, node.attr), f"ja.{node.attr}"


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_command_has_a_how_to_page_that_the_site_shows(name):
    assert f"howto/{name}.md" in (ROOT / "mkdocs.yml").read_text()
    assert any(line.startswith(f"jaxalign {name}") for line in shell(ROOT / "docs" / "howto" / f"{name}.md"))
    assert f"reference/{name}.md" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text()))
def test_the_readme_links_to_files_that_are_there(link):
    assert (ROOT / link).exists()
