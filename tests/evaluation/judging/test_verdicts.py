"""Verdicts are read as they are written, and never guessed."""

import pytest

from jaxalign.evaluation.judging.verdicts import agreed_win, read_choice, read_rating, unread


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("It is good.\nRating: [[8]]", 8.0),
        ("Rating: [[8.5]]", 8.5),
        ("[[ 10 ]]", 10.0),
        ("[[7]] as I said: [[7.0]]", 7.0),
        ("an array [[x]] and Rating: [[3]]", 3.0),
        ("Rating: [8]", None),
        ("Rating: 8", None),
        ("[[8]], no, [[5]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[-3]]", None),
        ("[[8/10]]", None),
        ("[[rating]]", None),
        ("", None),
    ],
)
def test_a_rating_stands_in_double_brackets(text, rating):
    assert read_rating(text) == rating


def test_a_rating_may_have_another_scale():
    assert read_rating("[[0]]", low=0, high=5) == 0.0
    assert read_rating("[[6]]", low=0, high=5) is None


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("My final verdict is: [[A]]", "A"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        ("[[A]]. Once more: [[A]]", "A"),
        ("[[D]] is a typo of [[B]]", "B"),
        ("[[A]] or [[B]]?", None),
        ("[A]", None),
        ("[[a]]", None),
        ("Assistant A is better.", None),
        ("", None),
    ],
)
def test_a_choice_stands_in_double_brackets(text, choice):
    assert read_choice(text) == choice


@pytest.mark.parametrize(
    ("first", "second", "win"),
    [
        ("A", "B", 1.0),
        ("B", "A", 0.0),
        ("A", "A", 0.5),  # the judge took the first both times
        ("B", "B", 0.5),
        ("tie", "tie", 0.5),
        ("A", "tie", 0.5),
        ("tie", "A", 0.5),
        ("A", None, None),
        (None, "B", None),
    ],
)
def test_a_verdict_counts_where_both_orders_agree(first, second, win):
    assert agreed_win(first, second) == win


def test_texts_without_a_verdict_are_counted():
    assert unread([1.0, None, 0.0, None]) == 2
