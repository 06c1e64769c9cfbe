"""SPPO."""

import numpy as np

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, slopes


def sppo(*four):
    return losses.sppo_loss(*four, beta=0.5)


def test_value_by_hand():
    # Targets 1 and -1; log-ratios 3 and -2.
    np.testing.assert_allclose(sppo(f(-2), f(-7), f(-5), f(-5)), [(3 - 1) ** 2 + (-2 + 1) ** 2], **CLOSE)
    np.testing.assert_allclose(sppo(f(-2), f(-7), f(-2), f(-7)), [1 / (2 * 0.5**2)], **CLOSE)


def test_each_side_is_drawn_to_a_place_of_its_own():
    for chosen, rejected, signs in ((0, 0, (-1, 1)), (2, -2, (1, -1)), (1, -1, (0, 0))):
        found = slopes(lambda *x: sppo(*x, f(0), f(0)), f(chosen), f(rejected))
        np.testing.assert_array_equal(np.sign(np.concatenate(found)), signs)
