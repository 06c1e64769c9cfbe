"""BCO, of pairs and of labelled completions."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, LOG2, f, logistic, slopes

FOUR = f(-2), f(-7), f(-3), f(-4)  # rewards 0.5 and -1.5 at beta 0.5


def test_pairs_by_hand():
    np.testing.assert_allclose(
        losses.bco_pair_loss(*FOUR, beta=0.5), [logistic(0.5) + logistic(1.5)], **CLOSE
    )
    shifted = losses.bco_pair_loss(*FOUR, beta=0.5, delta=0.2)
    np.testing.assert_allclose(shifted, [logistic(0.5 - 0.2) + logistic(1.5 + 0.2)], **CLOSE)
    np.testing.assert_allclose(losses.bco_pair_loss(*FOUR[:2], *FOUR[:2], beta=0.5), [2 * LOG2], **CLOSE)


def test_a_pair_is_its_two_completions():
    policy, ref = jnp.concatenate(FOUR[:2]), jnp.concatenate(FOUR[2:])
    two = losses.bco_loss(policy, ref, jnp.asarray([True, False]), beta=0.5, delta=0.2)
    np.testing.assert_allclose(two.sum()[None], losses.bco_pair_loss(*FOUR, beta=0.5, delta=0.2), rtol=1e-6)


def test_weights_by_hand():
    policy, ref, label = f(-2, -7, -7), f(-3, -4, -4), jnp.asarray([True, False, False])
    each = losses.bco_loss(
        policy, ref, label, beta=0.5, delta=0.0, desirable_weight=3.0, undesirable_weight=f(9, 2, 0.5)
    )
    np.testing.assert_allclose(each, [3 * logistic(0.5), 2 * logistic(1.5), 0.5 * logistic(1.5)], **CLOSE)
    whole = losses.bco_loss(policy, ref, label, beta=0.5, delta=0.0, undesirable_weight=2)
    np.testing.assert_allclose(whole, [logistic(0.5), 2 * logistic(1.5), 2 * logistic(1.5)], **CLOSE)


def test_the_label_gives_the_direction():
    def loss(policy):
        return losses.bco_loss(policy, f(-3, -3), jnp.asarray([True, False]), beta=0.5, delta=0.3)

    (slope,) = slopes(loss, f(-3, -3))
    assert slope[0] < 0 < slope[1]


def test_the_shift_gets_no_gradient():
    assert jax.grad(lambda d: losses.bco_pair_loss(*FOUR, beta=0.5, delta=d).sum())(0.2) == 0
    label = jnp.asarray([True])
    assert jax.grad(lambda d: losses.bco_loss(*FOUR[1:3], label, beta=0.5, delta=d).sum())(0.2) == 0
