import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def test_regression_by_hand():
    np.testing.assert_allclose(losses.reward_regression_loss(f(3, 1), f(1, 1)), [4, 0])


def test_huber_is_the_square_near_and_linear_far():
    loss = losses.reward_regression_loss(f(0.5, -0.5, 1, 3, -3), f(0, 0, 0, 0, 0), huber_delta=1.0)
    np.testing.assert_allclose(loss, [0.25, 0.25, 1, 2 * 3 - 1, 2 * 3 - 1])


def test_huber_with_a_wide_delta_is_the_square():
    rewards, targets = jax.random.normal(jax.random.key(0), (2, 9))
    np.testing.assert_allclose(
        losses.reward_regression_loss(rewards, targets, huber_delta=100.0),
        losses.reward_regression_loss(rewards, targets),
        rtol=1e-6,
    )


def test_huber_bounds_the_gradient():
    gradient = jax.grad(lambda x: losses.reward_regression_loss(x, f(0, 0, 0), huber_delta=1.0).sum())
    np.testing.assert_allclose(gradient(f(0.5, 30, -30)), [1, 2, -2])


def test_objectives_without_a_label_cost_nothing():
    # Two objectives; the second row was rated for the first only.
    rewards, targets = f([1, 2], [3, 4]), f([0, 0], [0, np.nan])
    loss = losses.reward_regression_loss(rewards, targets, jnp.asarray([[1, 1], [1, 0]]))
    np.testing.assert_array_equal(loss, [[1, 4], [9, 0]])


def test_binary_labels_by_hand():
    loss = losses.reward_bce_loss(f(np.log(3), np.log(3)), jnp.asarray([True, False]))
    np.testing.assert_allclose(loss, [-np.log(3 / 4), -np.log(1 / 4)], rtol=1e-6)


def test_a_soft_label_is_smallest_at_its_log_odds():
    gradient = jax.grad(lambda x: losses.reward_bce_loss(x, f(0.75)).sum())
    assert gradient(f(np.log(3) - 0.1))[0] < 0 < gradient(f(np.log(3) + 0.1))[0]
    np.testing.assert_allclose(gradient(f(np.log(3))), [0], atol=1e-7)


def test_binary_label_of_a_difference_is_bradley_terry():
    a, b = jax.random.normal(jax.random.key(0), (2, 5))
    np.testing.assert_allclose(
        losses.reward_bce_loss(a - b, jnp.ones(5, bool)), losses.bradley_terry_loss(a, b), rtol=1e-5
    )


def test_steps_are_judged_where_they_end():
    logits = f([9, np.log(3), 9, 0], [np.log(3), 9, 9, 9])
    labels = jnp.asarray([[-100, 1, -100, 1], [0, -100, -100, -100]])
    loss = losses.process_reward_loss(logits, labels, labels != -100)
    expected = [[0, -np.log(3 / 4), 0, np.log(2)], [-np.log(1 / 4), 0, 0, 0]]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_head_of_two_classes_is_the_same_loss():
    two = jax.random.normal(jax.random.key(0), (2, 3, 2))
    labels = jnp.asarray([[0, 1, 1], [1, 0, 1]])
    np.testing.assert_allclose(
        losses.process_reward_loss(two[..., 1] - two[..., 0], labels),
        losses.cross_entropy_loss(two, labels),
        rtol=1e-5,
    )
