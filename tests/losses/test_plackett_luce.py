import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses

# Weights 1, 2, 5 of three candidates.
REWARDS = jnp.log(jnp.asarray([[1.0, 2.0, 5.0]]))


def test_value_by_hand():
    # Third, then first of the two left.
    loss = losses.plackett_luce_loss(REWARDS, jnp.asarray([[2, 0, 1]]))
    np.testing.assert_allclose(loss, [-np.log(5 / 8 * 1 / 3)], rtol=1e-6)


def test_chances_of_all_rankings_add_up_to_one():
    orders = jnp.asarray([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    loss = losses.plackett_luce_loss(jnp.tile(REWARDS, (6, 1)), orders)
    np.testing.assert_allclose(np.exp(-loss).sum(), 1, rtol=1e-6)


def test_equal_scores_cost_log_of_the_number_of_rankings():
    loss = losses.plackett_luce_loss(jnp.full((1, 4), 3.0), jnp.asarray([[3, 1, 0, 2]]))
    np.testing.assert_allclose(loss, [np.log(24)], rtol=1e-6)


def test_two_candidates_are_bradley_terry():
    rewards = jax.random.normal(jax.random.key(0), (6, 2))
    loss = losses.plackett_luce_loss(rewards, jnp.tile(jnp.asarray([[1, 0]]), (6, 1)))
    np.testing.assert_allclose(loss, losses.bradley_terry_loss(rewards[:, 1], rewards[:, 0]), rtol=1e-5)


def test_top_one_is_best_of_n():
    rewards = jax.random.normal(jax.random.key(1), (6, 4))
    ranking = jnp.argsort(jax.random.normal(jax.random.key(2), (6, 4)), axis=1)
    loss = losses.plackett_luce_loss(rewards, ranking, top=1)
    np.testing.assert_allclose(loss, losses.best_of_n_loss(rewards, ranking[:, 0]), rtol=1e-5)
    traced = jax.jit(lambda top: losses.plackett_luce_loss(rewards, ranking, top=top))(1)
    np.testing.assert_allclose(traced, loss, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_an_unlisted_candidate_plays_no_part_whatever_its_score(bad, place):
    listed = [c for c in (1, 3) if c != place]
    rewards = jnp.asarray([[1.0, 2.0, 3.0, 5.0]]).at[0, place].set(bad)
    ranking, mask = jnp.asarray([[*listed, 99, -1]]), jnp.asarray([[1, 1, 0, 0]])
    value, gradient = jax.value_and_grad(lambda x: losses.plackett_luce_loss(x, ranking, mask).sum())(rewards)
    np.testing.assert_allclose(value, np.log1p(np.exp(5 - 2)), rtol=1e-6)
    chance = 1 / (1 + np.exp(2 - 5))
    np.testing.assert_allclose(gradient, [[0, -chance, 0, chance]], rtol=1e-6)


def test_an_empty_ranking_costs_nothing():
    ranking, mask = jnp.full((1, 3), -1), jnp.zeros((1, 3), bool)
    value, gradient = jax.value_and_grad(lambda x: losses.plackett_luce_loss(x, ranking, mask).sum())(REWARDS)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_gradient_raises_the_first_and_lowers_the_last():
    ranking = jnp.asarray([[2, 0, 1]])
    gradient = jax.grad(lambda x: losses.plackett_luce_loss(x, ranking).sum())(jnp.zeros((1, 3)))
    # First place: 1/3 - 1. Second: 1/3 + 1/2 - 1. Third: 1/3 + 1/2, and its own certain choice.
    np.testing.assert_allclose(gradient, [[-1 / 6, 5 / 6, -2 / 3]], rtol=1e-5)
