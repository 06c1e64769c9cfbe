"""Reward functions by name."""

import sys

import pytest

from jaxalign.errors import ConfigError, UserError
from jaxalign.rewards import load_function


def test_a_function_is_found_in_a_file_and_in_a_module(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def short(prompts, completions, **_):\n    return [1.0 for _ in completions]\n")
    assert load_function(f"{path}:short")([], ["a", "b"]) == [1.0, 1.0]
    assert load_function("os.path:basename")("a/b") == "b"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "expected module:function or file.py:function"),
        ("nowhere.py:short", "no such file nowhere.py"),
        ("no_such_module:short", "No module named 'no_such_module'"),
        ("os.path:short", "os.path has no function short"),
        ("os.path:sep", "os.path has no function sep"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(name, message):
    with pytest.raises(ConfigError, match=message):
        load_function(name)


def test_a_file_with_postponed_annotations_and_a_dataclass_loads(tmp_path):
    path = tmp_path / "rated.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Mark:\n"
        "    value: float = 1.0\n\n"
        "def marks(prompts, completions, **_):\n    return [Mark().value for _ in completions]\n"
    )
    assert load_function(f"{path}:marks")([], ["a"]) == [1.0]


def test_what_stands_beside_a_file_can_be_imported_and_is_its_own(tmp_path):
    for folder, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a_helper.py").write_text(f"VALUE = {value}\n")
        text = "import a_helper\ndef f(prompts, completions, **_):\n    return [a_helper.VALUE for _ in completions]\n"
        (tmp_path / folder / "mine.py").write_text(text)
    both = [load_function(f"{tmp_path}/{folder}/mine.py:f") for folder in ("one", "two")]
    assert [function([], ["a"]) for function in both] == [[1.0], [2.0]]


def test_a_file_runs_once_for_its_functions_and_again_when_it_has_changed(tmp_path):
    path = tmp_path / "shared.py"
    text = "ITEMS = []\ndef f(p, c):\n    ITEMS.append(1)\n    return ITEMS\ndef g(p, c):\n    return ITEMS\n"
    path.write_text(text)
    assert load_function(f"{path}:f")([], []) is load_function(f"{path}:g")([], [])
    path.write_text(text.replace("ITEMS.append(1)", "ITEMS.append(2)"))
    assert load_function(f"{path}:f")([], []) == [2]


def test_a_file_named_as_a_module_of_pythons_own_leaves_that_in_place(tmp_path):
    import json

    path = tmp_path / "json.py"
    path.write_text("def f(p, c):\n    return 'mine'\n")
    assert load_function(f"{path}:f")([], []) == "mine"
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("import no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such_module_here'", 1),
        ("\ndef f(:\n", "SyntaxError: invalid syntax", 2),
        ("X = 1\nY = X / 0\n", "ZeroDivisionError: division by zero", 2),
    ],
)
def test_a_file_that_cannot_run_is_its_authors_mistake(text, message, line, tmp_path):
    path = tmp_path / "broken_rewards.py"
    path.write_text(text)
    with pytest.raises(UserError) as found:
        load_function(f"{path}:f")
    assert str(found.value) == f"reward function '{path}:f': {message} ({path}:{line})"
    assert not any(str(getattr(m, "__file__", None)) == str(path) for m in list(sys.modules.values()))


def test_a_module_that_is_a_file_here_is_named_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rewards.py").write_text("def f(p, c):\n    return []\n")
    with pytest.raises(ConfigError, match=r"No module named 'own_rewards'; the file is own_rewards\.py:f"):
        load_function("own_rewards:f")
