"""The guard against loss spikes: what is one, what it leaves alone, and that the statistics survive."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import models
from jaxalign.training.core import spike_guard
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.spike_guard import WARMUP, skipped, without_spikes
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from jaxalign.training.sft import train_sft
from tests.training.cases import KEY


def expected(norms, zscore):
    """(mean, variance, which are skipped), float64; at first all norms weigh alike."""
    mean = variance = 0.0
    skipped = []
    for number, norm in enumerate(norms, 1):
        limit = mean + zscore * max(np.sqrt(variance), 0.01 * mean)
        skipped.append(number > WARMUP and norm > limit)
        value = limit if skipped[-1] else norm
        if number <= 33:
            seen = (expected.seen if number > 1 else []) + [value]
            expected.seen, mean, variance = seen, np.mean(seen), np.var(seen)
        else:
            before, mean = mean, mean + 0.03 * (value - mean)
            variance = 0.97 * (variance + 0.03 * (value - before) ** 2)
    return mean, variance, skipped


def test_spikes_and_statistics_are_those_of_float64():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0, 0.2, 120)
    norms[[3, 40, 41, 90]] *= 20  # the first comes while statistics are gathered
    mean, variance, skipped = expected(norms, 4.0)
    guard = without_spikes(optax.sgd(1.0), 4.0)
    params = {"w": jnp.zeros(4)}
    state, found = guard.init(params), []
    for norm in norms:
        changes, state = jax.jit(guard.update)({"w": jnp.full(4, norm / 2)}, state, params)
        found.append(not np.any(changes["w"]))
    assert found == skipped and sum(skipped) >= 3
    np.testing.assert_allclose((state.mean, state.variance), (mean, variance), rtol=1e-4)
    assert state.skipped == sum(skipped) and state.steps == 120


def test_a_level_that_stays_is_the_new_one():
    guard = without_spikes(optax.sgd(1.0), 4.0)
    params, update = {"w": jnp.zeros(1)}, jax.jit(guard.update)
    state = guard.init(params)
    for norm in [1.0] * 60 + [3.0] * 200:
        changes, state = update({"w": jnp.full(1, norm)}, state, params)
    assert 0 < state.skipped < 100 and changes["w"] == -3.0


def run(optimizer, factors):
    """Steps on a loss whose gradient is 2 w + factor; the states, and what each step reports."""

    def loss(params, frozen, batch, key, counts):
        del frozen, key, counts
        return jnp.sum(params["w"] ** 2) + jnp.mean(batch) * jnp.sum(params["w"]), {}

    update = make_update(loss, lambda batch: batch.size, optimizer)
    state, states, metrics = create_state({"w": jnp.ones(8)}, optimizer), [], []
    for factor in factors:
        state, told = update(state, None, jnp.full(2, factor, jnp.float32), KEY)
        states.append(jax.tree.map(np.asarray, state))
        metrics.append(told)
    return states, metrics


def test_a_skipped_step_leaves_parameters_and_moments_and_is_counted():
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=1e-3, spike_zscore=4.0), 60)
    factors = [0.1 * (i % 3) for i in range(40)] + [1e6, 0.1]
    states, metrics = run(optimizer, factors)
    before, after, later = states[-3:]
    assert [float(told["spike"]) for told in metrics[-3:]] == [0, 1, 0] and metrics[-2]["finite"] == 1
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state.inner, after.opt_state.inner)
    assert after.step == before.step + 1
    assert np.all(later.params["w"] != after.params["w"])


def test_a_gradient_that_is_not_finite_enters_no_statistics():
    optimizer, _ = make_optimizer(OptimizerConfig(spike_zscore=4.0), 60)
    states, metrics = run(optimizer, [0.1] * 3 + [np.inf])
    assert metrics[-1]["finite"] == 0
    jax.tree.map(np.testing.assert_array_equal, states[-2].opt_state, states[-1].opt_state)


def test_without_the_key_nothing_is_guarded_nor_reported():
    optimizer, _ = make_optimizer(OptimizerConfig(), 60)
    states, metrics = run(optimizer, [0.1])
    assert skipped(states[0].opt_state, states[0].opt_state) == {} and "spike" not in metrics[0]


def test_a_negative_score_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.spike_zscore must be 0 or more"):
        OptimizerConfig(spike_zscore=-1.0)


@pytest.mark.long
def test_a_run_tells_of_each_step_that_it_skips(configs, tmp_path, monkeypatch):
    # Without statistics every norm above 0 is a spike.
    monkeypatch.setattr(spike_guard, "WARMUP", 0)
    config = configs.sft(tmp_path / "run", optimizer=replace(configs.optimizer, spike_zscore=1.0))
    result = train_sft(config)
    start = models.load_pretrained(configs.model.path)
    jax.tree.map(np.testing.assert_array_equal, result.model.params, start.params)
    assert result.metrics["train/spike"] == 1
    told = re.findall(
        r"step (\d+): skipped, because the gradient norm \S+ is a spike",
        (tmp_path / "run" / "run.log").read_text(),
    )
    assert told == [str(step) for step in range(1, config.train.steps + 1)]
