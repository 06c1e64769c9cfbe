"""APO, of pairs and of labelled completions."""

import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, sigmoid, slopes

FOUR = f(-2), f(-7), f(-3), f(-4)  # rewards 0.5 and -1.5 at beta 0.5
START = f(-3), f(-4), f(-3), f(-4)


def test_value_by_hand():
    zero, down = (loss(*FOUR, beta=0.5) for loss in (losses.apo_zero_loss, losses.apo_down_loss))
    np.testing.assert_allclose(zero, [1 - sigmoid(0.5) + sigmoid(-1.5)], **CLOSE)
    np.testing.assert_allclose(down, [sigmoid(0.5) + 1 - sigmoid(2.0)], **CLOSE)


def test_at_the_reference_both_are_one():
    for loss in (losses.apo_zero_loss, losses.apo_down_loss):
        np.testing.assert_allclose(loss(*START, beta=0.5), [1.0], **CLOSE)


def test_zero_moves_chosen_up_and_down_keeps_it():
    chosen, rejected = slopes(lambda *x: losses.apo_zero_loss(*x, *START[2:], beta=0.5), *START[:2])
    assert chosen < 0 < rejected
    # At the start the two pulls of `down` on the chosen completion cancel, and then it goes down.
    chosen, rejected = slopes(lambda *x: losses.apo_down_loss(*x, *START[2:], beta=0.5), *START[:2])
    np.testing.assert_allclose(chosen, [0.0], atol=1e-7)
    assert rejected > 0
    chosen, _ = slopes(lambda *x: losses.apo_down_loss(*x, *FOUR[2:], beta=0.5), *FOUR[:2])
    assert chosen > 0


def test_a_pair_of_zero_is_its_two_completions():
    policy, ref = jnp.concatenate(FOUR[:2]), jnp.concatenate(FOUR[2:])
    two = losses.apo_zero_unpaired_loss(policy, ref, jnp.asarray([True, False]), beta=0.5)
    np.testing.assert_allclose(two, [1 - sigmoid(0.5), sigmoid(-1.5)], **CLOSE)
    np.testing.assert_allclose(two.sum()[None], losses.apo_zero_loss(*FOUR, beta=0.5), rtol=1e-6)
