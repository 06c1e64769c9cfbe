"""A weighted sum of rewards."""

import numpy as np
import pytest

from jaxalign.rewards import RewardRequest, Rewards, WeightedMix

REQUEST = RewardRequest(["p"] * 3, ["a", "b", "c"], [[1]] * 3, [[2]] * 3, {}, 2)


def returning(value):
    return lambda prompts, completions, *, completion_ids, columns: value


def test_scores_and_token_rewards_add_up_by_weight():
    mix = WeightedMix(
        {"a": returning([1.0, 2.0, 3.0]), "b": returning(np.full((3, 2), 0.5))}, {"a": 2.0, "b": -1.0}
    )
    result = mix.score(REQUEST)
    np.testing.assert_allclose(result.scores, [2, 4, 6])
    np.testing.assert_allclose(result.token_rewards, -0.5)
    assert result.metrics == {"a": 2.0, "b": 1.0}


def test_a_row_counts_where_any_part_applies_and_parts_are_averaged_over_their_own_rows():
    mix = WeightedMix({"a": returning([1.0, None, None]), "b": returning([4.0, 8.0, None])})
    result = mix.score(REQUEST)
    np.testing.assert_array_equal(result.valid, [True, True, False])
    np.testing.assert_allclose(result.scores, [5, 8, 0])
    assert result.metrics == {"a": 1.0, "b": 6.0}


def test_metrics_of_the_parts_carry_their_name():
    part = Rewards(scores=np.zeros(3), metrics={"spread": 0.25})
    assert WeightedMix({"a": returning(part)}).score(REQUEST).metrics["a/spread"] == 0.25


def test_a_weight_without_its_reward_is_refused():
    with pytest.raises(ValueError, match=r"unknown rewards: \['c'\]"):
        WeightedMix({"a": returning([0.0])}, {"c": 1.0})
