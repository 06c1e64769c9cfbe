"""pass@k, mean@k and maj@k against all subsets, one by one."""

import itertools
import math
from decimal import Decimal

import numpy as np
import pytest

from jaxalign.evaluation.metrics import pass_at_k as module
from jaxalign.evaluation.metrics.pass_at_k import majority, majority_at_k, mean_at_k, pass_at_k


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(k):
    for c in range(6):
        answers = [1] * c + [0] * (5 - c)
        share = np.mean([max(part) for part in itertools.combinations(answers, k)])
        assert pass_at_k([c], 5, k)[0] == pytest.approx(share)


def test_pass_at_k_is_the_formula_of_the_paper_with_whole_numbers():
    # 1 - C(n - c, k) / C(n, k), by Python's whole numbers; in floats both overflow.
    n, k = 5000, 1000
    for c in (1, 3, 20):
        expected = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert pass_at_k([c], n, k)[0] == pytest.approx(expected, rel=1e-9)


def test_problems_may_have_different_numbers_of_samples():
    assert pass_at_k([1, 1, 0], [2, 4, 3], 2) == pytest.approx([1.0, 0.5, 0.0])
    assert len(pass_at_k(np.zeros(0, int), 4, 2)) == 0


@pytest.mark.parametrize(
    ("correct", "samples", "k", "said"),
    [
        ([1], 4, 0, r"k must lie in \[1, 4\]"),
        ([1, 1], [4, 2], 3, r"k must lie in \[1, 2\]"),
        ([5], 4, 1, "0 <= correct <= samples"),
        ([-1], 4, 1, "0 <= correct <= samples"),
        ([0.5], 4, 1, "whole numbers"),
    ],
)
def test_counts_that_cannot_be_are_refused(correct, samples, k, said):
    with pytest.raises(ValueError, match=said):
        pass_at_k(correct, samples, k)


def test_mean_at_k_is_the_share_that_is_right():
    right = np.array([[True, False, False, True], [False, False, False, True]])
    assert mean_at_k(right).tolist() == [0.5, 0.25]
    assert mean_at_k(right) == pytest.approx(pass_at_k(right.sum(1), 4, 1))
    with pytest.raises(ValueError, match="problems, answers"):
        mean_at_k([1.0, 0.0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        mean_at_k([[2.0]])


def test_the_most_frequent_answers_win_and_none_does_not_vote():
    assert majority(["b", None, "a", None, None, "a"]) == ("a",)
    assert majority(["b", "a", "a", "b", "c"]) == ("b", "a")
    assert majority([None, None]) == ()


def test_a_vote_counts_by_the_part_of_its_winners_that_are_right():
    answers = [["1", "2", "1"], ["1", "2", "2"], ["1", "2", None], [None, None, None], ["3", "2", "1"]]
    found = majority_at_k(answers, ["1"] * 5)
    assert found == pytest.approx([1, 0, 1 / 2, 0, 1 / 3])
    assert majority_at_k([[Decimal("3.0"), Decimal(3), Decimal(4)]], [Decimal(3)])[0] == 1


def test_of_more_answers_all_subsets_vote():
    # Subsets of three of 1 1 1 2 2: 111, 6 x 112 (right), 3 x 122 (wrong).
    assert majority_at_k([["1", "1", "1", "2", "2"]], ["1"], 3)[0] == pytest.approx(7 / 10)
    # maj@1 is the share that is right; of two, a tie is half.
    assert majority_at_k([["1", "1", "1", "2", "2"]], ["1"], 1)[0] == pytest.approx(3 / 5)
    assert majority_at_k([["1", "1", "1", "2", "2"]], ["1"], 2)[0] == pytest.approx((3 + 6 / 2) / 10)


def test_too_many_subsets_are_drawn_and_repeat_with_the_seed(monkeypatch):
    answers = [["1"] * 9 + ["2"] * 6]
    exact = majority_at_k([["1"] * 9 + ["2"] * 6], ["1"], 3)[0]  # C(15, 3) = 455
    assert exact == pytest.approx((math.comb(9, 3) + math.comb(9, 2) * 6) / math.comb(15, 3))
    monkeypatch.setattr(module, "MOST_SUBSETS", 400)
    drawn = majority_at_k(answers, ["1"], 3, seed=1)[0]
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.08)
    assert majority_at_k(answers, ["1"], 3, seed=1)[0] == drawn != majority_at_k(answers, ["1"], 3, seed=2)[0]


@pytest.mark.parametrize("k", [0, 3])
def test_a_vote_of_no_answers_or_of_more_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=r"problem 0: k must lie in \[1, 2\]"):
        majority_at_k([["1", "2"]], ["1"], k)
    with pytest.raises(ValueError, match="one reference a problem"):
        majority_at_k([["1", "2"]], ["1", "2"])
