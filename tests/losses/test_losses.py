"""Every loss in one table: by hand, against float64 numpy, and what must hold for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses

LOG2 = float(np.log(2.0))


def f(*values):
    return jnp.asarray(values, jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# name, call, expected: each worked out by hand.
BY_HAND = [
    ("bt equal", lambda: losses.bradley_terry_loss(f(1), f(1)), [LOG2]),
    ("bt", lambda: losses.bradley_terry_loss(f(2), f(0.5)), [-np.log(sigmoid(1.5))]),
    ("bt margin", lambda: losses.bradley_terry_loss(f(2), f(0.5), margin=f(1)), [-np.log(sigmoid(0.5))]),
    (
        "bt temperature",
        lambda: losses.bradley_terry_loss(f(2), f(0.5), temperature=3.0),
        [-np.log(sigmoid(0.5))],
    ),
    (
        "bt centred",
        lambda: losses.bradley_terry_loss(f(2), f(1), center_coefficient=0.1),
        [-np.log(sigmoid(1)) + 0.9],
    ),
    (
        "bt smoothed",
        lambda: losses.bradley_terry_loss(f(2), f(1), label_smoothing=0.1),
        [-0.9 * np.log(sigmoid(1)) - 0.1 * np.log(sigmoid(-1))],
    ),
    (
        "best of n",
        lambda: losses.best_of_n_loss(f([0, np.log(2), np.log(5)]), jnp.asarray([1])),
        [-np.log(2 / 8)],
    ),
    ("dpo start", lambda: losses.dpo_loss(f(-3), f(-5), f(-3), f(-5), beta=0.1), [LOG2]),
    ("dpo", lambda: losses.dpo_loss(f(-2), f(-5), f(-3), f(-4), beta=0.5), [-np.log(sigmoid(0.5 * 2))]),
    (
        "dpo smoothed",
        lambda: losses.dpo_loss(f(-2), f(-5), f(-3), f(-4), beta=0.5, label_smoothing=0.2),
        [-0.8 * np.log(sigmoid(1)) - 0.2 * np.log(sigmoid(-1))],
    ),
    (
        "robust",
        lambda: losses.robust_dpo_loss(f(-2), f(-5), f(-3), f(-4), beta=0.5, label_smoothing=0.2),
        [(-0.8 * np.log(sigmoid(1)) + 0.2 * np.log(sigmoid(-1))) / 0.6],
    ),
    ("ipo", lambda: losses.ipo_loss(f(-2), f(-5), f(-3), f(-4), beta=0.25), [(2 - 2) ** 2]),
    ("ipo away", lambda: losses.ipo_loss(f(-2), f(-5), f(-3), f(-4), beta=0.5), [(2 - 1) ** 2]),
    ("hinge", lambda: losses.hinge_loss(f(-2, -2), f(-5, -5), f(-3, -3), f(-4, -4), beta=0.25), [0.5, 0.5]),
    ("hinge flat", lambda: losses.hinge_loss(f(-2), f(-5), f(-3), f(-4), beta=2.0), [0.0]),
    (
        "cross entropy",
        lambda: losses.cross_entropy_loss(jnp.log(f([[1, 3]])), jnp.asarray([[0]])),
        [[-np.log(0.25)]],
    ),
    (
        "cross entropy smoothed",
        lambda: losses.cross_entropy_loss(jnp.log(f([[1, 3]])), jnp.asarray([[0]]), label_smoothing=0.5),
        [[-0.5 * np.log(0.25) - 0.5 * (np.log(0.25) + np.log(0.75)) / 2]],
    ),
    (
        "cross entropy z",
        lambda: losses.cross_entropy_loss(jnp.log(f([[1, 3]])), jnp.asarray([[0]]), z_loss=0.1),
        [[-np.log(0.25) + 0.1 * np.log(4) ** 2]],
    ),
]


@pytest.mark.parametrize(("call", "expected"), [c[1:] for c in BY_HAND], ids=[c[0] for c in BY_HAND])
def test_value_by_hand(call, expected):
    np.testing.assert_allclose(call(), expected, rtol=2e-6, atol=2e-6)


PAIRS = {
    "dpo": lambda *x: losses.dpo_loss(*x, beta=0.3, label_smoothing=0.1),
    "robust": lambda *x: losses.robust_dpo_loss(*x, beta=0.3, label_smoothing=0.1),
    "ipo": lambda *x: losses.ipo_loss(*x, beta=0.3),
    "hinge": lambda *x: losses.hinge_loss(*x, beta=0.3),
}


def pair_reference(name: str, pc, pr, rc, rr):
    """float64 numpy value and gradient for (policy_chosen, policy_rejected)."""
    h = (pc - rc) - (pr - rr)
    m, s = 0.3 * h, 0.1
    if name == "dpo":
        return -(1 - s) * np.log(sigmoid(m)) - s * np.log(sigmoid(-m)), 0.3 * (s - sigmoid(-m))
    if name == "robust":
        value = (-(1 - s) * np.log(sigmoid(m)) + s * np.log(sigmoid(-m))) / (1 - 2 * s)
        return value, 0.3 * (-(1 - s) * sigmoid(-m) - s * sigmoid(m)) / (1 - 2 * s)
    if name == "ipo":
        return (h - 1 / 0.6) ** 2, 2 * (h - 1 / 0.6)
    return np.maximum(0, 1 - m), np.where(m < 1, -0.3, 0.0)


@pytest.mark.parametrize("name", PAIRS)
def test_pair_losses_equal_float64_numpy_in_value_and_gradient(name):
    four = [5 * np.random.default_rng(i).standard_normal(64) for i in range(4)]
    low = [jnp.asarray(x, jnp.float32) for x in four]
    value, slope = pair_reference(name, *[np.asarray(x, np.float64) for x in low])
    np.testing.assert_allclose(PAIRS[name](*low), value, rtol=2e-6, atol=2e-6)
    gradients = jax.grad(lambda *x: PAIRS[name](*x).sum(), (0, 1, 2, 3))(*low)
    np.testing.assert_allclose(gradients[0], slope, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[1], -slope, rtol=1e-5, atol=1e-5)
    assert np.all(gradients[2] == 0)
    assert np.all(gradients[3] == 0)


@pytest.mark.parametrize("name", PAIRS)
def test_pair_losses_are_finite_at_extreme_log_probs(name):
    values = [f(-1e4, 0), f(0, -1e4), f(0, 0), f(0, 0)]
    value, gradients = jax.value_and_grad(lambda *x: PAIRS[name](*x).sum(), (0, 1))(*values)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_best_of_two_is_bradley_terry():
    a, b = jax.random.normal(jax.random.key(0), (2, 5))
    two = losses.best_of_n_loss(jnp.stack([a, b], 1), jnp.zeros(5, int))
    np.testing.assert_allclose(two, losses.bradley_terry_loss(a, b), rtol=1e-5)


def test_gradients_point_the_way_the_method_intends():
    chosen, rejected = jax.grad(lambda a, b: losses.bradley_terry_loss(a, b).sum(), (0, 1))(f(0), f(0))
    assert chosen < 0 < rejected


WRONG = [
    (lambda: losses.dpo_loss(f(1), f(1, 2), f(1), f(1), beta=0.1), AssertionError, "policy_rejected_logps"),
    (lambda: losses.dpo_loss(f(1), f(1), f(1), f(1), beta=0.0), ValueError, "beta"),
    (
        lambda: losses.dpo_loss(f(1), f(1), f(1), f(1), beta=1.0, label_smoothing=0.5),
        ValueError,
        "label_smoothing",
    ),
]


@pytest.mark.parametrize(("call", "error", "word"), WRONG)
def test_wrong_arguments_are_named(call, error, word):
    if error is ValueError:
        with pytest.raises(ValueError, match=word):
            call()
        return
    with pytest.raises(Exception, match=word) as caught:  # beartype's hook may speak first
        call()
    assert not isinstance(caught.value, (ValueError, IndexError))


def test_traced_hyper_parameters_work_under_jit():
    four = [f(-2), f(-5), f(-3), f(-4)]
    traced = jax.jit(lambda beta: losses.dpo_loss(*four, beta=beta))(0.5)
    np.testing.assert_allclose(traced, losses.dpo_loss(*four, beta=0.5), rtol=1e-6)
