"""GMPO: each log-ratio is clipped, then the geometric mean is taken."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def total(logps, advantage, **options):
    return losses.gmpo_loss(logps, f([0, 0]), f(advantage), **options).sum()


def test_value_and_gradient_by_hand():
    # log-ratios 0.9 and 0.1, of which 0.4 and 0.1 count for a good completion: the mean is 0.25.
    value, gradient = jax.value_and_grad(total)(f([0.9, 0.1]), 2)
    np.testing.assert_allclose(value, -2 * np.exp(0.25), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, -2 * np.exp(0.25) / 2]], rtol=1e-6)
    # For a bad one the upper side is free: the mean is 0.5.
    value, gradient = jax.value_and_grad(total)(f([0.9, 0.1]), -2)
    np.testing.assert_allclose(value, 2 * np.exp(0.5), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[np.exp(0.5), np.exp(0.5)]], rtol=1e-6)


def test_the_lower_side_is_clipped_for_bad_completions_alone():
    np.testing.assert_allclose(total(f([-0.9, 0.1]), -2), 2 * np.exp((-0.4 + 0.1) / 2), rtol=1e-6)
    np.testing.assert_allclose(total(f([-0.9, 0.1]), 2), -2 * np.exp((-0.9 + 0.1) / 2), rtol=1e-6)


def test_without_clipping_it_is_gspo():
    logps, old = 0.3 * jax.random.normal(jax.random.key(0), (2, 3, 4))
    advantages = f(1, -2, 0.5)
    np.testing.assert_allclose(
        losses.gmpo_loss(logps, old, advantages, clip_low=9.0, clip_high=9.0),
        losses.gspo_loss(logps, old, advantages, clip_low=1.0, clip_high=99.0),
        rtol=1e-5,
    )
