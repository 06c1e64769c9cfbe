import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses

X, Y = [3.0, 0.0], [0.0, 0.5]


def test_value_by_hand():
    # Similarities 1 with the own positive and 0 with the other, whatever the lengths.
    loss = losses.info_nce_loss(jnp.asarray([X, Y]), jnp.asarray([X, Y]), temperature=0.5)
    np.testing.assert_allclose(loss, 2 * [np.log(1 + np.exp(-2))], rtol=1e-6)


def test_negatives_join_the_denominator():
    loss = losses.info_nce_loss(
        jnp.asarray([X, Y]), jnp.asarray([X, Y]), temperature=0.5, negatives=-2 * jnp.asarray([X])
    )
    first, second = np.log(1 + np.exp(-2) + np.exp(-4)), np.log(1 + 2 * np.exp(-2))
    np.testing.assert_allclose(loss, [first, second], rtol=1e-6)


def test_where_all_are_alike_it_is_the_log_of_their_number():
    same = jnp.ones((3, 4))
    loss = losses.info_nce_loss(same, same, negatives=jnp.ones((2, 4)))
    np.testing.assert_allclose(loss, 3 * [np.log(5)], rtol=1e-6)


def test_one_pair_alone_costs_nothing():
    np.testing.assert_array_equal(losses.info_nce_loss(jnp.asarray([X]), jnp.asarray([Y])), [0])


def test_the_lengths_of_vectors_do_not_count():
    a, k = jax.random.normal(jax.random.key(0), (2, 4, 6))
    scale = jnp.asarray([[1e-8], [0.1], [10.0], [1e8]])
    np.testing.assert_allclose(losses.info_nce_loss(a * scale, k), losses.info_nce_loss(a, k), rtol=1e-5)


def test_gradients_draw_a_pair_together_and_push_the_others_away():
    def loss(anchor, positive, negative):
        return losses.info_nce_loss(anchor, positive, temperature=1.0, negatives=negative).sum()

    away = [jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.0, 1.0]]), jnp.asarray([[0.0, 1.0]])]
    _, positive, negative = jax.grad(loss, (0, 1, 2))(*away)
    assert positive[0, 0] < 0 < negative[0, 0]


def test_a_zero_vector_is_alike_to_nothing_and_has_a_finite_gradient():
    anchors = jnp.asarray([[0.0, 0.0], X])
    value, gradient = jax.value_and_grad(lambda a: losses.info_nce_loss(a, jnp.asarray([X, Y])).sum())(
        anchors
    )
    np.testing.assert_allclose(value, np.log(2) + 1 / 0.07, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_negatives_of_another_width_are_named():
    with pytest.raises(AssertionError, match="negatives has shape"):
        inspect.unwrap(losses.info_nce_loss)(jnp.ones((2, 3)), jnp.ones((2, 3)), negatives=jnp.ones((2, 4)))
