"""GGUF files by llama.cpp's conventions: logits are those of the folder they were made of, damage is one line."""

from dataclasses import replace
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.gguf.head import Entry, read_head
from jaxalign.models.gguf.settings import differences
from jaxalign.models.gguf.tensors import GgufTensor
from jaxalign.models.tensor_dtypes import folder_dtype
from tests.models.gguf.conversion import convert, permute

GOLDEN = Path(__file__).parents[2] / "golden" / "models"
TYPES = gguf.GGMLQuantizationType
# Of these the format cannot say all: Mistral's window, and a scale of queries that is not that of the real models.
UNSAID = {"mistral": "sliding_window layer_slides", "gemma2": "scale", "gemma3_text": "scale"}


def expected(family: str) -> tuple[np.ndarray, models.ModelConfig]:
    """Logits and configuration of the golden folder, with what the format does not say."""
    golden, model = np.load(GOLDEN / family / "golden.npz"), models.load_pretrained(GOLDEN / family)
    changes = {"mistral": {"sliding_window": 0}}.get(family, {"query_scale": model.config.head_dim**-0.5})
    if family not in UNSAID:
        return golden["logits"], model.config
    model = models.Transformer(replace(model.config, **changes), model.params)
    return np.asarray(model(jnp.asarray(golden["tokens"]))), model.config


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "llama3",
        "llama_linear",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi3",
    ],
)
def test_logits_are_those_of_the_folder(family, tmp_path):
    model = models.load_pretrained(convert(GOLDEN / family, tmp_path / "model.gguf"))
    logits, config = expected(family)
    tokens = np.load(GOLDEN / family / "golden.npz")["tokens"]
    np.testing.assert_allclose(model(jnp.asarray(tokens)), logits, atol=1e-4)
    assert differences(config, model.config) == []
    assert model.config.bos_id == 1 and model.config.eos_ids == (2,)


# What this suite would not see if the steps of the converter changed nothing in these models.
@pytest.mark.parametrize(("family", "step"), [("llama", "permuted"), ("gemma", "shifted")])
def test_a_step_of_the_converter_left_out_gives_other_logits(family, step, tmp_path):
    model = models.load_pretrained(convert(GOLDEN / family, tmp_path / "model.gguf", **{step: False}))
    golden = np.load(GOLDEN / family / "golden.npz")
    assert np.abs(model(jnp.asarray(golden["tokens"])) - golden["logits"]).max() > 1


@pytest.mark.parametrize(
    ("kind", "dtype"), [(TYPES.F16, "float16"), (TYPES.BF16, "bfloat16"), (TYPES.F32, "float32")]
)
def test_floats_are_read_as_they_are(kind, dtype, tmp_path):
    file = convert(GOLDEN / "qwen2", tmp_path / "model.gguf", kind=kind)
    assert folder_dtype(file) == folder_dtype(tmp_path) == dtype
    folder = models.load_pretrained(GOLDEN / "qwen2").params
    params = models.load_pretrained(file, param_dtype=jnp.dtype(dtype)).params
    for name in ("q_proj", "down_proj"):
        np.testing.assert_array_equal(params["layers"][name], folder["layers"][name].astype(dtype))


def wide(tmp_path: Path) -> Path:
    """A folder whose rows are whole blocks of 32."""
    config = models.ModelConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_positions=64,
    )
    return models.save_pretrained(models.create(config, key=jax.random.key(0)), tmp_path / "wide")


@pytest.mark.parametrize("kind", [TYPES.Q8_0, TYPES.Q4_0, TYPES.Q4_1, TYPES.Q5_0, TYPES.Q5_1])
def test_quantized_weights_are_those_of_the_package(kind, tmp_path):
    folder = wide(tmp_path)
    file = convert(folder, tmp_path / "model.gguf", kind=kind)
    assert folder_dtype(file) is None
    whole, again = models.load_pretrained(folder).params, models.load_pretrained(file).params

    def rounded(matrix):  # ours are [in, out]; a row of the file is a row of [out, in]
        return gguf.dequantize(gguf.quantize(np.ascontiguousarray(matrix.T), kind), kind).T

    for name in ("q_proj", "k_proj", "v_proj", "down_proj"):
        for layer in range(2):
            there = np.asarray(again["layers"][name][layer])
            np.testing.assert_array_equal(there, rounded(np.asarray(whole["layers"][name][layer])))
    np.testing.assert_array_equal(again["embed"]["tokens"], rounded(np.asarray(whole["embed"]["tokens"]).T).T)


def test_each_device_of_a_mesh_gets_its_part(tmp_path):
    file = convert(wide(tmp_path), tmp_path / "model.gguf", kind=TYPES.Q8_0)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    sharded = models.load_pretrained(file, mesh=mesh).params
    jax.tree.map(np.testing.assert_array_equal, sharded, models.load_pretrained(file).params)


QUANTS = [TYPES.Q2_K, TYPES.Q3_K, TYPES.Q4_K, TYPES.Q5_K, TYPES.Q6_K, TYPES.IQ4_XS]


@pytest.mark.parametrize("kind", QUANTS)
def test_slices_of_blocks_of_random_bytes(kind, tmp_path):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 120, (8, 2 * size), np.uint8)
    (tmp_path / "raw").write_bytes(b"head" + raw.tobytes())
    whole = gguf.dequantize(raw, kind)
    tensor = GgufTensor(tmp_path / "raw", "w", Entry((8, 2 * block), kind.name, 4, raw.nbytes))
    np.testing.assert_array_equal(tensor[slice(2, 5), slice(3, 300)], whole[2:5, 3:300])
    permuted = GgufTensor(tmp_path / "raw", "w", tensor.entry, heads=2)
    np.testing.assert_array_equal(permute(permuted[slice(None), slice(None)], 2), whole)
    np.testing.assert_array_equal(
        permuted[slice(1, 7), slice(0, 9)], permuted[slice(None), slice(None)][1:7, :9]
    )


def test_a_folder_of_one_file_is_that_file(tmp_path):
    file = convert(GOLDEN / "qwen2", tmp_path / "model.gguf")
    assert models.load_config(tmp_path) == models.load_config(file)
    models.save_pretrained(models.load_pretrained(tmp_path), tmp_path / "folder")
    again = models.load_pretrained(tmp_path / "folder")
    jax.tree.map(np.testing.assert_array_equal, again.params, models.load_pretrained(file).params)
    assert differences(models.load_config(file), again.config) == []


def test_the_head_is_read_as_the_package_reads_it(tmp_path):
    file = convert(
        GOLDEN / "llama", tmp_path / "model.gguf", add=lambda w: w.add_array("own.flags", [True, False])
    )
    head, reader = read_head(file), gguf.GGUFReader(file)
    for key, found in reader.fields.items():
        if not key.startswith("GGUF."):
            value = head.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == found.contents(), key
    for tensor in reader.tensors:
        entry = head.tensors[tensor.name]
        assert (entry.offset, entry.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert entry.shape == tuple(tensor.shape.tolist()[::-1])


# --- what is refused --------------------------------------------------------------------------


def refused(expected: str, load) -> None:
    with pytest.raises(ModelError, match=expected) as error:
        load()
    assert "\n" not in str(error.value)


def in_bytes(change):
    def changed(file: Path) -> None:
        file.write_bytes(change(file.read_bytes()))

    return changed


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (in_bytes(lambda b: b[:-100]), r"model\.gguf: the file is truncated: \S+ ends at byte [\d,]+ of"),
        (in_bytes(lambda b: b[:500]), r"model\.gguf: the head of the file is damaged or truncated"),
        (in_bytes(lambda b: b[:10]), r"model\.gguf: not a GGUF file \(it has 10 bytes\)"),
        (in_bytes(lambda b: b""), r"model\.gguf: not a GGUF file \(it has 0 bytes\)"),
        (in_bytes(lambda b: b"PK\3\4" + b[4:]), r"model\.gguf: not a GGUF file \(it begins with b'PK"),
        (in_bytes(lambda b: b[:4] + b"\0\0\0\3" + b[8:]), r"model\.gguf: a big-endian GGUF file"),
        (in_bytes(lambda b: b[:4] + b"\1\0\0\0" + b[8:]), r"GGUF version 1 is not supported"),
        (in_bytes(lambda b: b[:4] + b"\3\0\0\0" + b"\xff" * 16 + b[24:]), "damaged or truncated"),
        (in_bytes(lambda b: b[:24] + b"\xff" * 8 + b[32:]), "damaged or truncated"),
        (lambda file: file.unlink(), r"model\.gguf: no such folder or file"),
    ],
)
def test_a_damaged_file_is_one_line(damage, expected, tmp_path):
    file = convert(GOLDEN / "qwen2", tmp_path / "model.gguf")
    damage(file)
    refused(expected, lambda: models.load_pretrained(file))


def key(name: str, value):
    add = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}
    return lambda writer: getattr(writer, add[type(value)])(name, value)


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        (key("qwen2.expert_count", 8), r"qwen2\.expert_count is 8: mixtures of experts are not supported"),
        (
            key("qwen2.rope.scaling.type", "yarn"),
            r"qwen2\.rope\.scaling\.type is 'yarn'; expected none or linear",
        ),
        (key("qwen2.rope.scaling.attn_factor", 1.2), r"qwen2\.rope\.scaling\.attn_factor is 1\.2"),
        (key("qwen2.rope.dimension_count", 4), r"qwen2\.rope\.dimension_count is 4, but heads have 8"),
        (key("qwen2.attention.value_length", 4), r"qwen2\.attention\.value_length is 4"),
        (
            key("qwen2.attention.sliding_window", 4),
            r"qwen2\.attention\.sliding_window: not supported for qwen2",
        ),
        (key("qwen2.logit_scale", 2.0), r"qwen2\.logit_scale: not supported for qwen2 models"),
        (key("qwen2.attention.causal", False), r"qwen2\.attention\.causal is False: only causal"),
        (key("qwen2.vocab_size", 50), r"qwen2\.vocab_size is 50: token_embd\.weight has 48 rows"),
        (key("general.type", "adapter"), r"general\.type is 'adapter'; expected a language model"),
        (key("split.count", 2), r"one of 2 parts of a split model"),
        (key("tokenizer.ggml.padding_token_id", 99), r"padding_token_id is 99, outside the vocabulary"),
    ],
)
def test_a_key_that_cannot_be_honoured_is_named(add, expected, tmp_path):
    file = convert(GOLDEN / "qwen2", tmp_path / "model.gguf", add=add)
    refused(expected, lambda: models.load_pretrained(file))


@pytest.mark.parametrize(
    ("name", "value", "scaling"),
    [
        ("attention.causal", True, "none"),
        ("expert_count", 0, "none"),
        ("rope.scaling.type", "none", "none"),
        ("rope.scaling.factor", 4.0, "linear"),
        ("rope.scale_linear", 4.0, "linear"),
    ],
)
def test_keys_that_say_nothing_else_are_read(name, value, scaling, tmp_path):
    file = convert(GOLDEN / "qwen2", tmp_path / "model.gguf", add=key(f"qwen2.{name}", value))
    assert models.load_config(file).rope_scaling.kind == scaling


def rename(old: str, new: str | None):
    def edit(tensors: dict) -> None:
        array = tensors.pop(old)
        if new:
            tensors[new] = array

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (rename("blk.1.ffn_up.weight", None), r"model\.gguf: missing tensor blk\.1\.ffn_up\.weight"),
        (rename("token_embd.weight", None), r"missing tensor token_embd\.weight"),
        (rename("blk.0.attn_q.bias", "blk.0.attn_rot_embd"), r"missing tensor blk\.0\.attn_q\.bias"),
        (
            lambda t: t.update({"blk.0.attn_sinks.weight": np.ones(4, np.float32)}),
            r"unexpected tensors for a qwen2 model: blk\.0\.attn_sinks\.weight",
        ),
        (
            lambda t: t.update({"blk.1.ffn_up.weight": np.ones((2, 3), np.float32)}),
            r"blk\.1\.ffn_up\.weight has shape \[2, 3\], expected \[40, 32\]",
        ),
        (
            lambda t: t.update({"rope_freqs.weight": np.asarray([1, 5, 2, 9], np.float32)}),
            r"rope_freqs\.weight: not the factors of llama3 scaling",
        ),
    ],
)
def test_every_tensor_is_used_or_refused_by_name(edit, expected, tmp_path):
    file = convert(GOLDEN / "qwen2", tmp_path / "model.gguf", edit=edit)
    refused(expected, lambda: models.load_pretrained(file))


def test_an_unknown_architecture_is_named(tmp_path):
    file = convert(GOLDEN / "qwen2", tmp_path / "model.gguf", architecture="mamba")
    refused(
        r"general\.architecture 'mamba' is not supported; expected one of llama",
        lambda: models.load_config(file),
    )


def test_a_type_of_numbers_that_is_no_weight_is_refused(tmp_path):
    def integers(writer):
        writer.add_tensor("blk.0.extra", np.zeros(4, np.int32))

    file = convert(
        GOLDEN / "qwen2", tmp_path / "model.gguf", add=integers, edit=rename("output_norm.weight", None)
    )
    entry = read_head(file).tensors["blk.0.extra"]
    refused(
        r"w has the type I32, which the package gguf cannot dequantize",
        lambda: GgufTensor(file, "w", entry).dtype,
    )


def test_a_reward_model_is_asked_for_as_a_folder(tmp_path):
    file = convert(GOLDEN / "qwen2", tmp_path / "model.gguf")
    refused("without a head for scores", lambda: models.load_reward_model(file))
