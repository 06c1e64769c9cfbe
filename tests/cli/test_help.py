"""`--help`: the common keys first, all of them, or those of a section, as wide as the terminal."""

import pytest

from jaxalign import config as configs
from jaxalign.cli import main as cli
from jaxalign.cli.help import COMMON

KEYS = {name: configs.describe(cli.load(command.config)) for name, command in cli.COMMANDS.items()}


def shown(capsys, *arguments):
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def entries(text):
    """The dotted keys that a help has an entry of."""
    heads = (line.partition("  (")[0] for line in text.splitlines() if line.startswith("  --"))
    return {head.rpartition("--")[2] for head in heads}


def test_common_keys_are_keys_of_some_command():
    known = {key.name for keys in KEYS.values() for key in keys}
    assert {key for some in COMMON.values() for key in some} <= known


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_has_the_common_keys_of_a_command_and_help_all_has_all(name, capsys):
    keys = {key.name for key in KEYS[name]}
    common = {key for some in COMMON.values() for key in some}
    brief = shown(capsys, name, "--help")
    assert entries(brief) == {key for key in keys if key in common or "." not in key}
    assert entries(shown(capsys, name, "--help-all")) == keys
    assert (f"`jaxalign {name} --help-all` lists all" in " ".join(brief.split())) == (entries(brief) != keys)


def test_help_of_a_section_has_its_keys_alone(capsys):
    for typed in (("--help", "loss"), ("-h", "loss"), ("--model=x", "--help", "loss")):
        assert entries(shown(capsys, "dpo", *typed)) == {
            key.name for key in KEYS["dpo"] if key.name.startswith("loss.")
        }
    assert cli.main(["dpo", "--help", "los"]) == 2
    assert "--help los: no such section; did you mean loss?" in capsys.readouterr().err


def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    narrow = [shown(capsys, "ppo", "--help-all"), shown(capsys, "--help"), shown(capsys, "grpo", "--help")]
    assert max(len(line) for text in narrow for line in text.splitlines()) <= 60
    monkeypatch.setenv("COLUMNS", "110")
    wide = shown(capsys, "ppo", "--help-all")
    assert 100 < max(map(len, wide.splitlines())) <= 110
    assert len(wide.splitlines()) < len(narrow[0].splitlines())
    # Nothing is lost by it.
    assert "".join(wide.split()) == "".join(narrow[0].split())
