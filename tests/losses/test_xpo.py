"""XPO."""

import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, logistic, slopes

FOUR = f(-2, -2), f(-5, -5), f(-3, -3), f(-4, -4)  # a margin of 2
OWN = jnp.asarray([True, False])


def xpo(*arrays, **options):
    return losses.xpo_loss(*arrays, OWN, **({"beta": 0.5, "alpha": 0.1} | options))


def test_value_by_hand():
    # The reference wrote the rejected one in the first row, and the chosen one in the second.
    expected = [logistic(1.0) + 0.1 * -5, logistic(1.0) + 0.1 * -2]
    np.testing.assert_allclose(xpo(*FOUR), expected, **CLOSE)
    np.testing.assert_allclose(xpo(*FOUR, base="ipo"), [1 + 0.1 * -5, 1 + 0.1 * -2], **CLOSE)


def test_without_optimism_it_is_online_dpo():
    np.testing.assert_allclose(xpo(*FOUR, alpha=0), losses.dpo_loss(*FOUR, beta=0.5), rtol=1e-6)


def test_optimism_pushes_the_references_sample_down():
    plain = slopes(lambda *x: xpo(*x, *FOUR[2:], alpha=0.0), *FOUR[:2])
    optimistic = slopes(lambda *x: xpo(*x, *FOUR[2:]), *FOUR[:2])
    np.testing.assert_allclose(np.subtract(optimistic, plain), [[0, 0.1], [0.1, 0]], **CLOSE)
