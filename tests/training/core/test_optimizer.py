"""Schedules, clipping and weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "cosine"}, [1, 0.853553, 0.5, 0.146447, 0]),
        ({"schedule": "cosine_restarts", "cycles": 2}, [1, 0.5, 1, 0.5, 1]),
        ({"schedule": "constant", "warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1]),
        ({"schedule": "linear", "warmup_ratio": 0.5, "final_ratio": 0.5}, [1 / 3, 2 / 3, 1, 0.75, 0.5]),
    ],
)
def test_schedules_by_hand(changes, expected):
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, **changes), 4)
    np.testing.assert_allclose([float(schedule(i)) for i in range(5)], expected, atol=1e-6)


def test_weight_decay_leaves_vectors_alone(devices):
    params = {
        "layers": {
            "q_proj": jnp.ones((2, 3, 3)),
            "input_norm": jnp.ones((2, 3)),
            "q_proj_bias": jnp.ones((2, 3)),
        }
    }
    optimizer, _ = make_optimizer(
        OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.5, max_grad_norm=0.0), 1
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(changes["layers"]["q_proj"], -0.05, rtol=1e-6)
    assert np.all(changes["layers"]["input_norm"] == 0)
    assert np.all(changes["layers"]["q_proj_bias"] == 0)


def test_a_gradient_over_the_limit_is_scaled_as_a_whole():
    config = OptimizerConfig(learning_rate=1.0, schedule="constant", max_grad_norm=1.0, epsilon=1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    grads = {"a": jnp.array([30.0, 0.0]), "b": jnp.array([0.0, 40.0])}
    optimizer, _ = make_optimizer(config, 1)
    changes, _ = optimizer.update(grads, optimizer.init(params), params)
    # Norm 50 becomes 1; Adam's first step is then -g / (|g| + epsilon) = -0.6 / 1.6 and -0.8 / 1.8.
    np.testing.assert_allclose(changes["a"], [-0.375, 0], rtol=1e-5)
    np.testing.assert_allclose(changes["b"], [0, -0.8 / 1.8], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"cycles": 0}, "cycles"),
        ({"max_grad_norm": -0.5}, "max_grad_norm"),
    ],
)
def test_a_number_out_of_range_is_named(changes, field):
    with pytest.raises(ValueError, match=f"optimizer.{field} "):
        OptimizerConfig(**changes)
