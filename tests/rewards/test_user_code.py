"""Mistakes in the user's own code are told as theirs."""

import jax
import pytest

from jaxalign.cli.main import failed
from jaxalign.errors import DataError, UserError
from jaxalign.rewards import evaluate_judge, load_function
from jaxalign.rewards.user_code import user_code


def test_the_command_line_shows_the_users_lines_one_line_of_ours_and_status_2(tmp_path, capsys):
    path = tmp_path / "failing_rewards.py"
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError) as found:
        load_function(f"{path}:f")
    assert failed(found.value, "jaxalign grpo") == 2
    message = "ModuleNotFoundError: No module named 'nothing_of_that_name'"
    assert capsys.readouterr().err.splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{path}", line 1, in <module>',
        "    import nothing_of_that_name",
        message,
        f"jaxalign grpo: error: reward function '{path}:f': {message} ({path}:1)",
    ]


def test_an_exception_that_came_from_another_is_told_with_that_one(tmp_path):
    path = tmp_path / "chained_rewards.py"
    path.write_text("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('x') from e\n")
    with pytest.raises(UserError, match=f"KeyError: 'x' \\({path}:4\\)") as found:
        load_function(f"{path}:f")
    told = found.value.user_traceback
    assert told.index("ZeroDivisionError") < told.index("KeyError")
    assert "functions.py" not in told


def test_a_judge_that_raises_is_its_authors_mistake(tmp_path):
    path = tmp_path / "failing_judge.py"
    path.write_text("def judge(prompts, first, second, *, columns):\n    return columns['style']\n")
    judge = load_function(f"{path}:judge", kind="judge")
    with pytest.raises(UserError, match=rf"judge judge: KeyError: 'style' \({path}:2\)"):
        evaluate_judge(judge, ["p"], ["a"], ["b"], columns={}, key=jax.random.key(0))


@pytest.mark.parametrize("error", [DataError("a row"), MemoryError(), KeyboardInterrupt()])
def test_what_says_already_whose_mistake_it_is_stays_as_it_is(error):
    with pytest.raises(type(error)) as found, user_code("reward f"):
        raise error
    assert found.value is error
