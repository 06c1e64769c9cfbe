"""Advantages of groups, by hand, and what they do not depend on."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def test_group_advantages_by_hand():
    root = np.sqrt(2)
    np.testing.assert_allclose(losses.group_advantages(f(1, 3, 5, 5), 2, scale="none"), [-1, 1, 0, 0])
    np.testing.assert_allclose(
        losses.group_advantages(f(1, 3), 2, epsilon=0.0), [-1 / root, 1 / root], rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.group_advantages(f(1, 3, 5, 5), 2, epsilon=0.1),
        [-1 / (root + 0.1), 1 / (root + 0.1), 0, 0],
        rtol=1e-6,
    )
    # Over the batch: mean 3.5, squares 6.25 + 0.25 + 2.25 + 2.25 over 3.
    np.testing.assert_allclose(
        losses.group_advantages(f(1, 3, 5, 5), 2, scale="batch", epsilon=0.0),
        np.asarray([-1, 1, 0, 0]) / np.sqrt(11 / 3),
        rtol=1e-6,
    )


def test_masked_rows_do_not_enter_their_groups_statistics():
    mask = jnp.asarray([True, True, False])
    np.testing.assert_allclose(losses.group_advantages(f(1, 3, 9), 3, mask, scale="none"), [-1, 1, 0])
    two = losses.group_advantages(f(1, 3), 2)
    np.testing.assert_allclose(losses.group_advantages(f(1, 3, np.nan), 3, mask), [*two, 0], rtol=1e-6)
    np.testing.assert_allclose(losses.leave_one_out_advantages(f(1, 3, 9), 3, mask), [1 - 3, 3 - 1, 0])


@pytest.mark.parametrize("scale", ["std", "batch", "none"])
def test_a_group_with_one_counted_reward_has_no_advantage(scale):
    mask = jnp.asarray([False, True, True, True])
    found = losses.group_advantages(f(1, 3, 5, 6), 2, mask, scale=scale)
    np.testing.assert_array_equal(found[:2], 0)
    assert found[2] < 0 < found[3]
    np.testing.assert_allclose(losses.leave_one_out_advantages(f(1, 3, 5, 6), 2, mask), [0, 0, -1, 1])


def test_leave_one_out_by_hand():
    found = losses.leave_one_out_advantages(f(1, 2, 6), 3)
    np.testing.assert_allclose(found, [1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2], rtol=1e-6)


def test_leave_one_out_is_the_group_advantage_enlarged():
    rewards = f(1, 2, 6, -3, 0, 0.5)
    np.testing.assert_allclose(
        losses.leave_one_out_advantages(rewards, 3),
        3 / 2 * losses.group_advantages(rewards, 3, scale="none"),
        rtol=1e-6,
    )


def test_a_constant_added_to_a_group_changes_nothing_and_a_factor_only_epsilons_part():
    rewards, shift = f(1, 2, 6, -3, 0, 0.5), f(5, 5, 5, -7, -7, -7)
    plain = losses.group_advantages(rewards, 3, epsilon=0.0)
    np.testing.assert_allclose(losses.group_advantages(rewards + shift, 3, epsilon=0.0), plain, rtol=1e-6)
    np.testing.assert_allclose(losses.group_advantages(10 * rewards, 3, epsilon=0.0), plain, rtol=1e-6)


def test_large_rewards_keep_the_precision_of_their_differences():
    # At 1e6 a float32 step is 0.06; the differences themselves are exact.
    found = losses.group_advantages(f(1e6, 1e6 + 1, 1e6 + 2), 3, epsilon=0.0)
    np.testing.assert_allclose(found, [-1, 0, 1], atol=1e-6)


def test_integer_rewards_are_promoted():
    integers = jnp.asarray([0, 1, 1, 0])
    np.testing.assert_array_equal(
        losses.group_advantages(integers, 4), losses.group_advantages(integers.astype(jnp.float32), 4)
    )


def test_gpg_makes_up_for_groups_without_a_signal():
    # Two of three groups are all right or all wrong: the rest counts three times.
    rewards = f(1, 1, 0, 0, 0, 1)
    np.testing.assert_allclose(losses.gpg_advantages(rewards, 2), [0, 0, 0, 0, -1.5, 1.5])
    np.testing.assert_allclose(losses.gpg_advantages(rewards, 2, alpha=1.0), [0, 0, 0, 0, -0.5, 0.5])
    np.testing.assert_array_equal(losses.gpg_advantages(f(1, 1, 0, 0), 2), 0)


def test_a_middling_reward_is_no_lack_of_signal():
    # The second reward lies at its group's mean, but the group has a gradient: alpha is 1.
    np.testing.assert_allclose(losses.gpg_advantages(f(0, 1, 2), 3), [-1, 0, 1])


def test_the_baseline_form_of_reinforce_plus_plus_by_hand():
    # Centred: -1, 1, -3, 3; their deviation sqrt(20 / 3).
    found = losses.reinforce_plus_plus_baseline_advantages(f(1, 3, 2, 8), 2, epsilon=0.0)
    np.testing.assert_allclose(found, np.asarray([-1, 1, -3, 3]) / np.sqrt(20 / 3), rtol=1e-6)


def test_gdpo_by_hand():
    # Each kind is +-1/sqrt(2) in its group, whatever its size; weights 1 and 3 sum them.
    rewards, root = f([0, 500], [2, 100]), np.sqrt(2)
    found = losses.gdpo_advantages(rewards, 2, f(1, 3), epsilon=0.0, normalize=False)
    np.testing.assert_allclose(found, [(-1 + 3) / root, (1 - 3) / root], rtol=1e-6)
    found = losses.gdpo_advantages(rewards, 2, f(1, 3), epsilon=0.0)
    np.testing.assert_allclose(found, [1 / root, -1 / root], rtol=1e-6)


def test_gdpo_keeps_rewards_apart_that_a_sum_confuses():
    # (1, 0) and (0, 1) have the same sum in a group with (0, 0) and (1, 1), yet one is rarer in the other's.
    rewards = f([1, 0], [0, 1], [0, 0], [0, 1])
    apart = losses.gdpo_advantages(rewards, 4)
    summed = losses.group_advantages(rewards.sum(1), 4)
    assert summed[0] == summed[1]
    assert apart[0] > apart[1] + 0.1


def test_gdpo_in_parts_with_the_batchs_statistics_is_the_whole():
    rewards = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)
    total = np.asarray(losses.gdpo_advantages(rewards, 4, normalize=False), np.float64)
    whole = {"mean": float(total.mean()), "std": float(total.std(ddof=1))}
    parts = [losses.gdpo_advantages(rewards[r], 4, **whole) for r in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(np.concatenate(parts), losses.gdpo_advantages(rewards, 4), atol=2e-6)


def test_an_unknown_scale_is_named():
    with pytest.raises(Exception, match="batches"):
        losses.group_advantages(f(1, 2), 2, scale="batches")


def test_process_advantages_by_hand():
    # Two completions: steps of rewards 1 and 0 that end at tokens 1 and 3; one step of reward 1/2 at token 2.
    rewards = jnp.asarray([[np.nan, 1, np.nan, 0], [7, np.nan, 0.5, np.nan]], jnp.float32)
    steps = jnp.asarray([[0, 1, 0, 1], [0, 0, 1, 0]])
    mask = jnp.asarray([[1, 1, 1, 1], [0, 1, 1, 1]])
    found = losses.process_group_advantages(rewards, steps, 2, mask, epsilon=0.0)
    # The three rewards have mean 1/2 and deviation 1/2: 1, -1 and 0.
    np.testing.assert_allclose(found, [[1 - 1, 1 - 1, -1, -1], [0, 0, 0, 0]], atol=1e-6)
    # The last step is a quarter better: mean 7/12, squares of (5, -7, 2)/12 over 2; then what is to come.
    found = losses.process_group_advantages(rewards.at[1, 2].set(0.75), steps, 2, mask, epsilon=0.1)
    scale = np.sqrt((5**2 + 7**2 + 2**2) / 2) / 12 + 0.1
    expected = np.asarray([[5 - 7, 5 - 7, -7, -7], [0, 2, 2, 0]]) / 12 / scale
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_one_step_a_completion_is_outcome_supervision():
    rewards, last = f(1, 2, 6, -3, 0, 0.5), jnp.zeros((6, 3)).at[:, 2].set(1)
    found = losses.process_group_advantages(rewards[:, None] * last, last, 3)
    np.testing.assert_allclose(
        found, losses.group_advantages(rewards, 3)[:, None] * jnp.ones((6, 3)), rtol=1e-6
    )
