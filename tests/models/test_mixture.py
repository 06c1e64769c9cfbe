"""Mixtures of experts: routing and its loss equal transformers', and what experts cannot do is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.flops import layer_weights
from jaxalign.models.mixture import balance_loss, fed, load, mixture, route
from jaxalign.models.sharding import on_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


def golden_of(family):
    return np.load(GOLDEN / family / "golden.npz")


@pytest.mark.parametrize(
    "family",
    [
        "qwen3_moe",
        "gpt_oss",
        *[pytest.param(f, marks=pytest.mark.slow) for f in ("mixtral", "qwen3_moe_normalized")],
    ],
)
def test_the_balance_loss_and_gradients_equal_transformers(family):
    golden, model = golden_of(family), models.load_pretrained(GOLDEN / family)
    tokens, lengths = jnp.asarray(golden["tokens"]), jnp.asarray([17, 11])
    definition, params = models.split(model)

    def function(params):
        model = models.merge(definition, params)
        hidden, (loss, count) = model.hidden_and_balance(tokens, lengths=lengths)
        return loss + jnp.mean(model.logits(hidden)[0] ** 2), (loss, count)

    (_, (loss, count)), grads = jax.jit(jax.value_and_grad(function, has_aux=True))(params)
    assert count == 28
    np.testing.assert_allclose(loss, golden["router_loss"], rtol=1e-5)
    layer = grads["layers"]
    np.testing.assert_allclose(layer["router"][0].T, golden["router_grad"], atol=2e-5)
    gate, up = layer["experts_gate"][0], layer["experts_up"][0]
    if family == "gpt_oss":
        both = jnp.stack([gate, up], axis=3).reshape(*gate.shape[:2], -1)
    else:
        both = jnp.concatenate([gate, up], axis=2).swapaxes(1, 2)
    np.testing.assert_allclose(both, golden["experts_grad"], atol=2e-5)


@pytest.mark.long
def test_padding_and_packing_change_neither_states_nor_loss():
    model = models.load_pretrained(GOLDEN / "qwen3_moe")
    tokens = jnp.asarray(golden_of("qwen3_moe")["tokens"])
    run = jax.jit(lambda model, tokens, **rows: model.hidden_and_balance(tokens, **rows))
    states, (loss, count) = run(model, tokens, lengths=jnp.asarray([17, 11]))
    packed = jnp.concatenate([tokens[:1], tokens[1:, :11], jnp.zeros((1, 4), int)], axis=1)
    segments = jnp.asarray([[1] * 17 + [2] * 11 + [0] * 4])
    again, (same, as_many) = run(model, packed, segment_ids=segments)
    np.testing.assert_allclose(again[0, :17], states[0], atol=1e-5)
    np.testing.assert_allclose(again[0, 17:28], states[1, :11], atol=1e-5)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    assert count == as_many == 28


@pytest.mark.long
def test_a_token_gets_the_weighted_sum_of_its_experts():
    config = models.load_config(GOLDEN / "mixtral")
    layer = jax.tree.map(lambda x: x[0], models.load_pretrained(GOLDEN / "mixtral").params["layers"])
    h = jax.random.normal(jax.random.key(0), (2, 3, 32))
    _, weights, chosen = route(h, layer, config)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    found = mixture(h, layer, config)
    for place in np.ndindex(2, 3):
        expected = 0
        for weight, expert in zip(weights[place], chosen[place], strict=True):
            gate, up, down = (layer[name][expert] for name in ("experts_gate", "experts_up", "experts_down"))
            expected += weight * ((jax.nn.silu(h[place] @ gate) * (h[place] @ up)) @ down)
        np.testing.assert_allclose(found[place], expected, atol=1e-5)


def test_no_token_is_dropped_where_all_choose_one_expert():
    config = models.load_config(GOLDEN / "qwen3_moe_normalized")
    gate, up = jax.random.normal(jax.random.key(0), (2, 4, 32, 16))
    down = jax.random.normal(jax.random.key(1), (4, 16, 32))
    h, two = jax.random.normal(jax.random.key(2), (1, 9, 32)), jnp.full((1, 9, 1), 2)
    found = fed(h, jnp.ones((1, 9, 1)), two, gate, up, down, config=config)
    np.testing.assert_allclose(
        found, (jax.nn.silu(h @ gate[2]) * (h @ up[2])) @ down[2], rtol=1e-4, atol=1e-4
    )


def test_the_balance_loss_by_hand():
    """Two layers, two experts; of three tokens the last is padding."""
    probs = jnp.asarray([[[0.75, 0.25], [0.5, 0.5], [jnp.nan, jnp.nan]]])
    counts, sums = load(probs, jnp.asarray([[[0], [1], [1]]]), jnp.asarray([[True, True, False]]))
    np.testing.assert_allclose(counts, [1, 1])
    np.testing.assert_allclose(sums, [1.25, 0.75])
    both = jnp.stack([counts, jnp.asarray([2.0, 0.0])]), jnp.stack([sums, jnp.asarray([2.0, 0.0])])
    np.testing.assert_allclose(balance_loss(*both, 2), 2 * (3 / 4 * 3.25 / 4 + 1 / 4 * 0.75 / 4))


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "axes"),
    [
        pytest.param("mixtral", {"fsdp": 2}, marks=pytest.mark.slow),
        ("mixtral", {"fsdp": 2, "tensor": 2}),
        ("gpt_oss", {"data": 2, "tensor": 2}),
    ],
)
def test_a_mesh_changes_nothing(family, axes, devices):
    model = models.load_pretrained(GOLDEN / family)
    mesh = make_mesh(MeshConfig(**axes), devices)
    golden = golden_of(family)
    tokens, lengths = jnp.asarray(golden["tokens"]), jnp.asarray([17, 11])
    definition, params = models.split(model)
    spread = replace(definition, config=replace(definition.config, mesh=mesh))

    def function(params, definition):
        hidden, (loss, _) = models.merge(definition, params).hidden_and_balance(tokens, lengths=lengths)
        return loss + jnp.mean(hidden[0] ** 2)

    run = jax.jit(jax.value_and_grad(function), static_argnums=1)
    expected, found = run(params, definition), run(on_mesh(params, mesh), spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "axes", "rows"),
    [
        ("mixtral", {"expert": 4, "data": 2}, 8),
        ("qwen3_moe_normalized", {"expert": 2, "fsdp": 2, "tensor": 2}, 4),
        ("gpt_oss", {"expert": 4, "fsdp": 2}, 8),
        ("gpt_oss", {"expert": 2, "context": 2, "tensor": 2}, 2),
        # Rows that do not divide: every device has all tokens.
        ("gpt_oss", {"expert": 2, "data": 2}, 3),
    ],
    ids=str,
)
def test_an_axis_of_experts_changes_nothing(family, axes, rows, devices):
    """Loss with the router's, logits and gradients; of rows of several lengths, and of all parameters."""
    model = models.load_pretrained(GOLDEN / family)
    mesh = make_mesh(MeshConfig(**axes), devices)
    tokens = jax.random.randint(jax.random.key(0), (rows, 16), 0, model.config.vocab_size)
    lengths = jnp.arange(16, 16 - rows, -1)
    definition, params = models.split(model)
    spread = replace(definition, config=replace(definition.config, mesh=mesh))

    def function(params, definition):
        live = models.merge(definition, params)
        hidden, (loss, _) = live.hidden_and_balance(tokens, lengths=lengths)
        logits = jnp.where((jnp.arange(16) < lengths[:, None])[..., None], live.logits(hidden), 0)
        return loss + jnp.mean(logits**2), logits

    run = jax.jit(jax.value_and_grad(function, has_aux=True), static_argnums=1)
    placed = on_mesh(params, mesh)
    gate = placed["layers"]["experts_gate"]
    assert gate.sharding.shard_shape(gate.shape)[1] == gate.shape[1] // axes["expert"]
    (loss, logits), grads = run(params, definition)
    (found, same), spread_grads = run(placed, spread)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    np.testing.assert_allclose(same, logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), spread_grads, grads)


@pytest.mark.long
@pytest.mark.parametrize("remat", [pytest.param("minimal", marks=pytest.mark.slow), "full"])
def test_remat_changes_neither_loss_nor_gradient(remat):
    model = models.load_pretrained(GOLDEN / "qwen3_moe")
    tokens = jnp.asarray(golden_of("qwen3_moe")["tokens"])

    def run(model):
        definition, params = models.split(model)

        def function(params):
            hidden, (loss, _) = models.merge(definition, params).hidden_and_balance(tokens)
            return loss + jnp.mean(hidden**2)

        return jax.jit(jax.value_and_grad(function))(params)

    plain, again = run(model), run(models.with_remat(model, remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), again, plain)


def test_adapters_on_attention_alone():
    config = models.load_config(GOLDEN / "mixtral")
    assert set(models.create_adapter(config, models.LoraConfig(enabled=True), key=jax.random.key(0))) == {
        "q_proj", "k_proj", "v_proj", "o_proj",
    }  # fmt: skip
    for targets in (("all",), ("q_proj", "up_proj")):
        with pytest.raises(ModelError, match=rf"lora\.targets: {targets[-1]}: the experts of a mixture"):
            models.create_adapter(
                config, models.LoraConfig(enabled=True, targets=targets), key=jax.random.key(0)
            )


@pytest.mark.parametrize("weights", ["int8", "int8_projections", "nf4"])
def test_quantized_experts_are_refused(weights):
    model = models.load_pretrained(GOLDEN / "mixtral")
    line = f"^the experts of a mixture cannot be kept in {weights}"
    with pytest.raises(ModelError, match=line):
        models.quantize(model, weights)
    with pytest.raises(ModelError, match=line):
        models.load_pretrained(GOLDEN / "mixtral", weights=weights)


def test_exact_mode_is_refused():
    with pytest.raises(ModelError, match=r"^exact mode cannot compute experts \(mixtral\)$"):
        models.with_config(models.load_pretrained(GOLDEN / "mixtral"), exact=True)


def test_flops_count_the_experts_that_a_token_uses():
    config = models.load_config(GOLDEN / "qwen3_moe")
    attention = 32 * (4 + 2 + 2) * 12 + 4 * 12 * 32
    assert layer_weights(config) == 2 * (attention + 32 * 5 + 3 * 3 * 32 * 20)


@pytest.mark.parametrize(
    ("family", "change", "expected"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0]}, "layers without experts are not supported"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "layers without experts are not supported"),
        ("qwen3_moe", {"num_experts": 7}, "num_local_experts = 5 is not num_experts = 7"),
        ("qwen3_moe", {"num_local_experts": 0}, "num_experts = 0; expected 1 or more"),
        ("mixtral", {"num_experts_per_tok": 5}, "a token uses 5 of 4 experts"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise is not supported"),
    ],
)
def test_settings_that_are_not_supported_are_named(family, change, expected, tmp_path):
    body = json.loads((GOLDEN / family / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(body | change))
    with pytest.raises(ModelError, match=expected):
        models.load_config(tmp_path)


def test_an_expert_that_is_missing_is_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(GOLDEN / "mixtral" / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "mixtral" / "config.json").read_text())
    with pytest.raises(ModelError, match=f"missing tensor {name}"):
        models.load_pretrained(tmp_path)
