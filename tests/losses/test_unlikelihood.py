import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import logprobs, losses


def slope(logp):
    return jax.grad(lambda x: losses.unlikelihood_loss(x).sum())(jnp.full((1, 1), logp, jnp.float32))[0, 0]


def test_value_by_hand():
    loss = losses.unlikelihood_loss(jnp.log(jnp.asarray([[1 / 2, 1 / 4, 7 / 8]])))
    np.testing.assert_allclose(loss, [[np.log(2), np.log(4 / 3), np.log(8)]], rtol=1e-6)


@pytest.mark.parametrize("logp", [-1e-5, -1e-3, -0.5, -0.8, -5.0, -30.0])
def test_small_and_large_probabilities_keep_their_digits(logp):
    exact = float(np.float32(logp))
    loss = losses.unlikelihood_loss(jnp.full((1, 1), logp, jnp.float32))
    np.testing.assert_allclose(loss, [[-np.log1p(-np.exp(exact))]], rtol=1e-6)
    np.testing.assert_allclose(slope(logp), 1 / np.expm1(-exact), rtol=1e-6)


@pytest.mark.parametrize("logp", [-1e-7, 0.0, 1e-7])
def test_certainty_has_a_finite_loss_that_still_pushes_down(logp):
    # -log(1e-6) at the point of contact, and 1e6 for each nat beyond it.
    loss = losses.unlikelihood_loss(jnp.full((1, 1), logp, jnp.float32))
    np.testing.assert_allclose(loss, [[-np.log(1e-6) + 1e6 * (logp + 1e-6)]], rtol=1e-5)
    np.testing.assert_allclose(slope(logp), 1e6, rtol=1e-5)


@pytest.mark.parametrize("gap", [5.0, 12.0, 14.5, 16.0])
def test_gradient_by_logits_stays_of_order_one(gap):
    # Two tokens, the unwanted one ahead by `gap` nats: by its logit the exact slope is p.
    logits = jnp.asarray([[[gap, 0.0]]])
    gradient = jax.grad(
        lambda x: losses.unlikelihood_loss(logprobs.token_logprobs(x, jnp.zeros((1, 1), int))).sum()
    )(logits)
    assert 0.1 <= gradient[0, 0, 0] <= 1.2
