"""The gap between a sampler's log-probs and the model's."""

import numpy as np
import pytest

from jaxalign.rollout.logp_gap import logp_gap

MASK = np.asarray([[True, True, False]])


def test_it_is_of_the_masked_tokens():
    gap = logp_gap(np.asarray([[-1.0, -2.0, 5.0]]), np.asarray([[-1.5, -2.0, 0.0]]), MASK)
    assert (gap.tokens, gap.mean, gap.largest) == (2, 0.25, 0.5)
    assert gap.kl == pytest.approx((np.expm1(0.5) - 0.5) / 2)


def test_no_tokens_have_no_gap():
    gap = logp_gap(np.zeros((1, 3)), np.ones((1, 3)), np.zeros((1, 3), bool))
    assert (gap.tokens, gap.mean, gap.largest, gap.kl) == (0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("value", [-9999.0, -np.inf])
def test_log_probs_that_are_not_possible_show_as_a_gap_without_warnings(value):
    assert logp_gap(np.zeros((1, 3)), np.full((1, 3), value), MASK).largest > 9000
