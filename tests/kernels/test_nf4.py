"""NF4: levels, blocks and scales against numpy; what a device holds; and what stays in memory for a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.kernels.frozen import frozen_dense
from jaxalign.kernels.int8 import quantized
from jaxalign.kernels.nf4 import BLOCK, LEVELS, quantized_nf4
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.sharding import on_mesh


def weight(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def nearest(w):
    """The nearest levels of [K, M] in blocks along K, times the largest number of the block (float64)."""
    blocks = np.float64(w).reshape(-1, BLOCK, w.shape[1])
    most = np.abs(blocks).max(axis=1, keepdims=True)
    parts = blocks / most
    chosen = np.abs(parts[..., None] - np.float64(LEVELS)).argmin(axis=-1)
    return np.float64(LEVELS)[chosen], most


def test_numbers_are_the_nearest_levels_of_their_block():
    w = weight(192, 80)
    levels, most = nearest(w)
    found = np.float64(quantized_nf4(jnp.asarray(w)).astype(jnp.float32)).reshape(levels.shape)
    # Scales are rounded to 255 steps between the least and the largest.
    np.testing.assert_allclose(found, levels * most, rtol=0.01, atol=0)


def test_scales_are_off_by_half_a_step_of_their_group_at_most():
    w = weight(640, 512, seed=1) * np.linspace(0.5, 2, 512, dtype=np.float32)
    q = quantized_nf4(jnp.asarray(w))
    assert q.units.shape == (10, 2)
    _, most = nearest(w)
    units = np.repeat(np.float64(q.units), 256, axis=1)
    found = np.float64(q.offset) + units * np.float64(q.scales)
    assert np.all(np.abs(found - most[:, 0]) <= units / 2 + 1e-7)


def test_a_weight_takes_little_more_than_four_bits():
    q = quantized_nf4(jnp.asarray(weight(2, 1024, 768)))
    bits = 8 * sum(x.nbytes for x in jax.tree.leaves(q)) / (2 * 1024 * 768)
    assert 4.125 < bits < 4.13


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 3), (100, 7), (172, 64), (1, 1)])
def test_any_shape_keeps_its_shape_its_zeros_and_its_largest_numbers(inputs, outputs):
    w = weight(3, inputs, outputs, seed=2)
    w[:, ::5] = 0
    q = quantized_nf4(jnp.asarray(w), kind="bfloat16")
    assert q.shape == w.shape and q.dtype == jnp.bfloat16 and q.astype(q.dtype).dtype == jnp.bfloat16
    found = np.asarray(q.astype(jnp.float32))
    np.testing.assert_array_equal(found[w == 0], 0)
    largest = np.abs(w[:, :BLOCK]).max(axis=1)
    np.testing.assert_allclose(np.abs(found[:, :BLOCK]).max(axis=1), largest, rtol=0.02, atol=1e-4)


def test_layers_are_quantized_apart():
    w = weight(3, 128, 32, seed=3)
    q = quantized_nf4(jnp.asarray(w))
    for layer in range(3):
        alone = quantized_nf4(jnp.asarray(w[layer]))
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=layer: x[i], q), alone)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("implementation", ["compute_dtype", "float32", "bfloat16_float32"])
def test_a_product_and_its_gradient_are_those_of_the_floats(kind, implementation):
    w, x = jnp.asarray(weight(128, 48)), jnp.asarray(weight(5, 6, 128, seed=4), jnp.bfloat16)
    q = quantized_nf4(w) if kind == "nf4" else quantized(w, axis=-2)
    y, pull = jax.vjp(lambda x: frozen_dense(x, q, implementation), x)
    floats, dy = np.float64(q.astype(jnp.float32)), jnp.asarray(weight(5, 6, 48, seed=5), jnp.bfloat16)
    (dx,) = pull(dy)
    assert y.dtype == dx.dtype == jnp.bfloat16
    for found, expected in ((y, np.float64(x) @ floats), (dx, np.float64(dy) @ floats.T)):
        np.testing.assert_allclose(np.float64(found), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_no_floats_of_the_weight_are_kept_for_the_backward_pass(kind):
    w, x = jnp.asarray(weight(256, 192)), jnp.asarray(weight(4, 256))
    q = quantized_nf4(w) if kind == "nf4" else quantized(w, axis=-2)
    _, pull = jax.vjp(lambda x: frozen_dense(x, q, "compute_dtype"), x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) <= sum(x.nbytes for x in jax.tree.leaves(q))


def test_blocks_are_split_over_the_devices(devices):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), devices[:4])
    tree = {"layers": {"up_proj": quantized_nf4(jnp.asarray(weight(2, 256, 512)))}}
    placed = on_mesh(tree, mesh)["layers"]["up_proj"]
    assert placed.codes.addressable_shards[0].data.shape == (2, 2, 32, 256)
    assert placed.scales.addressable_shards[0].data.shape == (2, 2, 256)
    assert placed.units.addressable_shards[0].data.shape == (2, 2, 1)
    np.testing.assert_array_equal(placed.astype(jnp.float32), tree["layers"]["up_proj"].astype(jnp.float32))
