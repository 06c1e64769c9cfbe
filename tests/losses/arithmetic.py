"""What the values worked out by hand are written with."""

import jax
import jax.numpy as jnp
import numpy as np

LOG2 = np.log(2.0)
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def f(*values):
    """A float32 array of the numbers given."""
    return jnp.asarray(values, jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logistic(x):
    """-log sigmoid(x)."""
    return np.log1p(np.exp(-x))


def slopes(loss, *arrays):
    """Gradients of the summed loss by each array."""
    return jax.grad(lambda *x: jnp.sum(loss(*x)), tuple(range(len(arrays))))(*arrays)
