"""CPO."""

import numpy as np

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, logistic, slopes


def test_value_by_hand():
    np.testing.assert_allclose(losses.cpo_loss(f(-3), f(-5), beta=0.5), [logistic(1.0)], **CLOSE)
    smoothed = losses.cpo_loss(f(-3), f(-5), beta=0.5, label_smoothing=0.1)
    np.testing.assert_allclose(smoothed, [0.9 * logistic(1.0) + 0.1 * logistic(-1.0)], **CLOSE)


def test_it_is_dpo_with_a_reference_that_is_indifferent():
    chosen, rejected, ref = f(-3, -8), f(-5, -7), f(-6, -6)
    dpo = losses.dpo_loss(chosen, rejected, ref, ref, beta=0.5, label_smoothing=0.1)
    np.testing.assert_allclose(
        losses.cpo_loss(chosen, rejected, beta=0.5, label_smoothing=0.1), dpo, rtol=1e-6
    )


def test_chosen_is_pushed_up_and_rejected_down():
    chosen, rejected = slopes(lambda *x: losses.cpo_loss(*x, beta=0.5), f(-5), f(-5))
    np.testing.assert_allclose([chosen, rejected], [[-0.25], [0.25]], **CLOSE)
