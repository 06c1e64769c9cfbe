"""The metrics of answers, worked out by hand."""

import itertools

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.training.core.answer_measures import MEASURES, Answers, by_prompt, measured, with_interval
from jaxalign.uncertainty import bootstrap_interval

NAN = float("nan")


def answers(**changes):
    """Three prompts, two answers each."""
    texts = ["a b c d a b c d", "x", "I cannot say", "x x", "", "y z"]
    parts = {
        "samples": 2,
        "texts": texts,
        "lengths": np.array([8, 1, 3, 2, 0, 2]),
        "stopped": np.array([True, True, False, True, False, False]),
    }
    return Answers(**(parts | changes))


def test_means_are_of_prompts_and_words_of_all_answers_together():
    found = measured(answers(), seed=0)
    assert found["length"] == (4.5 + 2.5 + 1) / 3
    assert found["stop_rate"] == (1 + 0.5 + 0) / 3
    # a b c d a b c d I cannot say x x x y z: 10 of 16 words differ.
    assert found["distinct_1"] == 10 / 16
    # ab bc cd da ab bc cd, I-cannot cannot-say, xx, yz: 8 of 11 pairs differ.
    assert found["distinct_2"] == 8 / 11
    # abcd bcda cdab dabc abcd: one of five fourgrams was said before.
    assert found["repetition"] == pytest.approx((1 / 5) / 2 / 3)
    assert found["refusal_rate"] == pytest.approx(0.5 / 3)
    assert not {"reward", "kl", "win_rate"} & found.keys()
    assert "distinct_1_low" not in found


def test_intervals_resample_prompts_and_not_answers():
    found = measured(answers(), ("length",), seed=3)
    assert (found["length_low"], found["length_high"]) == bootstrap_interval([4.5, 2.5, 1.0], seed=3)
    assert found.keys() == {"length", "length_low", "length_high"}


def test_rewards_are_means_over_the_answers_to_which_they_apply():
    found = measured(answers(rewards={"": np.array([1.0, NAN, 0.0, 3.0, NAN, NAN])}), seed=0)
    assert found["reward"] == (1 + 1.5) / 2
    nothing = measured(answers(rewards={"": np.full(6, NAN)}), seed=0)
    assert "reward" not in nothing


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    right = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]], float)
    lots = answers(
        samples=4,
        texts=["t"] * 12,
        lengths=np.ones(12),
        stopped=np.ones(12, bool),
        rewards={"": right.ravel()},
    )
    found = measured(lots, ("pass_at_k", "mean_at_k"), seed=0)
    for k in (2, 4):
        share = [np.mean([max(part) for part in itertools.combinations(row, k)]) for row in right]
        assert found[f"pass_at_{k}"] == pytest.approx(np.mean(share))
    assert found["mean_at_4"] == pytest.approx(4 / 12)
    assert {name.removesuffix("_low").removesuffix("_high") for name in found} == {
        "pass_at_2",
        "pass_at_4",
        "mean_at_4",
    }


def test_pass_at_k_is_of_each_part_of_a_mix_that_is_0_or_1():
    right, long = np.array([1, 0, 0, 0, 1, 1.0]), np.array([0.5, 0, 1, 0, 0, 0])
    found = measured(answers(rewards={"": right + long, "right": right, "long": long}), seed=0)
    assert found["reward"] == pytest.approx((right + long).mean())
    assert found["reward/right"] == 0.5
    assert found["reward/long"] == 0.25
    assert found["pass_at_2/right"] == pytest.approx(2 / 3)
    assert found["mean_at_2/right"] == 0.5
    assert not [name for name in found if name.startswith(("pass_at_2/long", "mean_at_2/long"))]
    assert "pass_at_2" not in found
    # A mix of one part is that part, and said once.
    alone = measured(answers(rewards={"": right, "right": right}), seed=0)
    assert "pass_at_2" in alone
    assert "pass_at_2/right" not in alone
    assert alone["reward/right"] == alone["reward"]


def test_a_prompt_counts_for_pass_at_k_where_the_reward_applies_to_all_its_answers():
    found = measured(answers(rewards={"": np.array([1, 0, NAN, 1, 0, 0.0])}), ("pass_at_k",), seed=0)
    assert found["pass_at_2"] == 0.5


def test_one_answer_a_prompt_has_no_pass_at_k():
    one = Answers(
        samples=1, texts=["a", "b"], lengths=np.ones(2), stopped=np.ones(2, bool), rewards={"": np.ones(2)}
    )
    assert not [name for name in measured(one, seed=0) if name.startswith(("pass", "mean"))]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reward", "names no reward"),
        ("pass_at_k", "gives 0 or 1"),
        ("kl", "no reference"),
        ("win_rate", "no judge"),
    ],
)
def test_a_metric_that_is_named_and_cannot_be_measured_is_refused(name, said):
    with pytest.raises(UserError, match=rf"eval\.generate\.metrics: {name} .*{said}"):
        measured(answers(), (name,), seed=0)


def test_a_single_number_has_no_interval_and_nan_is_left_out():
    assert with_interval("x", np.asarray(0.25), seed=0) == {"x": 0.25}
    assert with_interval("x", np.asarray(NAN), seed=0) == {}
    assert measured(answers(texts=[""] * 6), ("distinct_1",), seed=0) == {}
    assert by_prompt(np.asarray(0.25), answers()).ndim == 0


def test_every_metric_has_its_own_name():
    everything = answers(rewards={"": np.ones(6)}, kl=np.arange(6.0), wins=np.full(6, 0.5))
    found = measured(everything, seed=0)
    roots = {"pass_at_k": "pass_at_2", "mean_at_k": "mean_at_2"}
    assert [name for name in MEASURES if roots.get(name, name) not in found] == []
    assert found["kl"] == 2.5
    assert found["win_rate"] == 0.5
