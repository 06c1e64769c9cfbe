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
    ("k1", lambda: losses.kl_penalty(f(-1), f(-3)), [2.0]),
    ("k2", lambda: losses.kl_penalty(f(-1), f(-3), estimator="k2"), [2.0]),
    ("k3", lambda: losses.kl_penalty(f(-1), f(-3), estimator="k3"), [np.exp(-2.0) - 1 + 2]),
    ("abs", lambda: losses.kl_penalty(f(-3), f(-1), estimator="abs"), [2.0]),
    ("ppo on policy", lambda: losses.ppo_policy_loss(f([-1]), f([-1]), f([3])), [[-3.0]]),
    ("ppo clipped high", lambda: losses.ppo_policy_loss(f([np.log(2)]), f([0]), f([1])), [[-1.2]]),
    ("ppo bad kept", lambda: losses.ppo_policy_loss(f([np.log(2)]), f([0]), f([-1])), [[2.0]]),
    ("ppo clipped low", lambda: losses.ppo_policy_loss(f([np.log(0.5)]), f([0]), f([-1])), [[0.8]]),
    (
        "ppo clip higher",
        lambda: losses.ppo_policy_loss(f([np.log(2)]), f([0]), f([1]), clip_high=0.5),
        [[-1.5]],
    ),
    ("ppo dual", lambda: losses.ppo_policy_loss(f([np.log(9)]), f([0]), f([-1]), dual_clip=3.0), [[3.0]]),
    ("value", lambda: losses.ppo_value_loss(f([2]), f([0]), f([3])), [[0.5]]),
    # moved by 2, only 0.5 counts: the pessimistic error is from 0.5 to 3.
    ("value clipped", lambda: losses.ppo_value_loss(f([2]), f([0]), f([3]), clip=0.5), [[0.5 * 2.5**2]]),
    ("token mean", lambda: losses.token_mean(f([1, 2], [3, 9]), f([1, 1], [1, 0])), 2.0),
    ("sequence mean", lambda: losses.sequence_mean(f([1, 2], [3, 9]), f([1, 1], [1, 0])), (1.5 + 3) / 2),
    (
        "fixed mean",
        lambda: losses.fixed_length_mean(f([1, 2], [3, 9]), f([1, 1], [1, 0]), length=4),
        (3 / 4 + 3 / 4) / 2,
    ),
    ("leave one out", lambda: losses.leave_one_out_advantages(f(1, 2, 6), 3), [1 - 4, 2 - 3.5, 6 - 1.5]),
    ("group none", lambda: losses.group_advantages(f(1, 3, 5, 5), 2, scale="none"), [-1, 1, 0, 0]),
    (
        "group std",
        lambda: losses.group_advantages(f(1, 3), 2, epsilon=0.0),
        [-1 / np.sqrt(2), 1 / np.sqrt(2)],
    ),
    (
        "group masked",
        lambda: losses.group_advantages(f(1, 3, 9), 3, jnp.asarray([True, True, False]), scale="none"),
        [-1, 1, 0],
    ),
    ("whiten", lambda: losses.whiten(f([1, 3, 99]), f([1, 1, 0])), [[-1 / np.sqrt(2), 1 / np.sqrt(2), 0]]),
    ("whiten biased", lambda: losses.whiten(f([1, 3]), None, unbiased=False), [[-1, 1]]),
    (
        "whiten keeps mean",
        lambda: losses.whiten(f([1, 3]), None, shift_mean=False),
        [[2 - 1 / np.sqrt(2), 2 + 1 / np.sqrt(2)]],
    ),
]


@pytest.mark.parametrize(("call", "expected"), [c[1:] for c in BY_HAND], ids=[c[0] for c in BY_HAND])
def test_value_by_hand(call, expected):
    np.testing.assert_allclose(call(), expected, rtol=2e-6, atol=2e-6)


# name, loss of [B, T] arrays with a mask, number of arrays: what has a token mask.
MASKED = [
    ("kl", lambda m, a, b: losses.kl_penalty(a, b, m, estimator="k3"), 2),
    ("ppo", lambda m, a, b, c: losses.ppo_policy_loss(a, b, c, m), 3),
    ("value", lambda m, a, b, c: losses.ppo_value_loss(a, b, c, m, clip=0.3), 3),
    ("whiten", lambda m, a: losses.whiten(a, m), 1),
    ("token mean", lambda m, a: losses.token_mean(a, m), 1),
    ("sequence mean", lambda m, a: losses.sequence_mean(a, m), 1),
    ("fixed mean", lambda m, a: losses.fixed_length_mean(a, m, length=3.0), 1),
    ("gae", lambda m, a, b: losses.generalized_advantage_estimation(a, b, m, gamma=0.9, lam=0.8)[0], 2),
]
MASK = jnp.asarray([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]], bool)


def arrays(count: int, seed: int = 0):
    return [jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), MASK.shape) for i in range(count)]


@pytest.mark.parametrize(("loss", "count"), [c[1:] for c in MASKED], ids=[c[0] for c in MASKED])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e30])
def test_what_a_masked_slot_holds_reaches_neither_value_nor_gradient(loss, count, bad):
    clean = arrays(count)
    dirty = [jnp.where(MASK, x, bad) for x in clean]

    def total(*xs):
        return jnp.sum(loss(MASK, *xs))

    arguments = tuple(range(count))
    np.testing.assert_array_equal(loss(MASK, *dirty), loss(MASK, *clean))
    for a, b in zip(jax.grad(total, arguments)(*dirty), jax.grad(total, arguments)(*clean), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[~MASK], 0)


@pytest.mark.parametrize(("loss", "count"), [c[1:] for c in MASKED], ids=[c[0] for c in MASKED])
def test_an_empty_mask_gives_zero_with_finite_gradients(loss, count):
    empty = jnp.zeros_like(MASK)
    values, gradients = jax.value_and_grad(lambda *xs: jnp.sum(loss(empty, *xs)), tuple(range(count)))(
        *arrays(count)
    )
    assert values == 0
    assert all(np.all(g == 0) for g in gradients)


@pytest.mark.parametrize(("loss", "count"), [c[1:] for c in MASKED], ids=[c[0] for c in MASKED])
def test_jit_equals_eager(loss, count):
    xs = arrays(count)
    np.testing.assert_allclose(jax.jit(loss)(MASK, *xs), loss(MASK, *xs), rtol=1e-6, atol=1e-7)


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


def gae_reference(rewards, values, mask, gamma, lam, after):
    """Straight from the definition: the sum of discounted residuals over the counted steps that follow."""
    result = np.zeros_like(rewards)
    for row in range(len(rewards)):
        steps = np.flatnonzero(mask[row])
        following = np.append(values[row, steps[1:]], after[row])
        deltas = rewards[row, steps] + gamma * following - values[row, steps]
        for i, step in enumerate(steps):
            result[row, step] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(steps)))
    return result


@pytest.mark.parametrize("bootstrap", [False, True])
def test_gae_equals_the_definition_and_skips_masked_steps(bootstrap):
    rng = np.random.default_rng(0)
    rewards, values = rng.standard_normal((2, 3, 7))
    mask = np.asarray([[1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0, 0]], bool)
    after = rng.standard_normal(3) if bootstrap else np.zeros(3)
    advantages, returns = losses.generalized_advantage_estimation(
        jnp.asarray(rewards, jnp.float32),
        jnp.asarray(values, jnp.float32),
        jnp.asarray(mask),
        gamma=0.9,
        lam=0.7,
        bootstrap_values=jnp.asarray(after, jnp.float32) if bootstrap else None,
    )
    expected = gae_reference(rewards, values, mask, 0.9, 0.7, after)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), atol=1e-5)


def test_gae_on_contiguous_rows_equals_zero_values_after_the_end():
    rng = np.random.default_rng(1)
    rewards, values = jnp.asarray(rng.standard_normal((2, 2, 6)), jnp.float32)
    mask = jnp.asarray([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], bool)
    skipping, _ = losses.generalized_advantage_estimation(rewards, values, mask, gamma=0.95, lam=0.9)
    zeroed, _ = losses.generalized_advantage_estimation(
        jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0), jnp.ones_like(mask), gamma=0.95, lam=0.9
    )
    np.testing.assert_allclose(skipping, jnp.where(mask, zeroed, 0.0), atol=1e-6)


def test_fractional_rewards_are_not_truncated():
    # An integer reward tensor would make these 0 and -1.
    rewards = f([0.7], [-1.9])
    _, returns = losses.generalized_advantage_estimation(
        rewards, jnp.zeros((2, 1)), jnp.ones((2, 1), bool), gamma=1.0, lam=0.95
    )
    np.testing.assert_allclose(returns, rewards)


@pytest.mark.parametrize(
    ("reduce", "name"),
    [
        (losses.token_mean, "tokens"),
        (losses.sequence_mean, "rows"),
        (lambda x, m, count: losses.fixed_length_mean(x, m, length=4.0, count=count), "rows"),
    ],
    ids=["token", "sequence", "fixed"],
)
def test_micro_batches_with_the_global_count_add_up(reduce, name):
    (x,) = arrays(1)
    count = {"tokens": float(MASK.sum()), "rows": float(MASK.any(1).sum())}[name]
    whole = reduce(x, MASK, count=None)
    parts = sum(reduce(x[i : i + 1], MASK[i : i + 1], count=count) for i in range(3))
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_gradients_point_the_way_the_method_intends():
    up = jax.grad(lambda x: losses.ppo_policy_loss(x, f([0]), f([1])).sum())(f([0]))
    down = jax.grad(lambda x: losses.ppo_policy_loss(x, f([0]), f([-1])).sum())(f([0]))
    assert up < 0 < down
    clipped = jax.grad(lambda x: losses.ppo_policy_loss(x, f([0]), f([1])).sum())(f([1]))
    assert clipped == 0


def test_one_device_equals_eight(devices):
    mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.random.normal(jax.random.key(0), (8, 5))
    mask = jax.random.bernoulli(jax.random.key(1), 0.6, (8, 5))
    spread = [jax.device_put(v, sharding) for v in (x, mask)]
    np.testing.assert_allclose(jax.jit(losses.whiten)(*spread), losses.whiten(x, mask), atol=1e-5)
    np.testing.assert_allclose(jax.jit(losses.token_mean)(*spread), losses.token_mean(x, mask), rtol=1e-5)


WRONG = [
    (lambda: losses.dpo_loss(f(1), f(1, 2), f(1), f(1), beta=0.1), AssertionError, "policy_rejected_logps"),
    (lambda: losses.ppo_value_loss(f([1]), f([1]), f([1, 2])), AssertionError, "returns"),
    (lambda: losses.dpo_loss(f(1), f(1), f(1), f(1), beta=0.0), ValueError, "beta"),
    (
        lambda: losses.dpo_loss(f(1), f(1), f(1), f(1), beta=1.0, label_smoothing=0.5),
        ValueError,
        "label_smoothing",
    ),
    (lambda: losses.ppo_policy_loss(f([1]), f([1]), f([1]), clip_low=1.5), ValueError, "clip_low"),
    (lambda: losses.ppo_policy_loss(f([1]), f([1]), f([1]), dual_clip=1.0), ValueError, "dual_clip"),
    (lambda: losses.group_advantages(f(1, 2), 1), ValueError, "group_size"),
    (lambda: losses.group_advantages(f(1, 2, 3), 2), ValueError, "do not divide"),
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
