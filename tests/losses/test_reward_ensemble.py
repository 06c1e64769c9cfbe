import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses

# Two members, three completions.
REWARDS = jnp.asarray([[1.0, 5.0, 2.0], [3.0, 5.0, -4.0]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2, 5, -1]),
        ({"mode": "mean"}, [2, 5, -1]),
        ({"mode": "mean_minus_std"}, [2 - 1, 5, -1 - 3]),
        ({"mode": "mean_minus_std", "coefficient": 0.5}, [2 - 0.5, 5, -1 - 1.5]),
        ({"mode": "worst"}, [1, 5, -4]),
    ],
)
def test_value_by_hand(options, expected):
    np.testing.assert_allclose(losses.aggregate_ensemble(REWARDS, **options), expected)


def test_disagreement_divides_by_the_number_of_members():
    np.testing.assert_allclose(losses.ensemble_disagreement(REWARDS), [1, 0, 3])


def test_agreement_has_no_gradient_and_no_nan():
    gradient = jax.grad(lambda x: losses.ensemble_disagreement(x).sum())(REWARDS)
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5], [0.5, 0, -0.5]])


@pytest.mark.parametrize("mode", ["mean", "mean_minus_std", "worst"])
def test_one_member_decides_alone(mode):
    np.testing.assert_array_equal(losses.aggregate_ensemble(REWARDS[:1], mode=mode), REWARDS[0])


@pytest.mark.parametrize("mode", ["mean", "mean_minus_std", "worst"])
def test_completions_do_not_depend_on_each_other_nor_on_the_members_order(mode):
    rewards = jax.random.normal(jax.random.key(0), (4, 6))
    whole = losses.aggregate_ensemble(rewards, mode=mode)
    parts = [losses.aggregate_ensemble(rewards[:, i : i + 2], mode=mode) for i in (0, 2, 4)]
    np.testing.assert_allclose(jnp.concatenate(parts), whole, rtol=1e-6)
    np.testing.assert_allclose(losses.aggregate_ensemble(rewards[::-1], mode=mode), whole, atol=1e-6)


def test_an_unknown_mode_is_named():
    # The type hook of the tests would speak first.
    with pytest.raises(ValueError, match=r"mode must be .* got 'median'"):
        inspect.unwrap(losses.aggregate_ensemble)(REWARDS, mode="median")


def test_objectives_are_weighed_and_added():
    rewards = jnp.asarray([[1.0, 2.0], [3.0, -1.0]])
    shared = losses.combine_objectives(rewards, jnp.asarray([2.0, -0.5]))
    np.testing.assert_allclose(shared, [2 - 1, 6 + 0.5])
    each = losses.combine_objectives(rewards, jnp.asarray([[1.0, 0.0], [0.5, 0.5]]))
    np.testing.assert_allclose(each, [1, 1])


def test_a_gate_learns_from_the_scores():
    rewards = jnp.asarray([[1.0, 2.0], [3.0, -1.0]])
    gradient = jax.grad(lambda w: losses.combine_objectives(rewards, w).sum())(jnp.ones((2, 2)))
    np.testing.assert_array_equal(gradient, rewards)


def test_weights_of_another_number_of_objectives_are_named():
    with pytest.raises(AssertionError, match=r"weights has shape \(3,\)"):
        inspect.unwrap(losses.combine_objectives)(jnp.ones((2, 2)), jnp.ones(3))
