import jax.numpy as jnp
import numpy as np

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def test_value_by_hand():
    # log V: 1, 3 and (pinned) 0. d: 2 + 3 - 1 + 1 = 5, -1 + 0 - 3 + 2 = -2. Pairs: 5, -2 and 5 - 2.
    arguments = f([-1, -2]), f([2, -1]), f([1, 3, 9])
    np.testing.assert_allclose(losses.subtrajectory_balance_dense(*arguments), [(25 + 4 + 9) / 3], rtol=1e-6)
    weighted = losses.subtrajectory_balance_dense(*arguments, decay=0.5, reduction="sum")
    np.testing.assert_allclose(weighted, [0.5 * 25 + 0.5 * 4 + 0.25 * 9], rtol=1e-6)
    near = losses.subtrajectory_balance_dense(*arguments, window=1)
    np.testing.assert_allclose(near, [(25 + 4) / 2], rtol=1e-6)
