"""REINFORCE and PPO's clip: values, limits, and the gradient on each side of the clip, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


REWARDS = f(1.0, -2.0, 0.5)


def expected_loss(logits, loss):
    """A loss [1, T] of every token of the vocabulary, averaged over tokens sampled from the policy."""
    logps = jax.nn.log_softmax(logits)[None]
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(logps)) * loss(logps, REWARDS[None]))


@pytest.mark.parametrize(
    "loss",
    [
        losses.reinforce_loss,
        losses.gpg_loss,
        lambda logps, a: losses.ppo_policy_loss(logps, logps, a),
        lambda logps, a: losses.grpo_loss(logps, logps, a),
        lambda logps, a: losses.cispo_loss(logps, logps, a),
    ],
    ids=["reinforce", "gpg", "ppo", "grpo", "cispo"],
)
def test_on_policy_the_expected_gradient_is_that_of_the_expected_reward(loss):
    logits = f(0.3, -1.0, 2.0)
    reward = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * REWARDS))(logits)
    np.testing.assert_allclose(jax.grad(expected_loss)(logits, loss), -reward, atol=1e-6)


def test_reinforce_by_hand():
    np.testing.assert_allclose(
        losses.reinforce_loss(f([-1, -2], [-3, -4]), f(2, -1)), [[2 * 1, 2 * 2], [-3, -4]]
    )
    np.testing.assert_allclose(losses.reinforce_loss(f([-1, -2]), f([2, -1])), [[2 * 1, -2]])


# ratio, advantage, options -> loss, gradient by the log-prob; clip 0.2 on both sides unless said otherwise.
CLIP = [
    ("inside", 1.1, 1, {}, -1.1, -1.1),
    ("good, too high: clipped", 2.0, 1, {}, -1.2, 0.0),
    ("good, too low: kept", 0.5, 1, {}, -0.5, -0.5),
    ("bad, too low: clipped", 0.5, -1, {}, 0.8, 0.0),
    ("bad, too high: kept", 2.0, -1, {}, 2.0, 2.0),
    ("clip higher", 1.4, 1, {"clip_high": 0.5}, -1.4, -1.4),
    ("clip higher, too high", 2.0, 1, {"clip_high": 0.5}, -1.5, 0.0),
    ("clip lower, too low", 0.5, -1, {"clip_low": 0.4}, 0.6, 0.0),
    ("dual clip, bad and far too high", 9.0, -1, {"dual_clip": 3.0}, 3.0, 0.0),
    ("dual clip, bad below it", 2.0, -1, {"dual_clip": 3.0}, 2.0, 2.0),
    ("dual clip leaves good ones", 2.0, 1, {"dual_clip": 1.1}, -1.2, 0.0),
    ("no advantage", 2.0, 0, {}, 0.0, 0.0),
]


@pytest.mark.parametrize("loss", [losses.ppo_policy_loss, losses.grpo_loss], ids=["ppo", "grpo"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "value", "slope"), [c[1:] for c in CLIP], ids=[c[0] for c in CLIP]
)
def test_each_side_of_the_clip_by_hand(loss, ratio, advantage, options, value, slope):
    def total(logps):
        return loss(logps, f([-1]), f([advantage]), **options).sum()

    found, gradient = jax.value_and_grad(total)(f([-1 + np.log(ratio)]))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[slope]], rtol=1e-6)


def test_where_the_policies_are_equal_the_loss_is_minus_the_advantage():
    logps, advantages = jax.random.normal(jax.random.key(0), (2, 3, 4))
    np.testing.assert_allclose(losses.ppo_policy_loss(logps, logps, advantages), -advantages)


def test_beyond_20_nats_a_ratio_neither_grows_nor_learns():
    def total(logps):
        return losses.ppo_policy_loss(logps, f([0]), f([-1])).sum()

    value, gradient = jax.value_and_grad(total)(f([1e4]))
    np.testing.assert_allclose(value, np.exp(20.0), rtol=1e-6)
    assert gradient == 0


def test_one_advantage_a_row_is_one_for_each_of_its_tokens():
    logps, old = jax.random.normal(jax.random.key(0), (2, 3, 4))
    rows = f(1, -2, 0.5)
    np.testing.assert_array_equal(
        losses.ppo_policy_loss(logps, old, rows),
        losses.ppo_policy_loss(logps, old, jnp.broadcast_to(rows[:, None], (3, 4))),
    )
