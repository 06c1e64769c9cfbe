import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import logprobs, losses


def test_value_by_hand():
    loss = losses.dft_loss(jnp.log(jnp.asarray([[1 / 2, 1 / 8, 1.0]])))
    np.testing.assert_allclose(loss, [[np.log(2) / 2, np.log(8) / 8, 0]], rtol=1e-6)


def test_never_above_one_over_e():
    loss = losses.dft_loss(-jnp.linspace(0.0, 30.0, 301)[None])
    assert loss.max() <= 1 / np.e + 1e-7


def test_gradient_by_log_prob_is_minus_the_probability():
    logps = jnp.log(jnp.asarray([[1 / 2, 1 / 8, 1.0]]))
    gradient = jax.grad(lambda x: losses.dft_loss(x).sum())(logps)
    np.testing.assert_allclose(gradient, [[-1 / 2, -1 / 8, -1]], rtol=1e-6)


def test_gradient_by_logits_is_that_of_minus_the_probability():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    targets = jnp.asarray([[0, 1, 2], [3, 4, 0]])
    ours = jax.grad(lambda x: losses.dft_loss(logprobs.token_logprobs(x, targets)).sum())(logits)
    probability = jax.grad(lambda x: -jnp.exp(logprobs.token_logprobs(x, targets)).sum())(logits)
    np.testing.assert_allclose(ours, probability, rtol=1e-5, atol=1e-7)


def test_takes_what_linear_logprobs_gives():
    keys = jax.random.split(jax.random.key(1))
    hidden, embedding = jax.random.normal(keys[0], (2, 3, 4)), jax.random.normal(keys[1], (6, 4))
    targets, mask = jnp.zeros((2, 3), jnp.int32), jnp.asarray([[1, 1, 0], [1, 0, 0]])
    statistics = logprobs.linear_logprobs(hidden, embedding, targets, mask)
    loss = losses.dft_loss(statistics.logps, mask)
    p = jax.nn.softmax(hidden @ embedding.T)[..., 0]
    np.testing.assert_allclose(loss, jnp.where(mask == 1, -p * jnp.log(p), 0.0), rtol=1e-5)
