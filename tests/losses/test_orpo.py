"""ORPO's odds-ratio term."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, LOG2, f, logistic, slopes


def orpo(*means):
    return losses.orpo_loss(*means, beta=0.1)


def test_value_by_hand():
    # Probabilities 3/4 and 1/2: odds 3 and 1.
    loss = orpo(f(np.log(0.75)), f(np.log(0.5)))
    np.testing.assert_allclose(loss, [0.1 * logistic(np.log(3.0))], **CLOSE)
    np.testing.assert_allclose(orpo(f(-1), f(-1)), [0.1 * LOG2], **CLOSE)


def test_chosen_is_pushed_up_and_rejected_down():
    chosen, rejected = slopes(orpo, f(np.log(0.75)), f(np.log(0.5)))
    # sigmoid(-log 3) = 1/4; the slope of the log-odds is 1 / (1 - p).
    np.testing.assert_allclose([chosen, rejected], [[-0.1 / 4 / 0.25], [0.1 / 4 / 0.5]], **CLOSE)


@pytest.mark.parametrize("certain", [0.0, -1e-30, -1e-9, 1e-9])
def test_a_certain_completion_counts_as_almost_certain(certain):
    for means in ((f(certain), f(-1)), (f(-1), f(certain)), (f(certain), f(certain))):
        bounded = tuple(jnp.minimum(x, -1e-7) for x in means)
        np.testing.assert_allclose(orpo(*means), orpo(*bounded), rtol=1e-6)
        for slope, expected in zip(slopes(orpo, *means), slopes(orpo, *bounded), strict=True):
            np.testing.assert_allclose(slope, expected, rtol=1e-5)
    # A rejected completion that is certain is pushed down, hard; a chosen one is left about where it is.
    chosen, rejected = slopes(orpo, f(-1), f(certain))
    assert rejected > 1e5
    assert -1 < chosen < 0


@pytest.mark.parametrize("small", [-1e-6, -1e-4, -80.0, -1e4])
def test_log_odds_keep_their_digits(small):
    # In float64, with expm1 and log1p where they are due.
    x = float(np.float32(small))
    odds = x - np.log(-np.expm1(x)) if x > -0.7 else x - np.log1p(-np.exp(x))
    at_one = -1 - np.log(-np.expm1(-1.0))
    np.testing.assert_allclose(orpo(f(small), f(-1)), [0.1 * np.logaddexp(0, at_one - odds)], rtol=1e-5)
