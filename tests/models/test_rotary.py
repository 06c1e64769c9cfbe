"""Rotary scalings: what depends on the length of rows equals transformers for rows of that length, and stays."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig, RopeScaling
from jaxalign.models.rotary import attention_factor, rope_frequencies, rotate, with_context

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
BY_LENGTH = ["llama_dynamic", "phi3_longrope"]


@pytest.mark.parametrize("family", BY_LENGTH)
def test_longer_rows_equal_transformers_in_a_context_of_their_length(family):
    golden = np.load(GOLDEN / family / "golden.npz")
    tokens = jnp.asarray(golden["longer_tokens"])
    model = models.load_pretrained(GOLDEN / family, context=tokens.shape[1])
    np.testing.assert_allclose(model(tokens), golden["longer_logits"], atol=1e-4)
    short = models.load_pretrained(GOLDEN / family)
    with pytest.raises(
        ValueError, match=r"rows of 48 tokens, but the model was loaded for 32, .* context=48"
    ):
        short(tokens)


@pytest.mark.parametrize("family", [pytest.param(BY_LENGTH[0], marks=pytest.mark.slow), BY_LENGTH[1]])
def test_in_a_longer_context_a_short_row_has_its_own_frequencies_in_the_cache_too(family):
    """They are those of the context from the first token on: no key in the cache becomes wrong as the row grows."""
    tokens = jnp.asarray(np.load(GOLDEN / family / "golden.npz")["longer_tokens"])
    model = models.load_pretrained(GOLDEN / family, context=48)
    whole = model(tokens)
    assert np.abs(whole[:, :17] - models.load_pretrained(GOLDEN / family)(tokens[:, :17])).max() > 1e-3
    hidden, cache = jax.jit(partial(model.prefill, cache_length=48))(tokens[:, :30], jnp.asarray([30]))
    weights, decode = model.decode_weights(), jax.jit(model.decode)
    for column in range(30, 36):  # across the trained length, 32
        np.testing.assert_allclose(model.logits(hidden), whole[:, column - 1], atol=1e-4)
        hidden, cache = decode(weights, tokens[:, column], cache)


@pytest.mark.parametrize("family", BY_LENGTH)
def test_a_model_in_another_context_is_saved_with_the_length_of_its_folder(family, tmp_path):
    model = models.load_pretrained(GOLDEN / family, context=40)
    models.save_pretrained(model, tmp_path / "saved")
    assert models.load_config(tmp_path / "saved") == models.load_config(GOLDEN / family)
    assert models.load_config(tmp_path / "saved", context=40) == model.config


@pytest.mark.parametrize(
    ("family", "most"),
    [("llama_yarn", 64), ("qwen3_yarn", 128), ("phi3_longrope", 128), ("gpt2", 40), ("llama3", 128)],
)
def test_a_context_that_a_model_cannot_have_is_refused_by_its_key(family, most):
    assert models.load_config(GOLDEN / family, context=most).max_positions == most
    with pytest.raises(ModelError, match=rf"^model.context={most + 1}: .* rows of 1 to {most} tokens$"):
        models.load_config(GOLDEN / family, context=most + 1, key="model.context")
    with pytest.raises(ModelError, match="context=-1"):
        models.load_config(GOLDEN / family, context=-1)


def test_dynamic_models_read_rows_of_any_length():
    assert models.load_config(GOLDEN / "llama_dynamic", context=100_000).max_positions == 100_000


def test_a_shorter_context_of_learned_positions_loads():
    model = models.load_pretrained(GOLDEN / "gpt2", context=20)
    assert (model.config.max_positions, model.params["embed"]["positions"].shape[0]) == (20, 40)
    golden = np.load(GOLDEN / "gpt2" / "golden.npz")
    np.testing.assert_allclose(model(jnp.asarray(golden["tokens"])), golden["logits"], atol=1e-4)


def test_dynamic_frequencies_by_hand():
    scaling = RopeScaling(kind="dynamic", factor=2.0, original_positions=32)
    base = 10_000.0 * (2 * 48 / 32 - 1) ** (4 / 2)
    np.testing.assert_allclose(rope_frequencies(4, 10_000.0, scaling, 48), [1, base**-0.5])
    np.testing.assert_allclose(rope_frequencies(4, 10_000.0, scaling, 20), [1, 0.01])


def test_attention_factors_by_hand():
    yarn = RopeScaling(kind="yarn", factor=4.0)
    assert attention_factor(yarn) == pytest.approx(0.1 * np.log(4) + 1)
    both = replace(yarn, mscale=2.0, mscale_all_dim=1.0)
    assert attention_factor(both) == pytest.approx((0.2 * np.log(4) + 1) / (0.1 * np.log(4) + 1))
    assert attention_factor(replace(both, attention_factor=1.5)) == 1.5
    assert attention_factor(replace(yarn, factor=1.0)) == 1.0
    long = RopeScaling(kind="longrope", factor=32.0, original_positions=4096)
    assert attention_factor(long) == pytest.approx(np.sqrt(1 + 5 / 12))
    assert attention_factor(RopeScaling(kind="linear", factor=4.0)) == 1.0


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_gradient_of_a_scaled_rotation_is_its_transpose(interleaved):
    angles = jax.random.normal(jax.random.key(2), (1, 3, 1, 2))
    tables = (1.3 * jnp.cos(angles), 1.3 * jnp.sin(angles))
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 6))
    turn = lambda x: rotate(x, tables, interleaved)  # noqa: E731
    (transposed,) = jax.vjp(turn, x)[1](turn(x))
    np.testing.assert_allclose(transposed[..., :4], 1.69 * x[..., :4], rtol=1e-5)
    np.testing.assert_allclose(transposed[..., 4:], x[..., 4:])


def test_with_context_keeps_a_config_that_says_nothing_else():
    config = ModelConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
        max_positions=64,
    )  # fmt: skip
    assert with_context(with_context(config, 20), 64) == with_context(config, 0) == config
