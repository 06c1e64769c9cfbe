"""KL estimators: values by hand, and what their gradients are in expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", 2.0), ("k2", 2.0**2 / 2), ("k3", np.exp(-2.0) - 1 + 2), ("abs", 2.0)],
)
def test_value_by_hand(estimator, expected):
    np.testing.assert_allclose(losses.kl_penalty(f(-1), f(-3), estimator=estimator), [expected], rtol=1e-6)


def test_it_is_0_where_policy_and_reference_are_equal():
    for estimator in ("k1", "k2", "k3", "abs"):
        assert losses.kl_penalty(f(-1.7), f(-1.7), estimator=estimator) == 0


LOGITS, REFERENCE = f(0.3, -1.0, 2.0), jax.nn.log_softmax(f(3.0, 0.0, 0.5))


def exact(logits):
    """KL(policy || reference) over a vocabulary of three."""
    logps = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logps) * (logps - REFERENCE))


def expected(logits, estimator):
    """What an estimator used as a loss is, averaged over tokens sampled from the policy."""
    logps = jax.nn.log_softmax(logits)
    chances = jax.lax.stop_gradient(jnp.exp(logps))
    return jnp.sum(chances * losses.kl_penalty(logps, REFERENCE, estimator=estimator))


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    for estimator in ("k1", "k3"):
        np.testing.assert_allclose(expected(LOGITS, estimator), exact(LOGITS), rtol=1e-5)
    assert abs(expected(LOGITS, "k2") - exact(LOGITS)) > 0.1


def test_as_a_loss_k2_has_the_gradient_of_the_kl_and_k1_has_none():
    def gradient(estimator):
        return jax.grad(expected)(LOGITS, estimator)

    np.testing.assert_allclose(gradient("k2"), jax.grad(exact)(LOGITS), atol=1e-6)
    np.testing.assert_allclose(gradient("k1"), 0, atol=1e-6)
    assert np.abs(gradient("k3") - jax.grad(exact)(LOGITS)).max() > 0.1


def test_k3_beyond_20_nats_is_held_without_a_gradient_and_on_the_other_side_is_not():
    def k3(d):
        return jnp.sum(losses.kl_penalty(d, jnp.zeros_like(d), estimator="k3"))

    np.testing.assert_allclose(k3(f(-1e4)), np.exp(20.0) - 21, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(k3)(f(-1e4, 1e4)), [0, 1])


def test_an_unknown_estimator_is_named():
    with pytest.raises(Exception, match="k4"):
        losses.kl_penalty(f(0), f(0), estimator="k4")
