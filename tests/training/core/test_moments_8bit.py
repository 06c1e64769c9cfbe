"""Moments in 8 bits: the code against its definition, and what is trained with it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.training.core.moments_8bit import (
    BLOCK,
    Quantized,
    dequantize,
    in_8_bits,
    numbers_in_8_bits,
    quantize,
)
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.state import create_state


def codebook(signed):
    """All numbers of the code in [-1, 1], as arXiv:2110.02861 builds them: middles of equal steps in each decade."""
    decades = 7 if signed else 8
    positive = [0.0]
    for index in range(decades):
        edges = np.linspace(0.1, 1, 2**index + 1)
        positive += list(10.0 ** (index - decades + 1) * (edges[:-1] + edges[1:]) / 2)
    return np.array([-x for x in positive[:0:-1]] + positive if signed else positive)


def numbers(signed, shape=(3, 2, 600)):
    """Of many sizes, with a row of zeros."""
    x = np.random.default_rng(0).standard_normal(shape) ** 5
    x[0, 1] = 0
    return jnp.asarray(x if signed else np.abs(x), jnp.float32)


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_is_a_number_of_the_papers_code(signed):
    codes = np.arange(-127, 128, dtype=np.int8) if signed else np.arange(256, dtype=np.uint8)
    filled = np.pad(codes, (0, BLOCK - len(codes)))[None]
    found = dequantize(Quantized(jnp.asarray(filled), jnp.full((1, 1), 3.0)))[0, : len(codes)]
    np.testing.assert_allclose(found, 3 * codebook(signed), rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("signed", [True, False])
def test_a_number_becomes_one_of_the_two_codes_around_it(signed):
    x = numbers(signed)
    found = np.asarray(dequantize(quantize(x, signed=signed)))
    for row, code in zip(np.reshape(x, (-1, 600)), found.reshape(-1, 600), strict=True):
        for start in range(0, 600, BLOCK):
            block, largest = row[start : start + BLOCK], np.abs(row[start : start + BLOCK]).max()
            book = np.concatenate([codebook(signed), [1.0] if not signed else [-1.0, 1.0]]) * largest
            book.sort()
            below = book[np.clip(np.searchsorted(book, block, "right") - 1, 0, None)]
            above = book[np.clip(np.searchsorted(book, block), 0, len(book) - 1)]
            near = code[start : start + BLOCK]
            # At the ends of a block only its largest number lies, in the outermost code.
            inside = np.abs(block) < 0.99 * largest
            tolerance = 1e-5 * np.abs(near) + 1e-12
            assert np.all(((np.abs(near - below) <= tolerance) | (np.abs(near - above) <= tolerance))[inside])
            np.testing.assert_allclose(near[~inside], block[~inside], rtol=0.008)


def test_zeros_stay_zeros_and_scales_are_the_largest_of_each_block():
    x = numbers(signed=True)
    stored = quantize(x, signed=True)
    assert stored.codes.dtype == jnp.int8
    assert stored.codes.shape == x.shape
    assert stored.scales.shape == (3, 2, 3)
    assert not dequantize(stored)[0, 1].any()
    np.testing.assert_array_equal(stored.scales[..., 2], jnp.abs(x[..., 512:]).max(-1))


def test_small_arrays_embeddings_norms_and_biases_keep_their_moments():
    params = {
        "embed": {"tokens": jnp.zeros((64, 256))},
        "layers": {
            "up_proj": jnp.zeros((2, 16, 256)),
            "narrow": jnp.zeros((2, 64, 128)),
            "input_norm": jnp.zeros((32, 256)),
            "q_proj_bias": jnp.zeros((32, 256)),
        },
        "little": jnp.zeros((2, 256)),
    }
    adam: Any = in_8_bits(optax.scale_by_adam()).init(params)
    assert numbers_in_8_bits(adam) == 2 * params["layers"]["up_proj"].size
    for tree, dtype in ((adam.mu, jnp.int8), (adam.nu, jnp.uint8)):
        stored = tree["layers"].pop("up_proj")
        assert stored.codes.dtype == dtype
        assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


@pytest.mark.long
@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "muon"])
def test_one_step_from_zero_is_that_of_full_moments(name):
    """The first moments are computed, and used, before they are stored."""
    params = {"layers": {"up_proj": numbers(signed=True, shape=(3, 2, 1024))}}
    grads = jax.tree.map(jnp.cos, params)
    found = []
    for dtype in ("8bit", "float32"):
        optimizer = make_optimizer(OptimizerConfig(name=name, moment_dtype=dtype, schedule="constant"), 5)[0]
        first, state = optimizer.update(grads, optimizer.init(params), params)
        found.append((first, optimizer.update(grads, state, params)[0]))
    first, second = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max()), *found)
    assert first["layers"]["up_proj"] == 0
    if name != "lion":  # whose steps are signs
        assert 0 < second["layers"]["up_proj"] < 0.3


def test_a_rule_without_such_moments_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"moment_dtype=8bit is for adamw, adam, lion, muon, not for .*name=sgd"
    ):
        OptimizerConfig(name="sgd", moment_dtype="8bit")


@pytest.mark.parametrize(("size", "last"), [(1024, "tensor"), (768, None)])
def test_codes_and_scales_lie_as_their_parameter_does_and_a_step_is_that_of_one_device(size, last, devices):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), devices)
    optimizer, _ = make_optimizer(OptimizerConfig(moment_dtype="8bit", schedule="constant"), 5)
    x = numbers(signed=True, shape=(2, 8, size))
    results = []
    for place in (NamedSharding(mesh, P(None, "fsdp", "tensor")), SingleDeviceSharding(devices[0])):
        params = {"layers": {"up_proj": jax.device_put(x, place)}}
        state = create_state(params, optimizer)
        results.append(jax.jit(optimizer.update)(jax.tree.map(jnp.cos, params), state.opt_state, params))
        if isinstance(place, NamedSharding):
            stored = next(s.mu for s in state.opt_state[-1] if hasattr(s, "mu"))["layers"]["up_proj"]
            assert stored.codes.sharding == place
            assert stored.scales.sharding.spec == P(None, "fsdp", last)
    # A number at a step of the code may fall to either side.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=a.dtype.kind in "iu"), *results
    )
