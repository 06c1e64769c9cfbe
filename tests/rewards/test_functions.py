"""Reward functions by name."""

import pytest

from jaxalign.errors import ConfigError
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
        ("nowhere.py:short", "there is no file nowhere.py"),
        ("no_such_module:short", "No module named 'no_such_module'"),
        ("os.path:short", "os.path has no function short"),
        ("os.path:sep", "os.path has no function sep"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(name, message):
    with pytest.raises(ConfigError, match=message):
        load_function(name)
