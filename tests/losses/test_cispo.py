"""CISPO: the weight is capped, the gradient goes on."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def value_and_slope(ratio, advantage, **options):
    def total(logps):
        return losses.cispo_loss(logps, f([-1]), f(advantage), **options).sum()

    value, gradient = jax.value_and_grad(total)(f([-1 + np.log(ratio)]))
    return float(value), float(gradient[0, 0])


def test_value_and_gradient_by_hand():
    logp = -1 + np.log(3.0)
    np.testing.assert_allclose(value_and_slope(3.0, 2), (-3 * 2 * logp, -3 * 2), rtol=1e-6)


def test_beyond_the_cap_a_token_still_learns_with_the_caps_weight():
    for advantage in (2, -2):
        np.testing.assert_allclose(value_and_slope(9.0, advantage, cap=4.0)[1], -4 * advantage, rtol=1e-6)


def test_the_cap_is_the_weight_itself_and_not_1_more():
    np.testing.assert_allclose(value_and_slope(3.0, 1, cap=0.28)[1], -0.28, rtol=1e-6)


def test_there_is_no_lower_clip():
    np.testing.assert_allclose(value_and_slope(0.01, 1)[1], -0.01, rtol=1e-5)


def test_below_the_cap_the_gradient_is_that_of_the_unclipped_ratio():
    logps, old = 0.3 * jax.random.normal(jax.random.key(0), (2, 3, 4))
    advantages = f(1, -2, 0.5)
    cispo = jax.grad(lambda x: losses.cispo_loss(x, old, advantages, cap=100.0).sum())(logps)
    plain = jax.grad(lambda x: losses.ppo_policy_loss(x, old, advantages, clip_low=1.0, clip_high=99.0).sum())
    np.testing.assert_allclose(cispo, plain(logps), rtol=1e-5)
