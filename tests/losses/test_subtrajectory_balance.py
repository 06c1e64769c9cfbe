"""The fast forms of sub-trajectory balance: by hand, against the definition, and in float32's corners."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import losses
from tests.losses.cases.case import logps as log_probs
from tests.losses.cases.case import normal

RNG = np.random.default_rng(0)
ROWS, LENGTH = 3, 40
LOGPS = log_probs(RNG, ROWS, LENGTH, scale=2.0)
REWARDS = normal(RNG, ROWS, LENGTH)
VALUES = normal(RNG, ROWS, LENGTH + 1, scale=3.0)


def f(*values):
    return jnp.asarray(values, jnp.float32)


def balance(*arrays, dense=False, **options):
    """The loss of NumPy or JAX arrays."""
    loss = losses.subtrajectory_balance_dense if dense else losses.subtrajectory_balance_loss
    return loss(*(jnp.asarray(x, jnp.float32) for x in arrays), **options)


def by_definition(d, decay=1.0, window=None):
    """(weighted sum over pairs, sum of weights), float64, for one row of residuals."""
    d = np.asarray(d, np.float64)
    total = weights = 0.0
    for m in range(len(d)):
        for n in range(m + 1, min(len(d), m + (window or len(d))) + 1):
            total += decay ** (n - m) * d[m:n].sum() ** 2
            weights += decay ** (n - m)
    return total, weights


def residuals(logps=LOGPS, rewards=REWARDS, values=VALUES):
    """d of unpinned rows, float64."""
    return np.asarray(rewards, np.float64) + np.diff(values.astype(np.float64)) - logps


def test_value_by_hand():
    # log V: 1, 3 and (pinned) 0. d: 2 + 3 - 1 + 1 = 5, -1 + 0 - 3 + 2 = -2. Pairs: 5, -2 and 5 - 2.
    arguments = f([-1, -2]), f([2, -1]), f([1, 3, 9])
    np.testing.assert_allclose(balance(*arguments), [(25 + 4 + 9) / 3], rtol=1e-6)
    total = balance(*arguments, reduction="sum")
    np.testing.assert_allclose(total, [25 + 4 + 9], rtol=1e-6)
    near = balance(*arguments, window=1)
    np.testing.assert_allclose(near, [(25 + 4) / 2], rtol=1e-6)
    weighted = balance(*arguments, decay=0.5)
    np.testing.assert_allclose(weighted, [(0.5 * 25 + 0.5 * 4 + 0.25 * 9) / 1.25], rtol=1e-6)
    # Cut by length: log V stays 9 and d_2 = 7. Pairs: 5, 7 and 12.
    cut = balance(*arguments, terminated=False)
    np.testing.assert_allclose(cut, [(25 + 49 + 144) / 3], rtol=1e-6)
    # Rewards doubled, and a tenth of the reference's -10 and -20 nats: d = 5 + 2 - 1, -2 - 1 - 2.
    tilted = balance(*arguments, reward_scale=2.0, ref_logps=f([-10, -20]), reference_weight=0.1)
    np.testing.assert_allclose(tilted, [(36 + 25 + 1) / 3], rtol=1e-6)


def test_one_token_is_the_one_step_loss_whatever_the_weights():
    arguments, mask = (f([-1, 9]), f([2, 9]), f([1, 3, 9])), jnp.asarray([[1, 0]])
    for options in ({}, {"decay": 0.3}, {"window": 5}, {"reduction": "sum"}):
        # d = 2 + 0 - 1 + 1
        np.testing.assert_allclose(balance(*arguments, mask=mask, **options), [4], rtol=1e-6)


def test_mean_over_all_pairs_is_twice_the_sample_variance():
    loss = balance(LOGPS, REWARDS, VALUES, pin_terminal=False)
    c = np.concatenate([np.zeros((ROWS, 1)), np.cumsum(residuals(), axis=1)], axis=1)
    np.testing.assert_allclose(loss, 2 * c.var(axis=1, ddof=1), rtol=1e-5)


def test_gradient_by_a_log_prob_sums_the_centred_states_after_it():
    gradient = jax.grad(lambda x: balance(x, REWARDS, VALUES, pin_terminal=False, reduction="sum").sum())(
        jnp.asarray(LOGPS)
    )
    c = np.concatenate([np.zeros((ROWS, 1)), np.cumsum(residuals(), axis=1)], axis=1)
    centred = 2 * (LENGTH + 1) * (c - c.mean(axis=1, keepdims=True))
    after = np.cumsum(centred[:, ::-1], axis=1)[:, ::-1][:, 1:]
    np.testing.assert_allclose(gradient, -after, rtol=1e-4, atol=1e-5 * np.abs(after).max())


def test_fast_dense_and_definition_agree_for_every_decay_and_window():
    def both(decay, window):
        return [
            balance(LOGPS, REWARDS, VALUES, dense=dense, decay=decay, window=window, pin_terminal=False)
            for dense in (False, True)
        ]

    traced = jax.jit(both)
    for decay in (0.5, 0.9, 0.99, 1.0):
        for window in (1, 3, 10, 31, 32, LENGTH, 10 * LENGTH):
            expected = [t / w for t, w in (by_definition(d, decay, window) for d in residuals())]
            for found in traced(decay, window):
                np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{decay}, {window}")


def test_a_window_as_long_as_the_row_and_no_decay_are_the_closed_form():
    plain = balance(LOGPS, REWARDS, VALUES)
    for options in ({"window": LENGTH}, {"decay": jnp.float32(1.0), "window": 10**6}):
        other = balance(LOGPS, REWARDS, VALUES, **options)
        np.testing.assert_allclose(other, plain, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"window": 4}])
def test_a_constant_on_all_log_values_changes_nothing_where_none_is_pinned(options):
    plain, moved = (
        balance(LOGPS, REWARDS, VALUES + shift, pin_terminal=False, **options)
        for shift in (np.float32(0), np.float32(8))
    )
    np.testing.assert_allclose(moved, plain, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"window": 4}])
def test_a_flow_that_is_the_product_of_the_policy_is_balanced(options):
    # log F = sum of log pi: log V makes up for what the rewards leave.
    flow = np.cumsum(LOGPS - REWARDS, axis=1, dtype=np.float64)
    values = np.concatenate([np.zeros((ROWS, 1)), flow], axis=1).astype(np.float32)
    loss = balance(LOGPS, REWARDS, values, pin_terminal=False, **options)
    np.testing.assert_allclose(loss, 0, atol=1e-8)


def test_a_rejected_response_has_a_finite_loss_and_a_gradient():
    # A product of summed rewards has no logarithm here; exp of the sum does.
    rewards = -np.abs(REWARDS)
    value, gradients = jax.value_and_grad(lambda x, v: balance(x, rewards, v).sum(), (0, 1))(
        jnp.asarray(LOGPS), jnp.asarray(VALUES)
    )
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.abs(gradient[:, :-1]).min() > 0


def test_a_pinned_state_gets_no_gradient_and_rows_cut_by_length_do():
    gradient = jax.grad(
        lambda v: balance(LOGPS, REWARDS, v, terminated=jnp.asarray([True, False, True])).sum()
    )(jnp.asarray(VALUES))
    np.testing.assert_array_equal(gradient[:, -1] != 0, [False, True, False])


def test_a_reward_raises_the_log_prob_of_its_token_and_a_penalty_lowers_it():
    slope = jax.grad(lambda x, r: balance(x, r, f([0, 0])).sum())
    # d = r - log pi, with log pi = -1: a reward above -1 raises the token.
    assert slope(f([-1]), f([0.5])) < 0 < slope(f([-1]), f([-1.5]))


def test_two_answers_to_one_prompt_balance_where_their_log_odds_are_the_difference_of_rewards():
    rewards, odds = f([0.6], [-0.4]), f([0.6], [0.4])
    values = f([0.0, 7.0], [0.0, 7.0])  # one value of the shared prompt; the ends are pinned
    np.testing.assert_allclose(balance(rewards, rewards, values), 0, atol=1e-12)
    assert balance(odds, rewards, values).max() > 0.5


def test_a_reference_weight_needs_a_reference():
    for weight in (0.5, 1):
        with pytest.raises(ValueError, match="reference_weight"):
            balance(LOGPS, REWARDS, VALUES, reference_weight=weight)
    with pytest.raises(ValueError, match="reference_weight"):
        jax.jit(lambda w: balance(LOGPS, REWARDS, VALUES, reference_weight=w))(0.5)


def test_an_unknown_reduction_and_too_few_states_are_named():
    # The type hook of the tests would speak first.
    loss = inspect.unwrap(losses.subtrajectory_balance_loss)
    arrays = f(*LOGPS), f(*REWARDS), f(*VALUES)
    with pytest.raises(ValueError, match="reduction must be mean or sum"):
        loss(*arrays, reduction="batch")
    with pytest.raises(AssertionError, match=r"log_values has shape \(3, 40\), expected \(3, 41\)"):
        loss(*arrays[:2], arrays[2][:, 1:])


def nearly_balanced(length=512):
    """log F about 1000, less than 0.01 nats off balance: (log-probs, log V), float64."""
    rng = np.random.default_rng(1)
    policy = -rng.exponential(2.0, length)
    flow = 1000 + np.concatenate([[0.0], np.cumsum(policy)]) + 0.01 * rng.standard_normal(length + 1)
    return policy, flow


def test_float32_keeps_a_nearly_balanced_flow_of_a_thousand_nats():
    policy, flow = nearly_balanced()
    c = flow - np.concatenate([[0.0], np.cumsum(policy)])
    truth = len(c) * np.sum((c - c.mean()) ** 2)  # 29.229
    kept = residuals(np.float32(policy)[None], 0.0, np.float32(flow)[None])[0]
    of_rounded_inputs = by_definition(kept)[0]  # 29.235

    def loss(x, **options):
        return float(
            losses.subtrajectory_balance_loss(
                x, jnp.zeros((1, len(policy))), f(flow), pin_terminal=False, reduction="sum", **options
            )[0]
        )

    exact = f(policy)
    for options in ({}, {"window": len(policy)}):
        assert loss(exact, **options) == pytest.approx(of_rounded_inputs, rel=1e-6)
        assert loss(exact, **options) == pytest.approx(truth, rel=5e-4)
    # What the docstring warns of: the textbook variance (-16384), and log-probs rounded to bfloat16 (2472).
    low = c.astype(np.float32)
    textbook = len(c) * np.sum(low * low, dtype=np.float32) - np.sum(low, dtype=np.float32) ** 2
    assert abs(textbook - truth) > 0.5 * truth
    assert loss(exact.astype(jnp.bfloat16)) > 4 * truth


def test_a_window_keeps_its_digits_where_the_flow_runs_far_away():
    # 2000 nats over the row, but 4 within a window: prefix sums of squares would be near 10^9.
    rng = np.random.default_rng(2)
    policy = (-2 + 0.1 * rng.standard_normal((1, 1000))).astype(np.float32)
    loss = balance(policy, np.zeros((1, 1000)), np.zeros((1, 1001)), pin_terminal=False, window=2)
    total, weights = by_definition(-policy[0], window=2)
    np.testing.assert_allclose(loss, [total / weights], rtol=1e-6)


def strings():
    """All 27 strings of three tokens, and the number of each string's prefix after 0, 1, 2 and 3 tokens."""
    tokens = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(27, 3)
    prefixes = np.stack([tokens[:, :t] @ 3 ** np.arange(t)[::-1] for t in range(4)], axis=1)
    return tokens, prefixes


def train_table(rewards, seed, *, pin_terminal):
    """Policy [27] and log V of the empty prefix, after the loss of all strings was driven to 0."""
    tokens, prefixes = strings()

    def gather(parameters):
        logits, values = parameters
        by_depth = [jax.nn.log_softmax(logits[t])[prefixes[:, t], tokens[:, t]] for t in range(3)]
        return jnp.stack(by_depth, 1), jnp.stack([values[t][prefixes[:, t]] for t in range(4)], 1)

    def loss(parameters):
        return losses.subtrajectory_balance_loss(
            *(lambda x, v: (x, rewards, v))(*gather(parameters)), pin_terminal=pin_terminal
        ).mean()

    steps = 3000
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def step(carry, _):
        parameters, state = carry
        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(parameters, updates), state), value

    @jax.jit
    def train(parameters):
        return jax.lax.scan(step, (parameters, optimizer.init(parameters)), length=steps)

    rng = np.random.default_rng(seed)
    start = (
        [f(*rng.standard_normal((3**t, 3))) for t in range(3)],
        [f(*rng.standard_normal(3**t)) for t in range(4)],
    )
    with jax.numpy_dtype_promotion("standard"):  # Optax's own
        (parameters, _), history = train(start)
    logps, values = gather(parameters)
    return np.exp(np.asarray(logps).sum(1)), float(values[0, 0]), float(history[-1])


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3])
def test_only_with_the_terminal_pinned_zero_loss_means_a_policy_proportional_to_the_reward(seed):
    _, prefixes = strings()
    by_prefix = [np.random.default_rng(5).standard_normal(3**t).astype(np.float32) for t in range(4)]
    rewards = jnp.asarray(np.stack([by_prefix[t][prefixes[:, t]] for t in (1, 2, 3)], axis=1))
    mass = np.exp(np.asarray(rewards, np.float64).sum(1))

    def distance(policy):
        return 0.5 * np.abs(policy - mass / mass.sum()).sum()

    policy, log_value, loss = train_table(rewards, seed, pin_terminal=True)
    assert loss < 1e-9
    assert distance(policy) < 1e-3
    assert log_value == pytest.approx(np.log(mass.sum()), abs=1e-3)
    policy, log_value, loss = train_table(rewards, seed, pin_terminal=False)
    assert loss < 1e-9
    assert distance(policy) > 0.1
    assert abs(log_value - np.log(mass.sum())) > 0.1
