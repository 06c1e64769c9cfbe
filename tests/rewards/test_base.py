"""Whatever a reward returns comes in one checked form."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.rewards import RewardRequest, Rewards, evaluate_reward, load_function
from jaxalign.rewards.verifiable import Pattern

REQUEST = RewardRequest(
    prompts=["p", "q", "r"],
    completions=["one", "two", "three"],
    prompt_ids=[[1], [2], [3]],
    completion_ids=[[4], [5, 6], [7, 8]],
    columns={"answer": ["a", "b", "c"]},
    width=2,
)


def returning(value):
    return lambda prompts, completions, *, completion_ids, columns: value


@pytest.mark.parametrize(
    ("value", "scores", "tokens"),
    [
        ([1, 0.25, -2], [1, 0.25, -2], np.zeros((3, 2))),
        ((True, False, True), [1, 0, 1], np.zeros((3, 2))),
        (np.array([1.5, 2, 3]), [1.5, 2, 3], np.zeros((3, 2))),
        (np.full((3, 2), 0.5), [0, 0, 0], np.full((3, 2), 0.5)),
        (jnp.asarray([1.5, 2, 3], jnp.bfloat16), [1.5, 2, 3], np.zeros((3, 2))),
        (jnp.full((3, 2), 0.5, jnp.bfloat16), [0, 0, 0], np.full((3, 2), 0.5)),
        (np.array([1, 2.5, True], object), [1, 2.5, 1], np.zeros((3, 2))),
        (Rewards(scores=jnp.ones(3, jnp.bfloat16)), [1, 1, 1], np.zeros((3, 2))),  # type: ignore[arg-type]
        (Rewards(scores=np.ones(3), token_rewards=np.ones((3, 2))), [1, 1, 1], np.ones((3, 2))),
    ],
)
def test_every_form_of_return_is_understood(value, scores, tokens):
    result = evaluate_reward(returning(value), REQUEST)
    np.testing.assert_array_equal(result.scores, np.asarray(scores, np.float32))
    np.testing.assert_array_equal(result.token_rewards, tokens)
    assert result.valid.all()
    assert result.scores.dtype == result.token_rewards.dtype == np.float32


def test_none_marks_a_row_to_which_no_reward_applies():
    result = evaluate_reward(returning([0.5, None, 1.0]), REQUEST)
    np.testing.assert_array_equal(result.valid, [True, False, True])
    np.testing.assert_array_equal(result.scores, [0.5, 0, 1])


def test_none_in_an_array_of_objects_is_none_as_in_a_list():
    result = evaluate_reward(returning(np.array([0.5, None, 1.0], object)), REQUEST)
    np.testing.assert_array_equal(result.valid, [True, False, True])
    np.testing.assert_array_equal(result.scores, [0.5, 0, 1])


def test_a_reward_that_raises_is_told_by_its_own_lines(tmp_path):
    path = tmp_path / "dividing.py"
    path.write_text(
        "def by_length(n):\n    return 1 / n\n\ndef f(prompts, completions, **_):\n    return by_length(0)\n"
    )
    with pytest.raises(UserError) as found:
        evaluate_reward(load_function(f"{path}:f"), REQUEST)
    assert str(found.value) == f"reward f: ZeroDivisionError: division by zero ({path}:2)"
    told = found.value.user_traceback
    assert f'File "{path}", line 5, in f' in told
    assert told.endswith("ZeroDivisionError: division by zero\n")
    assert "jaxalign" not in told


def test_a_mistake_of_a_reward_of_ours_keeps_its_traceback():
    with pytest.raises(TypeError):
        evaluate_reward(Pattern("a"), replace(REQUEST, completions=[1, 2, 3]))  # type: ignore[list-item]


def test_what_a_row_that_does_not_apply_holds_is_of_no_account():
    rewards = Rewards(scores=np.array([1, np.nan, 2]), valid=np.array([True, False, True]))
    np.testing.assert_array_equal(evaluate_reward(returning(rewards), REQUEST).scores, [1, 0, 2])


def test_a_function_is_given_texts_ids_and_columns():
    def reward(prompts, completions, *, completion_ids, columns):
        return [
            len(p) + 10 * len(c) + 100 * len(ids) + 1000 * (answer == "b")
            for p, c, ids, answer in zip(prompts, completions, completion_ids, columns["answer"], strict=True)
        ]

    np.testing.assert_array_equal(evaluate_reward(reward, REQUEST).scores, [131, 1231, 251])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "returned 1 rewards for 3 completions"),
        (np.ones(2), "returned 2 rewards for 3 completions"),
        ([1.0, "good", 2.0], "row 1 is no float or None: 'good', for completion 'two'"),
        ([1.0, "0.5", 2.0], "row 1 is no float or None: '0.5', for completion 'two'"),
        ([1.0, 2.0, [3.0]], r"row 2 is no float or None: \[3.0\], for completion 'three'"),
        ([1.0, 1e39, 2.0], r"row 1 is not finite \(1e\+39\), for completion 'two'"),
        ([float("nan"), 1.0, 2.0], r"row 0 is not finite \(nan\), for completion 'one'"),
        (None, "expected a list or array with one reward for each of 3 completions, got None"),
        (0.5, "expected a list or array with one reward for each of 3 completions, got 0.5"),
        ({"a": 1.0}, r"expected a list or array with one reward for each of 3 completions, got {'a': 1.0}"),
        ([1.0, float("inf"), 2.0], r"row 1 is not finite \(inf\), for completion 'two'"),
        (np.ones((3, 5)), r"shape \(3, 5\); expected \(3,\) or \(3, 2\)"),
        (np.array(["a", "b", "c"]), "row 0 is no float or None: np.str_\\('a'\\), for completion 'one'"),
        (np.array([[1, 2], [3, None], [5, 6]]), "row 1, token 1 is no float: None, for completion 'two'"),
        (
            np.array([[1, 2], [3, np.inf], [5, 6]]),
            r"row 1, token 1 is not finite \(inf\), for completion 'two'",
        ),
        (Rewards(scores=[1.0, None, 2.0]), "row 1 is no float or None: None, for completion 'two'"),  # type: ignore[arg-type]
        (Rewards(token_rewards=np.ones((3, 1))), r"token_rewards have shape \(3, 1\), expected \(3, 2\)"),
    ],
)
def test_a_wrong_return_is_named(value, message):
    with pytest.raises(UserError, match="reward politeness: .*" + message):
        evaluate_reward(returning(value), REQUEST, name="politeness")


def test_a_step_ends_where_it_is_said_and_where_there_is_a_reward():
    tokens, steps = np.zeros((3, 2)), np.zeros((3, 2), bool)
    tokens[0, 1], steps[0, 0], steps[2, 1] = 0.5, True, True
    valid = np.array([True, True, False])
    found = evaluate_reward(returning(Rewards(token_rewards=tokens, valid=valid, steps=steps)), REQUEST)
    np.testing.assert_array_equal(found.steps, [[True, True], [False, False], [False, False]])
    np.testing.assert_array_equal(evaluate_reward(returning(tokens), REQUEST).steps, tokens != 0)
    assert evaluate_reward(returning([1, 2, 3]), REQUEST).steps is None
    with pytest.raises(UserError, match=r"steps have shape \(3, 1\), expected \(3, 2\)"):
        evaluate_reward(returning(Rewards(token_rewards=tokens, steps=steps[:, :1])), REQUEST)
