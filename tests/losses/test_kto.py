"""KTO and its estimate of the divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, sigmoid, slopes

POLICY, REF, LABEL = f(-2, -7), f(-4, -4), jnp.asarray([True, False])  # log-ratios 2 and -3


def kto(policy, **options):
    return losses.kto_loss(policy, REF, LABEL, **({"beta": 0.5, "kl": 1.0} | options))


def test_value_by_hand():
    np.testing.assert_allclose(
        kto(POLICY), [1 - sigmoid(0.5 * (2 - 1)), 1 - sigmoid(0.5 * (1 - -3))], **CLOSE
    )
    weighted = kto(POLICY, desirable_weight=3, undesirable_weight=0.5)
    np.testing.assert_allclose(weighted, [3 * (1 - sigmoid(0.5)), 0.5 * (1 - sigmoid(2.0))], **CLOSE)


def test_at_the_reference_and_no_divergence_each_is_half_its_weight():
    np.testing.assert_allclose(kto(REF, kl=0.0, desirable_weight=1.2), [0.6, 0.5], **CLOSE)


def test_the_label_gives_the_direction_and_the_divergence_gets_none():
    (slope,) = slopes(kto, POLICY)
    assert slope[0] < 0 < slope[1]
    assert jax.grad(lambda kl: kto(POLICY, kl=kl).sum())(1.0) == 0


@settings(deadline=None, max_examples=30)
@given(st.floats(-30, 30), st.floats(0, 30))
def test_a_completion_costs_one_as_desirable_and_undesirable_together(ratio, kl):
    # 1 - sigmoid(d) and 1 - sigmoid(-d).
    both = losses.kto_loss(f(ratio, ratio), f(0, 0), LABEL, beta=0.3, kl=kl)
    np.testing.assert_allclose(both.sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("policy", "ref", "mask", "expected"),
    [
        (f(-1, -2), f(-4, -3), None, (3 + 1) / 2),
        (f(-4, -2), f(-1, -3), None, 0.0),  # (-3 + 1) / 2 is below 0
        (f(-1, -9), f(-4, -3), jnp.asarray([True, False]), 3.0),
        (f(-1, jnp.nan), f(-4, jnp.inf), jnp.asarray([1, 0]), 3.0),
        (f(-1, -9), f(-4, -3), jnp.asarray([False, False]), 0.0),
    ],
)
def test_divergence_by_hand(policy, ref, mask, expected):
    np.testing.assert_allclose(losses.kto_kl(policy, ref, mask), expected, **CLOSE)
    gradients = jax.grad(losses.kto_kl, (0, 1))(policy, ref, mask)
    np.testing.assert_array_equal(gradients, 0)
