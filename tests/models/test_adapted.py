"""Adapters on quantized weights: beside them, merged and saved they are one model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.kernels.frozen import Frozen
from jaxalign.models import LoraConfig
from jaxalign.models.adapted import Adapted

CONFIG = models.ModelConfig(
    vocab_size=96, hidden_size=80, intermediate_size=100, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=20,
    max_positions=32,
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(9), (2, 12), 0, 96)


def drawn(model, settings):
    """An adapter that changes the model, attached."""
    layers = model.params["layers"]
    adapter = models.create_adapter(model.config, settings, key=jax.random.key(0), layers=layers)
    changed = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), adapter)
    return models.attach(changed, settings)


def floats(model):
    """The model with plain arrays of the same numbers."""
    params = jax.tree.map(
        lambda x: x.astype(jnp.float32), model.params, is_leaf=lambda x: isinstance(x, Frozen)
    )
    return models.merge(models.split(model)[0], params)


@pytest.mark.long
@pytest.mark.parametrize("weights", ["int8_projections", "nf4"])
@pytest.mark.parametrize("dora", [False, True])
def test_beside_merged_and_as_floats_an_adapter_gives_the_same_logits(weights, dora):
    model = models.quantize(models.create(CONFIG, key=jax.random.key(2)), weights)
    adapter = drawn(
        model, LoraConfig(enabled=True, rank=4, dora=dora, dropout=0.1, targets=("q_proj", "up_proj"))
    )
    merged = models.merge_adapter(model, adapter)
    expected = jax.jit(models.merge_adapter(floats(model), adapter))(TOKENS)
    assert isinstance(merged.params["layers"]["q_proj"], Adapted)
    assert (
        merged.params["layers"]["v_proj"] is not None
        and np.abs(expected - jax.jit(floats(model))(TOKENS)).max() > 0.01
    )
    for found in (jax.jit(model)(TOKENS, adapter=adapter), jax.jit(merged)(TOKENS)):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert models.params_count(merged.params) == models.params_count(floats(model).params)


@pytest.mark.parametrize("weights", ["int8_projections", "nf4"])
def test_a_merged_model_is_saved_as_the_floats_that_it_stands_for(weights, tmp_path):
    model = models.quantize(models.create(CONFIG, key=jax.random.key(2)), weights)
    merged = models.merge_adapter(model, drawn(model, LoraConfig(enabled=True, rank=4)))
    models.save_pretrained(merged, tmp_path / "saved")
    saved = models.load_pretrained(tmp_path / "saved")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), saved.params, floats(merged).params
    )


def test_a_quantized_model_is_quantized_once():
    model = models.quantize(models.create(CONFIG, key=jax.random.key(2)), "nf4")
    again = models.quantize(model, "nf4")
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (model.params, again.params)), strict=True))
