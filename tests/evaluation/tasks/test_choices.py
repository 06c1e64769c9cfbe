"""Questions with choices."""

import numpy as np
import pytest

from jaxalign.evaluation.tasks.choices import Choices, chance, choice_scores


def question(right=(0,), choices=(" yes", " no", " it may well be")):
    return Choices("file:1", "Is it?", choices, right)


def test_the_likeliest_choice_is_the_answer():
    logps = np.log([0.2, 0.3, 0.1])
    assert [choice_scores(question((i,)), logps)["accuracy"] for i in range(3)] == [0, 1, 0]
    assert choice_scores(question((0, 1)), logps)["accuracy"] == 1


def test_a_long_choice_may_be_likelier_a_byte():
    # Bytes without the leading space: 3, 2 and 14.
    logps = np.asarray([-3.0, -2.2, -9.0])
    assert choice_scores(question((2,)), logps) == {
        "accuracy": 0.0,
        "accuracy_per_byte": 1.0,  # -1, -1.1 and -0.64 a byte
        "right_probability": pytest.approx(np.exp(-9) / (np.exp(-3) + np.exp(-2.2) + np.exp(-9))),
    }
    # In UTF-8 an umlaut has two: three letters, six bytes.
    umlauts = question((1,), (" abc", " äöü"))
    assert choice_scores(umlauts, np.asarray([-3.0, -5.0]))["accuracy_per_byte"] == 1


def test_right_choices_share_the_probability_however_small_it_is():
    logps = np.log([0.2, 0.3, 0.5])
    assert choice_scores(question((0, 2)), logps)["right_probability"] == pytest.approx(0.7)
    assert choice_scores(question((0, 2)), logps - 900)["right_probability"] == pytest.approx(0.7)


def test_of_equal_choices_the_first_is_taken():
    assert choice_scores(question((0,)), np.full(3, -1.0))["accuracy"] == 1
    assert choice_scores(question((1,)), np.full(3, -1.0))["accuracy"] == 0


def test_a_guess_is_right_as_often_as_there_are_right_choices():
    assert chance(question((0, 2))) == dict.fromkeys(
        ("accuracy", "accuracy_per_byte", "right_probability"), 2 / 3
    )


@pytest.mark.parametrize(
    ("logps", "said"),
    [([-1.0, -2.0], "expected 3 log-probs"), ([-1.0, np.nan, -1.0], "NaN"), ([-1.0, 0.5, -1.0], "above 0")],
)
def test_what_are_no_log_probs_of_its_choices_are_refused(logps, said):
    with pytest.raises(ValueError, match=f"file:1: .*{said}"):
        choice_scores(question(), np.asarray(logps))


@pytest.mark.parametrize("right", [(), (3,), (0, 1, 2), (-1,)])
def test_a_question_has_right_and_wrong_choices(right):
    with pytest.raises(ValueError, match="file:1: right answers"):
        question(right)
