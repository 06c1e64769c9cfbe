"""The likelihood term of preference losses."""

import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f

LOGPS = f([-1, -2, -6], [-4, -9, -9])
MASK = jnp.asarray([[1, 1, 1], [1, 0, 0]])


def test_the_reductions_make_the_terms_of_the_methods():
    loss = losses.sft_loss(LOGPS, MASK)
    np.testing.assert_allclose(loss, [[1, 2, 6], [4, 0, 0]], **CLOSE)
    np.testing.assert_allclose(losses.token_mean(loss, MASK), (1 + 2 + 6 + 4) / 4, **CLOSE)
    np.testing.assert_allclose(losses.sequence_mean(loss, MASK), (9 / 3 + 4) / 2, **CLOSE)


def test_it_is_cross_entropy_of_log_probs():
    logits = f([[0, 1, 2], [2, 0, 1]])
    targets = jnp.asarray([[2, 1]])
    normalizer = np.log(1 + np.e + np.exp(2))
    logps = f([2 - normalizer, 0 - normalizer])
    np.testing.assert_allclose(losses.sft_loss(logps), losses.cross_entropy_loss(logits, targets), **CLOSE)
