"""SimPO and AlphaPO."""

import numpy as np
import pytest

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, LOG2, f, logistic, slopes

CHOSEN, REJECTED = f(-0.5), f(-1.0)


def test_value_by_hand():
    loss = losses.simpo_loss(CHOSEN, REJECTED, beta=2.0, gamma=0.3)
    np.testing.assert_allclose(loss, [logistic(2 * 0.5 - 0.3)], **CLOSE)
    np.testing.assert_allclose(losses.simpo_loss(CHOSEN, CHOSEN, beta=2.0, gamma=0), [LOG2], **CLOSE)


@pytest.mark.parametrize("alpha", [0.25, 1.0, -0.5])
def test_bent_value_by_hand(alpha):
    p, q = np.exp(-0.5), np.exp(-1.0)
    margin = (1 - p**-alpha) / alpha - (1 - q**-alpha) / alpha
    loss = losses.alphapo_loss(CHOSEN, REJECTED, beta=2.0, gamma=0.3, alpha=alpha)
    np.testing.assert_allclose(loss, [logistic(2 * margin - 0.3)], **CLOSE)


def test_no_bend_is_simpo():
    bent = losses.alphapo_loss(CHOSEN, REJECTED, beta=2.0, gamma=0.3, alpha=0.0)
    np.testing.assert_array_equal(bent, losses.simpo_loss(CHOSEN, REJECTED, beta=2.0, gamma=0.3))


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.5])
def test_chosen_is_pushed_up_and_rejected_down(alpha):
    chosen, rejected = slopes(
        lambda *x: losses.alphapo_loss(*x, beta=2.0, gamma=0.3, alpha=alpha), CHOSEN, REJECTED
    )
    assert chosen < 0 < rejected
    # The slope of the reward is p^(-alpha): steeper for the unlikely completion where alpha is above 0.
    np.testing.assert_allclose(rejected / -chosen, [np.exp(0.5 * alpha)], rtol=1e-5)
