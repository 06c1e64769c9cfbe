"""EXO."""

import numpy as np
import pytest

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, sigmoid, slopes

FOUR = f(-2), f(-5), f(-3), f(-4)


def exo(*four, s):
    return losses.exo_loss(*four, beta=0.5, label_smoothing=s)


def test_value_by_hand():
    q = sigmoid(0.5 * 2)
    expected = q * np.log(q / 0.9) + (1 - q) * np.log((1 - q) / 0.1)
    np.testing.assert_allclose(exo(*FOUR, s=0.1), [expected], **CLOSE)


def test_at_the_reference_the_policy_is_a_coin():
    same = f(-3), f(-5), f(-3), f(-5)
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    np.testing.assert_allclose(exo(*same, s=0.1), [expected], **CLOSE)
    np.testing.assert_allclose(expected, -np.log(2 * np.sqrt(0.1 * 0.9)))


@pytest.mark.parametrize("s", [1e-3, 0.1, 0.4])
def test_it_is_least_where_the_policy_has_the_smoothed_labels_odds(s):
    best = float(np.log((1 - s) / s) / 0.5)
    at = lambda margin: exo(f(margin), f(0), f(0), f(0), s=s)  # noqa: E731
    np.testing.assert_allclose(at(best), [0.0], atol=2e-6)
    for margin, sign in ((best - 1, -1), (best + 1, 1)):
        assert at(margin) > 0
        chosen, rejected = slopes(lambda *x: exo(*x, f(0), f(0), s=s), f(margin), f(0))
        assert np.sign(chosen) == sign == -np.sign(rejected)


def test_it_differs_from_conservative_dpo_by_the_direction_of_the_divergence():
    # Cross-entropy less entropy of the labels is KL(labels || policy); this is KL(policy || labels).
    s, q = 0.2, sigmoid(1.0)
    labels, policy = np.array([1 - s, s]), np.array([q, 1 - q])
    dpo = losses.dpo_loss(*FOUR, beta=0.5, label_smoothing=s)
    np.testing.assert_allclose(
        dpo + (labels * np.log(labels)).sum(), [(labels * np.log(labels / policy)).sum()], **CLOSE
    )
    np.testing.assert_allclose(exo(*FOUR, s=s), [(policy * np.log(policy / labels)).sum()], **CLOSE)
