"""Each update rule by its name gives the steps that its paper does, computed here in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import ConfigError
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer, steps_taken
from jaxalign.training.core.update_rules import RULES, averaged_params, refuse_schedule_free

RATE, DECAY = 0.1, 0.01
RNG = np.random.default_rng(0)
START = {"layers": {"q": RNG.normal(size=(2, 4, 3)), "norm": RNG.normal(size=(2, 3))}}
GRADS = [jax.tree.map(lambda x: RNG.normal(size=x.shape), START) for _ in range(3)]


def config(name, **changes):
    decay = DECAY if RULES[name].decays else 0.0
    given = {"learning_rate": RATE, "schedule": "constant", "weight_decay": decay, "max_grad_norm": 0.0}
    return OptimizerConfig(name=name, **(given | changes))


def trained(optimizer, start=START, grads=GRADS):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    state = optimizer.init(params)
    for grad in grads:
        grad = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grad)
        changes, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, changes)
    return params, state


def adam(x, grads, decay, beta1=0.9, beta2=0.999):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        x = x - RATE * (m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + 1e-8) + decay * x)
    return x


def lion(x, grads, decay):
    m = 0.0
    for g in grads:
        x = x - RATE * (np.sign(0.9 * m + 0.1 * g) + decay * x)
        m = 0.99 * m + 0.01 * g
    return x


def momentum(x, grads, decay, beta1=0.8):
    m = 0.0
    for g in grads:
        m = beta1 * m + g
        x = x - RATE * (m + decay * x)
    return x


def adafactor(x, grads, decay):
    """Of matrices too small to be factored: a running mean square, its decay 1 - t^-0.8, clipped to RMS 1."""
    v = 0.0
    for t, g in enumerate(grads, 1):
        beta = 1 - t**-0.8
        v = beta * v + (1 - beta) * (g**2 + 1e-30)
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)))
        x = x - RATE * (u + decay * x)
    return x


@pytest.mark.parametrize(
    ("name", "changes", "reference"),
    [
        ("adamw", {}, adam),
        ("adam", {}, adam),
        ("lion", {}, lion),
        ("sgd", {"beta1": 0.8}, momentum),
        ("adafactor", {}, adafactor),
    ],
)
def test_three_steps_are_those_of_the_paper_and_matrices_alone_decay(name, changes, reference):
    settings = config(name, **changes)
    found, _ = trained(make_optimizer(settings, 3)[0])
    for leaf, decays in (("q", True), ("norm", False)):
        grads = [g["layers"][leaf] for g in GRADS]
        wanted = reference(START["layers"][leaf], grads, settings.weight_decay if decays else 0.0)
        np.testing.assert_allclose(found["layers"][leaf], wanted, rtol=2e-5, atol=2e-6)


def test_muon_turns_each_layers_matrix_into_a_rotation_and_leaves_the_rest_to_adamw():
    start = {
        "layers": {"q": np.zeros((2, 4, 3)), "experts": np.zeros((2, 3, 4, 3)), "norm": np.zeros((2, 3))},
        "embed": np.zeros((5, 4)),
    }
    grad = jax.tree.map(lambda x: RNG.normal(size=x.shape), start)
    found, state = trained(make_optimizer(config("muon"), 3)[0], start, [grad])
    for name, *place in (("q", 0), ("q", 1), ("experts", 0, 2), ("experts", 1, 0)):
        u, _, v = np.linalg.svd(grad["layers"][name][*place], full_matrices=False)
        step = -np.asarray(found["layers"][name][*place]) / (RATE * 0.2 * np.sqrt(4))
        # Five Newton-Schulz iterations bring singular values near 1, and keep the directions.
        inside = u.T @ step @ v.T
        assert np.all(np.abs(np.diag(inside) - 1) < 0.35)
        np.testing.assert_allclose(inside - np.diag(np.diag(inside)), 0, atol=0.02)
    for found_leaf, leaf in (
        (found["layers"]["norm"], grad["layers"]["norm"]),
        (found["embed"], grad["embed"]),
    ):
        np.testing.assert_allclose(found_leaf, adam(0.0, [leaf], 0.0), rtol=1e-4)
    assert steps_taken(state, "policy") == 1


def test_schedule_free_steps_are_those_of_the_paper_and_their_average_is_kept():
    """arXiv:2405.15682, algorithm 1, at a constant rate: all weights of the average are equal."""
    found, state = trained(make_optimizer(config("schedule_free_adamw"), 3)[0])
    for leaf, decay in (("q", DECAY), ("norm", 0.0)):
        x = y = z = START["layers"][leaf]
        v = 0.0
        for t, g in enumerate((g["layers"][leaf] for g in GRADS), 1):
            v = 0.999 * v + 0.001 * g**2
            z = z - RATE * (g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * y)
            x = (1 - 1 / t) * x + z / t
            y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(found["layers"][leaf], y, rtol=1e-4, atol=1e-5)
        average = averaged_params(found, state)["layers"][leaf]
        np.testing.assert_allclose(average, x, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="a schedule-free optimizer cannot be combined with ppo"):
        refuse_schedule_free(state, "ppo")


def test_without_a_schedule_free_optimizer_the_parameters_themselves_are_kept():
    params, state = trained(make_optimizer(config("adamw"), 3)[0])
    assert averaged_params(params, state) is params
    refuse_schedule_free(state, "ppo")


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.moment and name != "sgd"])
def test_the_first_moment_may_be_kept_in_half_the_bytes(name):
    _, state = trained(make_optimizer(config(name, moment_dtype="bfloat16"), 3)[0])
    dtypes = {x.dtype for x in jax.tree.leaves(state)}
    assert jnp.dtype(jnp.bfloat16) in dtypes
    _, state = trained(make_optimizer(config(name), 3)[0])
    assert jnp.dtype(jnp.bfloat16) not in {x.dtype for x in jax.tree.leaves(state)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "lion", "epsilon": 1e-8}, "optimizer.epsilon is not used by optimizer.name=lion"),
        ({"name": "sgd", "beta2": 0.9}, "optimizer.beta2 is not used by optimizer.name=sgd"),
        (
            {"name": "adam", "weight_decay": 0.1},
            "optimizer.weight_decay: optimizer.name=adam does not support it; adamw does",
        ),
        ({"name": "adafactor", "moment_dtype": "bfloat16"}, "optimizer.name=adafactor has no first moment"),
        ({"name": "schedule_free_adamw"}, "it needs optimizer.schedule=constant, got cosine"),
    ],
)
def test_a_number_that_the_rule_does_not_read_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


def test_an_optax_transformation_or_schedule_takes_the_place_of_what_the_configuration_names():
    given = optax.sgd(0.5)
    assert make_optimizer(OptimizerConfig(), 3, given) == (given, None)
    schedule = optax.linear_schedule(0.2, 0.0, 2)
    optimizer, rate = make_optimizer(config("sgd", weight_decay=0.0), 3, schedule)
    assert rate is schedule
    found, _ = trained(optimizer)
    wanted = START["layers"]["q"] - 0.2 * GRADS[0]["layers"]["q"] - 0.1 * GRADS[1]["layers"]["q"]
    np.testing.assert_allclose(found["layers"]["q"], wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="expected an Optax transformation or a schedule"):
        make_optimizer(OptimizerConfig(), 3, 0.1)
