"""Rewards that can be checked."""

from decimal import Decimal

import pytest

from jaxalign.errors import UserError
from jaxalign.rewards import load_function
from jaxalign.rewards.verifiable import Length, Pattern, exact_answer, final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 apples and 4 pears.\n#### 7", "7"),
        ("so 12 - 2 = 10, that is $1,234.50.", "1234.50"),
        ("#### -3 apples of 5", "-3"),
        ("The answer is 42.", "42"),
        ("#### 5\nno: #### 6", "6"),
        ("no number at all", None),
        ("7 of them\n#### none", None),
        ("half: .5", "0.5"),
    ],
)
def test_the_final_number_is_that_after_the_mark_or_the_last(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_an_exact_answer_counts_by_its_value():
    columns = {"answer": ["a long way #### 1,000", "#### 3", "#### 3", "unknown"]}
    completions = ["about 1000.0", "it is 3 or 4", "#### 3", "3"]
    found = exact_answer([""] * 4, completions, completion_ids=[[]] * 4, columns=columns)
    assert found == [1.0, 0.0, 1.0, None]
    assert load_function("jaxalign.rewards.verifiable:exact_answer") is exact_answer


def test_a_missing_answer_column_is_named():
    with pytest.raises(UserError, match=r"no column 'answer'; columns: \['question'\]"):
        exact_answer(["p"], ["1"], completion_ids=[[1]], columns={"question": ["q"]})


def test_a_pattern_is_searched_for_or_must_be_all():
    texts = ["<think>a\nb</think> 5", "5"]
    tagged = Pattern(r"<think>.*</think>")
    assert tagged(["", ""], texts, completion_ids=[[], []], columns={}) == [1.0, 0.0]
    assert Pattern(r"\d", whole=True)(["", ""], texts, completion_ids=[[], []], columns={}) == [0.0, 1.0]


def test_length_is_free_in_its_range_and_costs_outside():
    ids = [[1] * n for n in (1, 2, 4, 7)]
    found = Length(2, 4, slope=0.5)([""] * 4, [""] * 4, completion_ids=ids, columns={})
    assert found == [-0.5, 0.0, 0.0, -1.5]
    with pytest.raises(ValueError, match="low <= high"):
        Length(3, 2)
