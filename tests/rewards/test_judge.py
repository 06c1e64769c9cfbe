"""A judge sees pairs in an order drawn for each row, and what it says is checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError, UserError
from jaxalign.rewards import evaluate_judge, load_function

KEY = jax.random.key(0)
PAIRS = {"prompts": ["p", "q", "r"], "first": ["aa", "b", "cc"], "second": ["a", "bb", "ccc"]}


def ask(judge, key=KEY, **changes):
    return evaluate_judge(judge, **({"columns": {}} | PAIRS | changes), key=key, name="mine")


def saying(value):
    return lambda prompts, first, second, *, columns: value


def longer(prompts, first, second, *, columns):
    return [len(a) > len(b) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_what_a_judge_prefers_does_not_depend_on_the_order_it_was_shown(seed):
    np.testing.assert_array_equal(ask(longer, jax.random.key(seed)).preference, [1, 0, 0])


def test_a_judge_that_always_takes_the_first_prefers_each_side_as_often():
    rows = 2000
    many = {"prompts": ["p"] * rows, "first": ["a"] * rows, "second": ["b"] * rows}
    verdicts = ask(saying([1.0] * rows), **many)
    # Half of 2000 draws, within four standard deviations.
    assert abs(verdicts.preference.mean() - 0.5) < 4 * 0.5 / rows**0.5
    assert verdicts.metrics == {"no_opinion": 0.0, "first_shown_preferred": 1.0}
    again, other = (ask(saying([1.0] * rows), key, **many) for key in (KEY, jax.random.key(1)))
    np.testing.assert_array_equal(again.preference, verdicts.preference)
    assert (other.preference != verdicts.preference).any()


@pytest.mark.parametrize(
    "value", [[0.25, None, 1], (0.25, 0.5, True), np.array([0.25, 0.5, 1.0]), jnp.array([0.25, 0.5, 1.0])]
)
def test_every_form_of_verdict_is_understood(value):
    shown = []

    def judge(prompts, first, second, *, columns):
        shown.extend(zip(prompts, first, second, strict=True))
        return value

    verdicts = ask(judge)
    straight = [row == ask_row for row, ask_row in zip(shown, zip(*PAIRS.values(), strict=True), strict=True)]
    expected = [v if kept else 1 - v for v, kept in zip([0.25, 0.5, 1.0], straight, strict=True)]
    np.testing.assert_array_equal(verdicts.preference, np.asarray(expected, np.float32))
    assert verdicts.metrics == pytest.approx({"no_opinion": 1 / 3, "first_shown_preferred": 0.5})


def test_without_any_opinion_there_is_no_preferred_place():
    assert ask(saying([None, None, 0.5])).metrics == {"no_opinion": 1.0}


def test_a_judge_is_given_the_columns():
    def judge(prompts, first, second, *, columns):
        return [a == answer for a, answer in zip(first, columns["answer"], strict=True)]

    verdicts = ask(judge, columns={"answer": ["aa", "bb", "ccc"]})
    np.testing.assert_array_equal(verdicts.preference, [1, 0, 0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "returned 1 verdicts for 3 pairs"),
        (
            [1.0, 1.5, 0.0],
            r"pair 1: expected a probability in \[0, 1\], True, False or None, got 1.5, for 'b",
        ),
        ([1.0, 0.0, -1], r"pair 2: .* got -1, for 'cc"),
        ([float("nan"), 0.0, 1.0], "pair 0: .* got nan"),
        (["1", 0.0, 1.0], "pair 0: .* got '1'"),
        (np.zeros((3, 1)), r"pair 0: .* got \[0.0\]"),
        (0.5, "expected a list with one verdict per pair, got 0.5"),
        (None, "expected a list with one verdict per pair, got None"),
    ],
)
def test_a_wrong_verdict_is_named(value, message):
    with pytest.raises(UserError, match="^judge mine: " + message) as error:
        ask(saying(value))
    assert "\n" not in str(error.value)


def test_a_judge_is_loaded_like_a_reward_function(tmp_path):
    (tmp_path / "mine.py").write_text("def judge(prompts, first, second, *, columns):\n    return [True]\n")
    assert load_function(f"{tmp_path}/mine.py:judge", kind="judge")([], [], [], columns={}) == [True]
    with pytest.raises(ConfigError, match=r"^judge 'nowhere.py:judge': no such file nowhere.py$"):
        load_function("nowhere.py:judge", kind="judge")
