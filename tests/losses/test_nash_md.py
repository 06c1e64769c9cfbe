"""Nash-MD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, slopes


def nash(policy, ref, chance):
    return losses.nash_md_loss(policy, ref, chance, beta=0.5)


def test_value_and_slope_by_hand():
    policy, ref, chance = f(-2, -7), f(-4, -4), f(0.9, 0.1)
    factor = np.array([0.5 * 2 - 0.4, 0.5 * -3 + 0.4])
    np.testing.assert_allclose(nash(policy, ref, chance), factor * [-2, -7], **CLOSE)
    gradients = slopes(nash, policy, ref, chance)
    np.testing.assert_allclose(gradients[0], factor, **CLOSE)
    np.testing.assert_array_equal(gradients[1:], 0)


@pytest.mark.parametrize(("chance", "sign"), [(1.0, -1), (0.5, 0), (0.0, 1)])
def test_a_sample_that_wins_is_pushed_up(chance, sign):
    (slope,) = slopes(lambda x: nash(x, f(-3), f(chance)), f(-3))
    assert np.sign(slope) == sign


def test_the_expected_slope_is_that_of_the_objective():
    # Over all samples: KL(policy || ref) * beta - expected chance to win, as a function of the logits.
    rng = np.random.default_rng(0)
    logits, ref = f(*rng.standard_normal(5)), jax.nn.log_softmax(f(*rng.standard_normal(5)))
    chance = f(*rng.random(5))

    def objective(logits):
        logps = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logps) * (0.5 * (logps - ref) - chance))

    def sampled(logits):
        logps = jax.nn.log_softmax(logits)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(logps)) * nash(logps, ref, chance))

    np.testing.assert_allclose(jax.grad(sampled)(logits), jax.grad(objective)(logits), rtol=1e-4, atol=1e-6)
