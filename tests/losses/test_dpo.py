"""DPO, its robust form, IPO and hinge."""

import numpy as np
import pytest

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, LOG2, f, logistic, slopes

# Chosen went up by 1 nat and rejected down by 1: a margin of 2.
FOUR = f(-2), f(-5), f(-3), f(-4)
START = f(-3), f(-5), f(-3), f(-5)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.dpo_loss(*START, beta=0.1), LOG2),
        (losses.dpo_loss(*FOUR, beta=0.5), logistic(0.5 * 2)),
        (losses.dpo_loss(*FOUR, beta=0.5, label_smoothing=0.2), 0.8 * logistic(1) + 0.2 * logistic(-1)),
        (
            losses.robust_dpo_loss(*FOUR, beta=0.5, label_smoothing=0.2),
            (0.8 * logistic(1) - 0.2 * logistic(-1)) / 0.6,
        ),
        (losses.ipo_loss(*FOUR, beta=0.25), (2 - 2) ** 2),
        (losses.ipo_loss(*FOUR, beta=0.5), (2 - 1) ** 2),
        (losses.hinge_loss(*START, beta=0.25), 1.0),
        (losses.hinge_loss(*FOUR, beta=0.25), 1 - 0.25 * 2),
        (losses.hinge_loss(*FOUR, beta=2.0), 0.0),
    ],
)
def test_value_by_hand(loss, expected):
    np.testing.assert_allclose(loss, [expected], **CLOSE)


@pytest.mark.parametrize(
    "loss",
    [
        lambda *x: losses.dpo_loss(*x, beta=0.3),
        lambda *x: losses.dpo_loss(*x, beta=0.3, label_smoothing=0.2),
        lambda *x: losses.robust_dpo_loss(*x, beta=0.3, label_smoothing=0.2),
        lambda *x: losses.ipo_loss(*x, beta=0.3),
        lambda *x: losses.hinge_loss(*x, beta=0.3),
    ],
)
def test_chosen_is_pushed_up_and_rejected_down(loss):
    chosen, rejected, *reference = slopes(loss, *START)
    assert chosen < 0 < rejected
    np.testing.assert_allclose(chosen, -rejected, rtol=1e-6)
    np.testing.assert_array_equal(reference, 0)


def test_ipo_pulls_back_from_beyond_its_target():
    chosen, rejected = slopes(lambda *x: losses.ipo_loss(*x, *FOUR[2:], beta=0.5), *FOUR[:2])
    assert chosen > 0 > rejected


def test_robust_without_flips_is_dpo():
    robust = losses.robust_dpo_loss(*FOUR, beta=0.5, label_smoothing=0.0)
    np.testing.assert_allclose(robust, losses.dpo_loss(*FOUR, beta=0.5), rtol=1e-6)


def test_robust_is_unbiased_under_flipped_labels():
    # Labels flipped with chance s: the expected robust loss is the clean DPO loss.
    s = 0.2
    swapped = (FOUR[1], FOUR[0], FOUR[3], FOUR[2])
    right, wrong = (losses.robust_dpo_loss(*x, beta=0.5, label_smoothing=s) for x in (FOUR, swapped))
    np.testing.assert_allclose((1 - s) * right + s * wrong, losses.dpo_loss(*FOUR, beta=0.5), rtol=1e-6)
