"""GAE, whitening, and advantages over a batch: by hand and by definition."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


gae = losses.generalized_advantage_estimation


def test_gae_by_hand():
    # values[t] is the value before token t. deltas: 1 + 0.5 * 4 - 2 = 1 and 3 + 0 - 4 = -1.
    advantages, returns = gae(f([1, 3]), f([2, 4]), f([1, 1]), gamma=0.5, lam=0.5)
    np.testing.assert_allclose(advantages, [[1 + 0.25 * -1, -1]])
    np.testing.assert_allclose(returns, [[0.75 + 2, -1 + 4]])


def test_a_row_that_was_cut_goes_on_with_its_bootstrap_value():
    advantages, _ = gae(f([1, 3]), f([2, 4]), f([1, 1]), gamma=0.5, lam=0.5, bootstrap_values=f(8))
    last = 3 + 0.5 * 8 - 4
    np.testing.assert_allclose(advantages, [[1 + 0.25 * last, last]])


def test_gae_carries_over_masked_steps_inside_a_row():
    whole = gae(f([1, 3]), f([2, 4]), f([1, 1]), gamma=0.5, lam=0.5, bootstrap_values=f(8))
    gaps = gae(
        f([9, 1, 9, 9, 3, 9]),
        f([9, 2, 9, 9, 4, 9]),
        f([0, 1, 0, 0, 1, 0]),
        gamma=0.5,
        lam=0.5,
        bootstrap_values=f(8),
    )
    for one, other in zip(whole, gaps, strict=True):
        np.testing.assert_array_equal(other, [[0, one[0, 0], 0, 0, one[0, 1], 0]])


def test_lambda_0_is_the_residual_and_lambda_1_the_return_less_the_value():
    rewards, values, mask = f([1, 3, -2]), f([2, 4, 0.5]), f([1, 1, 1])
    residual, _ = gae(rewards, values, mask, gamma=0.5, lam=0.0)
    np.testing.assert_allclose(residual, [[1 + 0.5 * 4 - 2, 3 + 0.5 * 0.5 - 4, -2 - 0.5]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=1.0)
    np.testing.assert_allclose(returns, [[1 + 0.5 * 3 + 0.25 * -2, 3 + 0.5 * -2, -2]])
    np.testing.assert_allclose(advantages, returns - values)


def test_fractional_rewards_are_not_truncated():
    # An integer reward tensor would make these 0 and -1.
    rewards = f([0.7], [-1.9])
    _, returns = gae(rewards, jnp.zeros((2, 1)), jnp.ones((2, 1), bool), gamma=1.0, lam=0.95)
    np.testing.assert_allclose(returns, rewards)


def test_whiten_by_hand():
    root = np.sqrt(2)
    np.testing.assert_allclose(
        losses.whiten(f([1, 3, 99]), f([1, 1, 0])), [[-1 / root, 1 / root, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(losses.whiten(f([1, 3]), None, unbiased=False), [[-1, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        losses.whiten(f([1, 3]), None, shift_mean=False), [[2 - 1 / root, 2 + 1 / root]], rtol=1e-6
    )


def test_whiten_of_one_counted_value_is_finite():
    mask = f([0, 1, 0])
    np.testing.assert_array_equal(losses.whiten(f([5, 7, 9]), mask), 0)
    np.testing.assert_array_equal(losses.whiten(f([5, 7, 9]), mask, shift_mean=False), [[0, 7, 0]])


@given(
    value=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    counted=st.lists(st.booleans(), min_size=8, max_size=8),
)
@settings(max_examples=25, deadline=None)
def test_equal_values_have_no_advantage_whatever_they_are(value, counted):
    # A mean with its rounding would leave 1e-7 of the value, over a standard deviation as small.
    x, mask = jnp.full(8, value, jnp.float32), jnp.asarray(counted)
    np.testing.assert_array_equal(losses.whiten(x, mask), 0)
    for epsilon in (1e-4, 0.0):
        np.testing.assert_array_equal(losses.global_batch_advantages(x, mask, epsilon=epsilon), 0)
        np.testing.assert_array_equal(losses.group_advantages(x, 4, mask, epsilon=epsilon), 0)
    np.testing.assert_array_equal(losses.group_advantages(x, 4, mask, scale="batch"), 0)
    np.testing.assert_array_equal(losses.leave_one_out_advantages(x, 4, mask), 0)


def test_global_batch_advantages_by_hand():
    # Mean 2, standard deviation of the sample sqrt(2).
    np.testing.assert_allclose(
        losses.global_batch_advantages(f(1, 3, 99), jnp.asarray([True, True, False]), epsilon=0.5),
        [-1 / (np.sqrt(2) + 0.5), 1 / (np.sqrt(2) + 0.5), 0],
        rtol=1e-6,
    )


def test_remax_is_the_reward_above_the_greedy_one():
    np.testing.assert_allclose(losses.remax_advantages(f(1, 0, 3), f(0.5, 1, 3)), [0.5, -1, 0])


def test_reinforce_plus_plus_by_hand():
    # KL of the tokens 1 and 2, the masked one in between not counted.
    old, ref, mask = f([-1, -9, -2]), f([-2, -5, -4]), f([1, 0, 1])
    returns = losses.reinforce_plus_plus_advantages(f(5), old, ref, mask, beta=0.1, normalize=False)
    np.testing.assert_allclose(returns, [[5 - 0.1 * (1 + 2), 0, 5 - 0.1 * 2]], rtol=1e-6)
    whitened = losses.reinforce_plus_plus_advantages(f(5), old, ref, mask, beta=0.1)
    np.testing.assert_allclose(whitened, [[-1 / np.sqrt(2), 0, 1 / np.sqrt(2)]], rtol=1e-4)


@pytest.mark.long
def test_reinforce_plus_plus_in_parts_with_the_batchs_statistics_is_the_whole():
    rng = np.random.default_rng(0)
    old, ref = jnp.asarray(rng.standard_normal((2, 4, 3)), jnp.float32)
    rewards, mask = f(1, -1, 2, 0), jnp.asarray(rng.random((4, 3)) < 0.7)
    call = losses.reinforce_plus_plus_advantages
    returns = np.asarray(call(rewards, old, ref, mask, beta=0.1, normalize=False), np.float64)[mask]
    whole = {"mean": float(returns.mean()), "variance": float(returns.var(ddof=1))}
    parts = [call(rewards[r], old[r], ref[r], mask[r], beta=0.1, **whole) for r in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(np.concatenate(parts), call(rewards, old, ref, mask, beta=0.1), atol=2e-6)
