"""gpt-oss: attention sinks, and folders whose experts are in MXFP4."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models import attention
from jaxalign.models.families import config_from_json
from jaxalign.rollout.search import states_after

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "models" / "gpt_oss"


def config(**changes):
    return models.ModelConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=4,
        max_positions=16, attention_sinks=True, **changes,
    )  # fmt: skip


@pytest.mark.long
def test_a_sink_is_one_more_key_of_value_zero():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 5, n, 4)) for i, n in enumerate((4, 2, 2)))
    sinks = jnp.asarray([0.5, -1.0, 2.0, 0.0])
    rows = (jnp.arange(5)[None], jnp.ones((1, 5), int), 0, config())
    found = attention.attend(q, k, v, *rows, sinks=sinks).reshape(1, 5, 4, 4)
    for head in range(4):
        scores = q[0, 4, head] @ k[0, :, head // 2].T / 2
        shares = jax.nn.softmax(jnp.append(scores, sinks[head]))[:-1]
        np.testing.assert_allclose(found[0, 4, head], shares @ v[0, :, head // 2], atol=1e-6)
    without = attention.attend(q, k, v, *rows, sinks=jnp.full(4, -1e30))
    np.testing.assert_allclose(without, attention.attend(q, k, v, *rows), atol=1e-6)


@pytest.mark.parametrize("form", ["blockwise", "cudnn", "splash"])
def test_other_implementations_are_refused_and_never_chosen(form):
    device = jax.devices()[0]
    assert attention.choose_attention(config(), device).implementation == "plain"
    with pytest.raises(ValueError, match=f"attention {form}: attention sinks are computed by plain alone$"):
        attention.choose_attention(config(attention=form), device)


@pytest.mark.long
def test_states_after_candidates_are_those_of_decoding_each():
    model = models.load_pretrained(FOLDER)
    tokens = jnp.asarray(np.load(FOLDER / "golden.npz")["tokens"])
    _, cache = model.prefill(tokens[:, :9], jnp.asarray([9, 6]), cache_length=10)
    weights, candidates = model.decode_weights(), jnp.asarray([[3, 30], [7, 40]])
    found = states_after(model, weights, candidates, cache)
    for place in range(2):
        states, _ = model.decode(weights, candidates[:, place], cache)
        np.testing.assert_allclose(found[:, place], states, atol=1e-4)


@pytest.fixture
def mxfp4_folder(tmp_path):
    """The golden folder with random MXFP4 experts, and the same experts as floats by transformers."""
    golden = np.load(GOLDEN / "mxfp4" / "golden.npz")
    plain, packed = (Path(shutil.copytree(FOLDER, tmp_path / name)) for name in ("plain", "packed"))
    tensors = load_file(FOLDER / "model.safetensors")
    bytes_of = {}
    rng = np.random.default_rng(0)
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        # The golden matrices are [64, 6]: of each expert the 32 inputs of the first block, and outputs drawn of the 6.
        outputs = rng.integers(0, 6, tensors[name].shape[2])
        tensors[name] = np.ascontiguousarray(golden["weights"][:, :32, outputs])
        bytes_of[f"{name}_blocks"] = np.ascontiguousarray(golden["blocks"][:, outputs, :1])
        bytes_of[f"{name}_scales"] = np.ascontiguousarray(golden["scales"][:, outputs, :1])
    save_file(tensors, plain / "model.safetensors")
    rest = {name: x for name, x in tensors.items() if f"{name}_blocks" not in bytes_of}
    save_file(rest | bytes_of, packed / "model.safetensors")
    return plain, packed


def test_mxfp4_is_read_as_transformers_reads_it(mxfp4_folder):
    plain, packed = (models.load_pretrained(folder).params for folder in mxfp4_folder)
    assert np.abs(plain["layers"]["experts_gate"]).max() > 1
    jax.tree.map(np.testing.assert_array_equal, packed, plain)


def test_a_saved_folder_has_floats(mxfp4_folder, tmp_path):
    plain, packed = mxfp4_folder
    saved = models.save_pretrained(models.load_pretrained(packed), tmp_path / "saved")
    expected = load_file(plain / "model.safetensors")
    found = load_file(saved / "model.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_blocks_without_scales_are_named(mxfp4_folder):
    _, packed = mxfp4_folder
    tensors = load_file(packed / "model.safetensors")
    del tensors["model.layers.0.mlp.experts.down_proj_scales"]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing tensor model\.layers\.0\.mlp\.experts\.down_proj_scales"):
        models.load_pretrained(packed)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"quantization_config": {"quant_method": "awq"}},
            "quant_method 'awq' is not supported; expected mxfp4",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; expected silu"),
        ({"sliding_window": None}, "sliding_window is null"),
        ({"rope_parameters": None, "rope_scaling": None}, "rope_scaling is null"),
    ],
)
def test_settings_that_are_not_supported_are_named(change, expected):
    body = json.loads((FOLDER / "config.json").read_text())
    with pytest.raises(ModelError, match=expected):
        config_from_json(body | change, "config.json")


def test_without_rotary_settings_it_is_yarn_as_transformers_has_it():
    body = json.loads((FOLDER / "config.json").read_text())
    for name in ("rope_parameters", "layer_types", "sliding_window", "swiglu_limit", "swiglu_alpha"):
        body.pop(name, None)
    found = config_from_json(body, "config.json")
    scaling = found.rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_positions, scaling.truncate) == (
        "yarn",
        32.0,
        4096,
        False,
    )
    assert (found.rope_theta, found.sliding_window, found.layer_slides) == (150_000.0, 128, (True, False))
    assert (found.mixture.limit, found.mixture.alpha) == (7.0, 1.702)
