"""The entropy term of a loss."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def test_it_rewards_entropy():
    def total(logits):
        logps = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(jnp.exp(logps) * logps, axis=-1)
        return losses.entropy_bonus(entropy, coefficient=0.1).sum()

    logits = f([2.0, 0.0])
    value, gradient = jax.value_and_grad(total)(logits)
    p = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(value, 0.1 * (p * np.log(p) + (1 - p) * np.log(1 - p)), rtol=1e-5)
    assert gradient[0, 0] > 0 > gradient[0, 1]  # a step down flattens the distribution
