"""RLOO: the completion is one action."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def test_value_and_gradient_by_hand():
    # log-ratios 0.2 and -0.1: the row's ratio is e^0.1.
    def total(logps):
        return losses.rloo_loss(logps, f([-1, -2]), f(3)).sum()

    value, gradient = jax.value_and_grad(total)(f([-0.8, -2.1]))
    np.testing.assert_allclose(value, -3 * np.exp(0.1), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-3 * np.exp(0.1)] * 2], rtol=1e-6)


def test_each_side_of_the_clip_by_hand():
    def gradient(log_ratio, advantage):
        total = lambda x: losses.rloo_loss(x, f([0, 0]), f(advantage)).sum()  # noqa: E731
        return jax.grad(total)(f([log_ratio, 0])).sum()

    assert gradient(0.5, 1) == 0
    assert gradient(-0.5, -1) == 0
    np.testing.assert_allclose(gradient(0.5, -1), 2 * np.exp(0.5), rtol=1e-6)
    np.testing.assert_allclose(gradient(-0.5, 1), -2 * np.exp(-0.5), rtol=1e-6)


def test_on_policy_its_gradient_is_reinforces():
    logps = -jax.random.exponential(jax.random.key(0), (4, 3))
    advantages = losses.leave_one_out_advantages(f(1, 0, 2, 5), 2)
    rloo = jax.grad(lambda x: losses.rloo_loss(x, logps, advantages).sum())(logps)
    reinforce = jax.grad(lambda x: losses.reinforce_loss(x, advantages).sum())(logps)
    np.testing.assert_allclose(rloo, reinforce, rtol=1e-6)


def test_long_rows_keep_their_precision():
    # Log-probs of 4,096 tokens sum to -3e4, where float32 steps are 2e-3; the ratio is of their differences.
    logps = jnp.full((1, 4096), -7.3)
    ratio = -losses.rloo_loss(logps + 1e-5, logps, f(1), clip_low=1.0, clip_high=9.0)
    difference = np.float64((logps + 1e-5)[0, 0]) - np.float64(logps[0, 0])
    np.testing.assert_allclose(ratio, [np.exp(4096 * difference)], rtol=1e-5)
