"""Adapters: rsLoRA's scale, DoRA's magnitudes and their gradient, against float64."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.kernels.remat import rematerialized
from jaxalign.models import LoraConfig
from jaxalign.models.layers import linear
from jaxalign.models.lora import stack_adapters
from jaxalign.training.core.update_rules import is_matrix

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
CONFIG = models.load_config(GOLDEN / "llama")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def layer(scale=0.7):
    """x, the layer's weights, and a DoRA adapter that changes them."""
    weights = {"q_proj": normal(0, 6, 4), "q_proj_bias": normal(1, 4)}
    part = {"a": normal(2, 6, 2), "b": normal(3, 2, 4), "magnitude": 1 + normal(4, 4) ** 2}
    return normal(5, 3, 6), weights, {"q_proj": part | {"scale": jnp.float32(scale)}}


def test_rslora_divides_alpha_by_the_square_root_of_the_rank():
    assert LoraConfig(rank=16, alpha=8.0).scale == 0.5
    assert LoraConfig(rank=16, alpha=8.0, rslora=True).scale == 2.0
    adapter = models.create_adapter(CONFIG, LoraConfig(rank=4), key=jax.random.key(0))
    attached = models.attach(adapter, LoraConfig(rank=4, alpha=6.0, rslora=True))
    np.testing.assert_array_equal(attached["q_proj"]["scale"], np.full(CONFIG.num_layers, 3.0))


def test_dora_gives_the_outputs_weights_the_norm_of_their_magnitude():
    x, weights, adapter = layer()
    part = {name: np.float64(value) for name, value in adapter["q_proj"].items()}
    whole = np.float64(weights["q_proj"]) + part["scale"] * part["a"] @ part["b"]
    expected = whole / np.linalg.norm(whole, axis=0) * part["magnitude"]
    y = linear(x, weights, "q_proj", CONFIG, adapter)
    np.testing.assert_allclose(y, np.float64(x) @ expected + np.float64(weights["q_proj_bias"]), atol=1e-5)


def test_the_norm_of_dora_has_no_gradient():
    x, weights, adapter = layer()
    part = adapter["q_proj"]
    whole = np.float64(weights["q_proj"]) + 0.7 * np.float64(part["a"]) @ np.float64(part["b"])
    norms = np.linalg.norm(whole, axis=0)

    def total(part):
        return jnp.sum(linear(x, weights, "q_proj", CONFIG, {"q_proj": part | {"scale": part["scale"]}}))

    found = jax.grad(total)(part)
    # dL/dy is 1: the gain magnitude / norm counts as a constant for a and b.
    gain = np.float64(part["magnitude"]) / norms
    rows = np.float64(x).sum(0)
    np.testing.assert_allclose(found["magnitude"], rows @ whole / norms, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found["b"], 0.7 * np.outer(rows @ np.float64(part["a"]), gain), rtol=1e-4, atol=1e-5
    )
    again = jax.grad(lambda p: rematerialized(total, "minimal")(p))(part)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), found, again)


@pytest.mark.long
def test_a_new_dora_adapter_changes_nothing_and_merges_to_what_it_gives_beside():
    model = models.load_pretrained(GOLDEN / "llama")
    settings = LoraConfig(enabled=True, rank=3, targets=("all",), dora=True)
    with pytest.raises(ValueError, match="pass layers"):
        models.create_adapter(model.config, settings, key=jax.random.key(0))
    adapter = models.create_adapter(
        model.config, settings, key=jax.random.key(0), layers=model.params["layers"]
    )
    tokens = jnp.arange(12).reshape(2, 6)
    run = jax.jit(lambda adapter: model(tokens, adapter=adapter))
    np.testing.assert_allclose(run(models.attach(adapter, settings)), run(None), atol=1e-5)
    changed = models.attach(jax.tree.map(lambda x: x + 0.1 * normal(1, *x.shape), adapter), settings)
    merged = models.merge_adapter(model, changed)
    assert np.abs(run(changed) - run(None)).max() > 0.1
    np.testing.assert_allclose(run(changed), jax.jit(merged)(tokens), atol=1e-4)
    with pytest.raises(ValueError, match="cannot be stacked"):
        stack_adapters([changed, changed])


def test_magnitudes_are_no_matrices_for_weight_decay():
    found = is_matrix({"q_proj": {"a": normal(0, 2, 6, 2), "magnitude": normal(1, 2, 4)}})
    assert found == {"q_proj": {"a": True, "magnitude": False}}
