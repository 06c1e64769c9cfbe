import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def test_value_by_hand():
    loss = losses.value_discrimination_loss(f(1.0, 1.0, 1.0), f(1.0, 0.75, 0.25), margin=0.5)
    np.testing.assert_allclose(loss, [0.5, 0.25, 0])


def test_any_shape_will_do():
    assert losses.value_discrimination_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), margin=0.1).shape == (2, 3)
    assert losses.value_discrimination_loss(f(1)[0], f(0)[0], margin=2) == 1


def test_gradient_parts_the_two_until_the_margin_is_reached():
    slopes = jax.grad(lambda w, r: losses.value_discrimination_loss(w, r, margin=0.5).sum(), (0, 1))
    np.testing.assert_array_equal(slopes(f(0, 2), f(0, 0))[0], [-1, 0])
    np.testing.assert_array_equal(slopes(f(0, 2), f(0, 0))[1], [1, 0])
