"""WPO's weights."""

import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from jaxalign.logprobs import linear_logprobs
from tests.losses.arithmetic import CLOSE, f


def test_value_by_hand():
    logps = jnp.log(f([0.5, 0.1, 0.9], [0.2, 0.2, 0.2]))
    squares = f([0.25, 0.4, jnp.nan], [0.2, 0.2, 0.2])
    mask = jnp.asarray([[True, True, False], [False, False, False]])
    weights = losses.wpo_weights(logps, squares, mask)
    np.testing.assert_allclose(weights, [np.sqrt(0.5 / 0.25 * 0.1 / 0.4), 0.0], **CLOSE)


def test_certain_and_uniform_policies_weigh_one():
    certain = losses.wpo_weights(f([0, 0]), f([1, 1]))
    uniform = losses.wpo_weights(jnp.log(f([1 / 8, 1 / 8])), f([1 / 8, 1 / 8]))
    np.testing.assert_allclose([certain, uniform], [[1.0], [1.0]], **CLOSE)


def test_what_the_policy_would_not_write_weighs_little():
    weights = losses.wpo_weights(f([-1, -1], [-9, -9]), f([0.4, 0.4], [0.4, 0.4]))
    assert weights[1] < 1e-3 < weights[0]


def test_it_reads_the_statistics_of_linear_logprobs():
    rng = np.random.default_rng(0)
    hidden, embedding = f(*rng.standard_normal((2, 3, 4))), f(*rng.standard_normal((6, 4)))
    targets = jnp.asarray(rng.integers(0, 6, (2, 3)))
    found = linear_logprobs(hidden, embedding, targets)
    logits = np.asarray(hidden, np.float64) @ np.asarray(embedding, np.float64).T
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    own = np.take_along_axis(p, np.asarray(targets)[..., None], -1)[..., 0]
    expected = np.exp(np.mean(np.log(own / np.square(p).sum(-1)), axis=1))
    np.testing.assert_allclose(losses.wpo_weights(found.logps, found.sum_squared_probs), expected, rtol=1e-5)
