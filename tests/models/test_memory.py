"""What models take: bytes said beforehand are those of live arrays, and 8-bit weights never were all floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.kernels import matmul, quantize
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models import memory
from jaxalign.models.huggingface import load_config
from jaxalign.models.tensor_dtypes import device_dtype
from jaxalign.models.tensor_files import read_tensors, read_whole
from tests.kernels.test_int8 import GOLDEN

FAMILIES = ("llama", "gpt2", "gemma2")


def kept(tree):
    return [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)]


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_told_from_a_shape_are_those_of_the_model(family):
    shape = load_config(GOLDEN / family)
    for dtype in ("float32", "bfloat16", "int8"):
        weights = "int8" if dtype == "int8" else "same"
        plain = None if weights == "int8" else dtype
        params = {"param_dtype": plain, "compute_dtype": plain}
        model = models.load_pretrained(GOLDEN / family, weights=weights, **params)
        assert memory.bytes_of(model.params) == memory.weight_sizes(shape)[dtype]
        assert models.params_count(model.params) == memory.number_of_weights(shape)
        model = models.with_config(model, products="compute_dtype")
        tokens = jnp.zeros((2, 4), jnp.int32)
        _, cache = model.prefill(tokens, jnp.asarray([4, 3]), cache_length=8, int8_cache=weights == "int8")
        assert memory.bytes_of(cache.keys, cache.values) == 2 * 8 * memory.cache_sizes(shape)[dtype]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_read_as_integers_is_the_quantized_one_and_never_had_two_floats_at_once(
    family, monkeypatch, live_bytes
):
    folder = GOLDEN / family
    expected = jax.tree.map(np.asarray, models.quantize(models.load_pretrained(folder)).params)
    # What stays as it is; and on a CPU arrays share memory with the files' own, which go when all is read.
    small = sum(x.nbytes for x in jax.tree.leaves(expected) if x.dtype == np.float32)
    small += sum(read_whole(x).nbytes for name, x in read_tensors(folder).items() if "layers" not in name)
    begun, quantized, rounded, steps = live_bytes(), quantize.quantized, [0], []

    def watched(x, *, axis):
        steps.append(live_bytes() - begun <= x.nbytes + sum(rounded) + small)
        found = quantized(x, axis=axis)
        rounded.append(found.values.nbytes)
        return found

    monkeypatch.setattr(quantize, "quantized", watched)
    found = models.load_pretrained(folder, weights="int8").params
    assert steps and all(steps)
    assert kept(found) == kept(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # Nothing is left to be rounded, so that nothing is copied.
    again = models.quantize_params(found)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (again, found)), strict=True))


@pytest.mark.parametrize("weights", ["same", "int8"])
def test_a_model_is_read_in_parts_on_a_mesh(weights, devices):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), devices[:4])
    model = models.load_pretrained(GOLDEN / "llama", mesh=mesh, weights=weights)
    whole = models.load_pretrained(GOLDEN / "llama", weights=weights)
    jax.tree.map(np.testing.assert_array_equal, model.params, whole.params)
    assert model.config.mesh is mesh
    assert memory.bytes_a_device(whole.params) == memory.bytes_of(whole.params)
    assert memory.bytes_a_device(model.params) < 0.4 * memory.bytes_of(model.params)
    assert f"{memory.sized(memory.bytes_a_device(model.params))} a device" in memory.weights_text(
        model.config, model.params
    )


def test_bytes_of_what_is_shared_count_once_and_are_written_as_people_read_them():
    x = jnp.zeros((4, 4))
    assert memory.bytes_of({"a": x, "b": [x, jnp.zeros(3, jnp.bfloat16)]}) == 64 + 6
    assert [memory.sized(n) for n in (0, 1536, 3 * 2**20, 2**30, 5000 * 2**30)] == [
        "0.0 KiB", "1.5 KiB", "3.0 MiB", "1.0 GiB", "5,000.0 GiB",
    ]  # fmt: skip


class Device:
    def __init__(self, platform):
        self.platform = platform


@pytest.mark.parametrize(
    ("asked", "platform", "dtype"),
    [("auto", "cpu", "float32"), ("auto", "gpu", "bfloat16"), ("auto", "tpu", "bfloat16")]
    + [(dtype, platform, dtype) for dtype in ("float32", "bfloat16") for platform in ("cpu", "gpu")],
)
def test_frozen_weights_are_bfloat16_on_accelerators_where_nothing_is_said(asked, platform, dtype):
    assert device_dtype(asked, Device(platform)) == dtype


def test_what_was_rounded_unasked_is_said_with_the_key_that_keeps_it():
    model = models.load_pretrained(GOLDEN / "llama", param_dtype="bfloat16")

    def text(**options):
        return memory.weights_text(model.config, model.params, key="patient.param_dtype", **options)

    assert text(setting="auto", files="float32").endswith(
        "in bfloat16; products in float32; rounded from float32, which patient.param_dtype=float32 would not do"
    )
    for options in (
        {"setting": "auto", "files": "bfloat16"},
        {"setting": "bfloat16", "files": "float32"},
        {},
    ):
        assert text(**options).endswith("in bfloat16; products in float32")


def test_a_cpu_that_computes_in_float32_instead_says_so(monkeypatch):
    model = models.load_pretrained(GOLDEN / "llama", compute_dtype="bfloat16")
    monkeypatch.setattr(matmul, "cpu_flags", frozenset)
    assert memory.weights_text(model.config, model.params).endswith(
        "in float32; products in float32, not bfloat16 (a CPU without amx_bf16 and avx512_bf16)"
    )
    monkeypatch.setattr(matmul, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    assert memory.weights_text(model.config, model.params).endswith("in float32; products in bfloat16")


@pytest.mark.long
def test_decoding_adds_an_adapter_to_low_weights_in_the_dtype_of_products():
    model = models.load_pretrained(GOLDEN / "llama", param_dtype="bfloat16")
    lora = models.LoraConfig(enabled=True, rank=2)
    adapter = models.create_adapter(model.config, lora, key=jax.random.key(0))
    adapter = models.attach(jax.tree.map(lambda x: x + 0.01, adapter), lora)
    tokens = jnp.asarray([[3, 5, 7, 9]])
    _, cache = model.prefill(tokens[:, :3], jnp.asarray([3]), cache_length=8, adapter=adapter)
    weights = model.decode_weights(adapter)
    hidden, _ = models.merge(models.split(model)[0], weights).decode(weights, tokens[:, 3], cache)
    np.testing.assert_allclose(hidden, model.hidden(tokens, adapter=adapter)[:, 3], atol=1e-5)
