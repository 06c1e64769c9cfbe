"""The clipped value loss, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def test_without_a_clip_it_is_half_the_squared_error():
    np.testing.assert_allclose(losses.ppo_value_loss(f([2]), f([0]), f([3])), [[0.5 * (2 - 3) ** 2]])


def test_a_move_beyond_the_clip_counts_only_in_part_where_that_is_worse():
    # Moved by 2, of which 0.5 counts: the pessimistic error is from 0.5 to 3.
    np.testing.assert_allclose(
        losses.ppo_value_loss(f([2]), f([0]), f([3]), clip=0.5), [[0.5 * (3 - 0.5) ** 2]]
    )
    # Moved away from the target: the whole error is the worse one.
    np.testing.assert_allclose(
        losses.ppo_value_loss(f([-2]), f([0]), f([3]), clip=0.5), [[0.5 * (3 + 2) ** 2]]
    )


def test_a_clip_wider_than_the_move_changes_nothing():
    values, old, returns = jax.random.normal(jax.random.key(0), (3, 4, 5))
    np.testing.assert_allclose(
        losses.ppo_value_loss(values, old, returns, clip=100.0),
        losses.ppo_value_loss(values, old, returns),
        rtol=1e-6,
    )


def test_the_gradient_draws_the_value_to_the_return_until_it_is_clipped():
    def gradient(value, **options):
        total = lambda v: losses.ppo_value_loss(v, f([0]), f([3]), **options).sum()  # noqa: E731
        return float(jax.grad(total)(f([value]))[0, 0])

    assert gradient(2.0) == 2.0 - 3.0
    assert gradient(0.4, clip=0.5) == np.float32(0.4) - 3.0
    assert gradient(2.0, clip=0.5) == 0  # towards the return, beyond the clip
    assert gradient(-2.0, clip=0.5) == -2.0 - 3.0  # away from it: no clip
