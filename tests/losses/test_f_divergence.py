"""DPO under other divergences."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, LOG2, f, logistic, slopes

FOUR = f(-2), f(-5), f(-3), f(-4)  # log-ratios 1 and -1
START = f(-3), f(-5), f(-3), f(-5)
loss = functools.partial(losses.f_divergence_dpo_loss, beta=0.5)


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({"divergence": "reverse_kl"}, 1 - -1),
        ({"divergence": "forward_kl"}, (1 - np.exp(-1)) - (1 - np.exp(1))),
        ({"divergence": "js"}, np.log(2 * np.e / (1 + np.e)) - np.log(2 / np.e / (1 + 1 / np.e))),
        ({"divergence": "alpha"}, (np.exp(-0.5) - np.exp(0.5)) / -0.5),
        ({"divergence": "alpha", "alpha": 3.0}, (np.exp(2) - np.exp(-2)) / 2),
    ],
)
def test_value_by_hand(options, score):
    np.testing.assert_allclose(loss(*FOUR, **options), [logistic(0.5 * score)], **CLOSE)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_at_the_reference_all_are_dpo_in_value_and_slope(divergence):
    # f'(1) = 0; the slope of f' by log t at t = 1 is 1, but for Jensen-Shannon, where it is 1/2.
    np.testing.assert_allclose(loss(*START, divergence=divergence), [LOG2], **CLOSE)
    chosen, rejected = slopes(lambda *x: loss(*x, *START[2:], divergence=divergence), *START[:2])
    factor = 0.5 if divergence == "js" else 1.0
    np.testing.assert_allclose([chosen, rejected], factor * np.array([[-0.25], [0.25]]), **CLOSE)


def test_reverse_kl_is_dpo_and_alpha_one():
    dpo = losses.dpo_loss(*FOUR, beta=0.5)
    np.testing.assert_array_equal(loss(*FOUR, divergence="reverse_kl"), dpo)
    np.testing.assert_array_equal(loss(*FOUR, divergence="alpha", alpha=1.0), dpo)


def test_forward_kl_is_alpha_zero():
    alpha = loss(*FOUR, divergence="alpha", alpha=0.0)
    np.testing.assert_array_equal(loss(*FOUR, divergence="forward_kl"), alpha)


def test_alpha_is_continuous_at_one():
    near = [loss(*FOUR, divergence="alpha", alpha=1 + d) for d in (-1e-5, -1e-7, 1e-7, 1e-5)]
    np.testing.assert_allclose(near, jnp.stack([losses.dpo_loss(*FOUR, beta=0.5)] * 4), rtol=2e-5)
