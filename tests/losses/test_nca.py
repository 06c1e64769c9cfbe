"""NCA."""

import numpy as np

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, LOG2, f, logistic, sigmoid, slopes


def nca(*four):
    return losses.nca_loss(*four, beta=0.5)


def test_value_by_hand():
    # Rewards 0.5 and -1.5.
    expected = logistic(0.5) + 0.5 * logistic(-0.5) + 0.5 * logistic(1.5)
    np.testing.assert_allclose(nca(f(-2), f(-7), f(-3), f(-4)), [expected], **CLOSE)


def test_at_the_reference():
    np.testing.assert_allclose(nca(f(-2), f(-7), f(-2), f(-7)), [2 * LOG2], **CLOSE)


def test_the_slope_by_the_chosen_turns_where_its_own_likelihood_is_high():
    # d/dr of log(1 + e^-r) + log(1 + e^r) / 2 is 1.5 sigmoid(r) - 1: 0 at r = log 2.
    for reward in (-3.0, 0.0, np.log(2.0), 3.0):
        chosen, rejected = slopes(lambda *x: nca(*x, f(0), f(0)), f(reward / 0.5), f(0))
        np.testing.assert_allclose(chosen, [0.5 * (1.5 * sigmoid(reward) - 1)], **CLOSE)
        np.testing.assert_allclose(rejected, [0.5 * 0.5 * 0.5], **CLOSE)


def test_lowering_both_alike_costs_unlike_in_dpo():
    both = f(-12), f(-17), f(-2), f(-7)
    assert nca(*both) > 2 * LOG2
    np.testing.assert_allclose(losses.dpo_loss(*both, beta=0.5), [LOG2], **CLOSE)
