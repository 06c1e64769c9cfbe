"""LD-DPO's log-probs."""

import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, slopes

LOGPS = f([-1, -2, -4, -8], [-1, -2, -4, -8])
MASK = jnp.asarray([[0, 1, 1, 1], [1, 1, 0, 0]])


def logp(lengths, alpha, mask=MASK):
    return losses.length_desensitized_logps(LOGPS, mask, jnp.asarray(lengths), alpha=alpha)


def test_value_by_hand():
    # Places count what the mask counts: the first row's first token is -2.
    np.testing.assert_allclose(logp([2, 2], 0.5), [-2 - 4 - 0.5 * 8, -1 - 2], **CLOSE)
    np.testing.assert_allclose(logp([0, 1], 0.5), [0.5 * (-2 - 4 - 8), -1 - 0.5 * 2], **CLOSE)
    np.testing.assert_allclose(logp([3, 3], 0.5, mask=None), [-1 - 2 - 4 - 0.5 * 8] * 2, **CLOSE)


def test_alpha_one_is_the_sum_and_zero_cuts_at_the_shared_length():
    np.testing.assert_allclose(logp([2, 2], 1.0), [-14, -3], **CLOSE)
    np.testing.assert_allclose(logp([2, 2], 0.0), [-6, -3], **CLOSE)


def test_tokens_beyond_the_shared_length_are_pushed_less():
    (slope,) = slopes(
        lambda x: losses.length_desensitized_logps(x, MASK, jnp.asarray([2, 1]), alpha=0.25), LOGPS
    )
    np.testing.assert_array_equal(slope, [[0, 1, 1, 0.25], [1, 0.25, 0, 0]])
