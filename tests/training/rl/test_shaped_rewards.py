"""Rewards of a rollout: rules for stop tokens, clipping, normalization over all scores seen."""

import numpy as np
import pytest

from jaxalign.rewards import Rewards
from jaxalign.rollout import Completions
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.rl.shaped_rewards import RunningMoments, final_scores


def completions(*reasons: str) -> Completions:
    shape = (len(reasons), 2)
    zeros = np.zeros(shape, np.float32)
    return Completions(
        zeros.astype(int), np.ones(shape, bool), np.full(len(reasons), 2), zeros, zeros, list(reasons)
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (RewardSource(), [3.0, -2.0]),
        (RewardSource(missing_stop_penalty=1.0), [3.0, -3.0]),
        (RewardSource(missing_stop_score=-1.0), [3.0, -1.0]),
        (RewardSource(clip=2.5), [2.5, -2.0]),
        (RewardSource(normalize=True), [1.0, -1.0]),
    ],
)
def test_scores_follow_the_rules_for_stop_tokens_clipping_and_normalisation(source, expected):
    rewards = Rewards(scores=np.asarray([3.0, -2.0], np.float32), valid=np.ones(2, bool))
    scores = final_scores(source, rewards, completions("stop", "length"), RunningMoments())
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_running_moments_are_those_of_all_values():
    values = np.random.default_rng(0).standard_normal(50) * 3 + 1
    moments = RunningMoments()
    for part in np.split(values, [1, 4, 30]):
        moments.update(part)
    np.testing.assert_allclose([moments.count, moments.mean, moments.std], [50, values.mean(), values.std()])
