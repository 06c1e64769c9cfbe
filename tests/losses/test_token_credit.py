import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


# Differences 1, 0 and 2 nats: 1, 0 and 2 times their mean.
INSTRUCTION_PAIRS = f([-1, -3, -2]), f([-2, -3, -4])
ALL = jnp.ones((1, 3), bool)


def test_importance_by_hand():
    importance = losses.token_importance(*INSTRUCTION_PAIRS, ALL, temperature=2.0, epsilon=0.0)
    np.testing.assert_allclose(importance, [np.tanh([0.5, 0, 1])], rtol=1e-6)


def test_epsilon_is_added_to_the_mean():
    importance = losses.token_importance(*INSTRUCTION_PAIRS, ALL, epsilon=1.0)
    np.testing.assert_allclose(importance, [np.tanh([0.5, 0, 1])], rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_identical_faces_give_no_reward(epsilon):
    importance = losses.token_importance(INSTRUCTION_PAIRS[0], INSTRUCTION_PAIRS[0], ALL, epsilon=epsilon)
    np.testing.assert_array_equal(importance, 0)
    np.testing.assert_array_equal(
        losses.token_rewards(importance, jnp.asarray([True]), ALL, threshold=0.0), 0
    )


def test_swapping_the_faces_changes_nothing():
    np.testing.assert_array_equal(
        losses.token_importance(*INSTRUCTION_PAIRS, ALL),
        losses.token_importance(*INSTRUCTION_PAIRS[::-1], ALL),
    )


@pytest.mark.parametrize("scale", [0.25, 1000.0])
def test_only_differences_relative_to_their_mean_count(scale):
    base = losses.token_importance(*INSTRUCTION_PAIRS, ALL, epsilon=0.0)
    scaled = losses.token_importance(
        scale * INSTRUCTION_PAIRS[0], scale * INSTRUCTION_PAIRS[1], ALL, epsilon=0.0
    )
    np.testing.assert_allclose(scaled, base, rtol=1e-6)


def test_a_huge_difference_rounds_to_one_and_not_above():
    logps = f([-1, *[-1] * 99])
    importance = losses.token_importance(logps, logps.at[0, 0].set(-50.0), None)
    assert importance[0, 0] == 1


def test_prompt_tokens_have_no_reward_and_no_part_in_the_mean():
    prompt = f([-9, -1, -3, -2]), f([-1, -2, -3, -4])
    mask = jnp.asarray([[0, 1, 1, 1]])
    importance = losses.token_importance(*prompt, mask)
    np.testing.assert_allclose(importance[:, 1:], losses.token_importance(*INSTRUCTION_PAIRS, ALL), rtol=1e-6)
    rewards = losses.token_rewards(jnp.ones((1, 4)), jnp.asarray([True]), mask, threshold=0.5)
    np.testing.assert_array_equal(rewards, [[0, 1, 1, 1]])


def test_the_label_gives_the_sign_and_the_threshold_is_not_reached_by_equality():
    importance = f([0.25, 0.5, 0.75], [0.25, 0.5, 0.75])
    for preferred in (jnp.asarray([True, False]), jnp.asarray([1, 0])):
        rewards = losses.token_rewards(importance, preferred, None, threshold=0.5)
        np.testing.assert_array_equal(rewards, [[0, 0, 0.75], [0, 0, -0.75]])
