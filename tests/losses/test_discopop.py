"""DiscoPOP."""

import numpy as np
import pytest

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, LOG2, f, logistic, sigmoid, slopes


def at(m, **options):
    """The loss at a margin m, by the chosen log-prob alone."""
    return losses.discopop_loss(f(2 * m), f(0), f(0), f(0), beta=0.5, **options)


@pytest.mark.parametrize("m", [-1.0, -0.05, 0.03, 0.7])
@pytest.mark.parametrize("tau", [0.05, 2.0])
def test_value_by_hand(m, tau):
    w = sigmoid(m / tau)
    np.testing.assert_allclose(at(m, tau=tau), [(1 - w) * logistic(m) + w * np.exp(-m)], rtol=1e-5)


def test_at_the_reference():
    np.testing.assert_allclose(at(0.0), [(1 + LOG2) / 2], **CLOSE)


def test_far_below_it_is_logistic_and_far_above_exponential():
    np.testing.assert_allclose(at(-5.0), [logistic(-5)], rtol=1e-6)
    np.testing.assert_allclose(at(5.0), [np.exp(-5)], rtol=1e-5)


def test_the_bump_around_zero_is_there_for_a_small_tau_only():
    (slope,) = slopes(lambda x: losses.discopop_loss(x, f(0), f(0), f(0), beta=1.0), f(0))
    np.testing.assert_allclose(slope, [-0.25 - 0.5 + (1 - LOG2) / 4 / 0.05], rtol=1e-5)
    assert slope > 0
    (smooth,) = slopes(lambda x: losses.discopop_loss(x, f(0), f(0), f(0), beta=1.0, tau=0.2), f(0))
    assert smooth < 0


@pytest.mark.parametrize("tau", [0.05, 1.0, 10.0])
def test_it_is_finite_where_the_exponential_overflows(tau):
    assert np.isfinite(at(-1e4, tau=tau)).all()
    (slope,) = slopes(lambda x: losses.discopop_loss(x, f(0), f(0), f(0), beta=1.0, tau=tau), f(-1e4))
    assert np.isfinite(slope).all()
