"""Scalar heads: linear or an MLP, and their dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.models.heads import HeadConfig, apply_head, create_head

CONFIG = models.ModelConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=32,
)


def test_a_linear_head_is_one_product():
    config = HeadConfig()
    params = create_head(CONFIG, config, key=jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (3, 16))
    expected = np.asarray(hidden, np.float64) @ np.asarray(params["score"], np.float64)
    np.testing.assert_allclose(
        apply_head(config, params, hidden, products="compute_dtype"), expected, atol=1e-5
    )


def test_an_mlp_head_has_one_hidden_layer_of_the_given_width():
    config = HeadConfig(kind="mlp", hidden_size=24)
    params = create_head(CONFIG, config, key=jax.random.key(0))
    params["hidden_bias"] = jax.random.normal(jax.random.key(2), (24,))
    hidden = jax.random.normal(jax.random.key(1), (3, 16))
    w, b, s = (np.asarray(params[name], np.float64) for name in ("hidden", "hidden_bias", "score"))
    x = np.asarray(hidden, np.float64) @ w + b
    gelu = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert w.shape == (16, 24)
    np.testing.assert_allclose(
        apply_head(config, params, hidden, products="compute_dtype"), gelu @ s, atol=1e-5
    )


def test_a_head_of_width_zero_std_starts_at_zero_and_the_default_is_small():
    assert not create_head(CONFIG, HeadConfig(init_std=0.0), key=jax.random.key(0))["score"].any()
    wide = models.ModelConfig(**{**CONFIG.__dict__, "hidden_size": 4095})
    score = create_head(wide, HeadConfig(), key=jax.random.key(0))["score"]
    np.testing.assert_allclose(np.std(score), 1 / 64, rtol=0.05)


def test_dropout_keeps_the_mean_and_needs_a_key():
    config = HeadConfig(dropout=0.25)
    params = {"score": jnp.full(16, 0.5)}
    hidden = jnp.ones((4000, 16))
    np.testing.assert_allclose(apply_head(config, params, hidden, products="compute_dtype"), 8.0)
    dropped = apply_head(config, params, hidden, products="compute_dtype", dropout_key=jax.random.key(3))
    np.testing.assert_allclose(dropped.mean(), 8.0, rtol=0.01)
    # Each of 16 inputs is 0 or 0.5 / 0.75, with variance (0.5 / 0.75)^2 * 0.75 * 0.25.
    np.testing.assert_allclose(dropped.var(), 16 * (0.5 / 0.75) ** 2 * 0.75 * 0.25, rtol=0.1)


def test_dropout_is_for_training_only():
    model = models.create(CONFIG, key=jax.random.key(0))
    scalar = models.create_scalar_model(model, HeadConfig(dropout=0.5), key=jax.random.key(1))
    tokens, lengths = jnp.ones((2, 4), int), jnp.full(2, 4)
    np.testing.assert_array_equal(scalar(tokens, lengths=lengths), scalar(tokens, lengths=lengths))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ValueError, match=r"head\.dropout must lie in"):
        HeadConfig(dropout=dropout)
