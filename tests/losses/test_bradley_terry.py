import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def softplus(x):
    """-log sigmoid(-x)."""
    return np.log1p(np.exp(x))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, softplus(-1.5)),
        ({"margin": 1.0}, softplus(-0.5)),
        ({"margin": f(1.0)}, softplus(-0.5)),
        ({"temperature": 3.0}, softplus(-0.5)),
        # The margin is not divided by the temperature.
        ({"temperature": 3.0, "margin": 0.25}, softplus(-0.25)),
        ({"label_smoothing": 0.1}, 0.9 * softplus(-1.5) + 0.1 * softplus(1.5)),
        ({"center_coefficient": 0.1}, softplus(-1.5) + 0.1 * 2.5**2),
    ],
)
def test_value_by_hand(options, expected):
    np.testing.assert_allclose(losses.bradley_terry_loss(f(2), f(0.5), **options), [expected], rtol=1e-6)


def test_equal_scores_cost_log_two():
    np.testing.assert_allclose(losses.bradley_terry_loss(f(7), f(7)), [np.log(2)], rtol=1e-6)


def test_gradient_raises_the_chosen_and_lowers_the_rejected():
    def loss(chosen, rejected):
        return losses.bradley_terry_loss(chosen, rejected).sum()

    chosen, rejected = jax.grad(loss, (0, 1))(f(0), f(0))
    np.testing.assert_allclose([chosen[0], rejected[0]], [-0.5, 0.5], rtol=1e-6)


def test_with_half_the_labels_flipped_only_centring_pulls():
    def loss(chosen, rejected):
        options = {"label_smoothing": 0.5, "center_coefficient": 0.1}
        return losses.bradley_terry_loss(chosen, rejected, **options).sum()

    # d/dc of 0.1 * (c + r)^2 at c = r = 1; equal scores have no slope of their own.
    np.testing.assert_allclose(jax.grad(loss, (0, 1))(f(1), f(1)), [[0.4], [0.4]], rtol=1e-6)


def test_integer_scores_do_not_truncate_a_margin():
    loss = losses.bradley_terry_loss(jnp.asarray([2]), jnp.asarray([1]), margin=0.5)
    np.testing.assert_allclose(loss, [softplus(-0.5)], rtol=1e-6)


def test_best_of_n_by_hand():
    # Probabilities 1/8, 2/8, 5/8.
    loss = losses.best_of_n_loss(f([0, np.log(2), np.log(5)]), jnp.asarray([1]))
    np.testing.assert_allclose(loss, [np.log(4)], rtol=1e-6)


def test_best_of_two_is_bradley_terry():
    a, b = jax.random.normal(jax.random.key(0), (2, 5))
    two = losses.best_of_n_loss(jnp.stack([a, b], 1), jnp.zeros(5, int))
    np.testing.assert_allclose(two, losses.bradley_terry_loss(a, b), rtol=1e-5)


def test_best_of_n_raises_the_best_and_lowers_all_others():
    gradient = jax.grad(lambda x: losses.best_of_n_loss(x, jnp.asarray([2])).sum())(f([1, 2, 3, 4]))
    np.testing.assert_array_equal(np.sign(gradient), [[1, 1, -1, 1]])
