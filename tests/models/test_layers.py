"""Rotations, their tables and activations: derivatives by hand equal automatic ones, in the form a CPU runs fast."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.models.layers import activate, activated
from jaxalign.models.rotary import rope_tables, rope_tables_apart, rotate

CONFIG = models.load_config(Path(__file__).parents[1] / "golden" / "models" / "llama")


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("size", [8, 12])
def test_the_gradient_of_a_rotation_is_that_of_autodiff(size):
    """The last of 12 numbers are not rotated."""
    x, g = normal(0, 2, 3, 2, size), normal(1, 2, 3, 2, size)
    angles = normal(2, 2, 3, 1, 4)
    tables = (jnp.cos(angles), jnp.sin(angles))

    def plain(x):
        a, b, rest = x[..., :4], x[..., 4:8], x[..., 8:]
        cos, sin = tables
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    out, back = jax.vjp(lambda x: rotate(x, tables), x)
    expected, expected_back = jax.vjp(plain, x)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_allclose(back(g)[0], expected_back(g)[0], atol=1e-6)


@pytest.mark.parametrize("length", [1, 7, 16])
def test_tables_made_apart_are_the_tables(length):
    positions = jax.random.randint(jax.random.key(0), (3, length), 0, 40)
    expected = rope_tables(positions, CONFIG, "global")
    for a, b in zip(rope_tables_apart(positions, CONFIG, "global"), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's form")
def test_a_cpu_computes_cosines_once_for_all_layers_and_heads():
    model = models.create(replace(CONFIG, num_layers=3), key=jax.random.key(0))
    definition, params = models.split(model)

    @partial(jax.jit, static_argnums=0)
    def loss(definition, params, tokens):
        return jax.grad(lambda p: models.merge(definition, p).hidden(tokens).sum())(params)

    compiled = loss.lower(definition, params, jnp.zeros((2, 16), jnp.int32)).compile().as_text()
    assert len(re.findall(r" cosine\(", compiled)) == 1


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_activation_is_rounded_once_with_its_gradient(activation, is_gated, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, gated, d_out = (jax.random.normal(k, (5, 7)).astype(dtype) for k in keys)
    gated = gated if is_gated else None

    def plain(x, gated):
        return activate(x, activation) * (1.0 if gated is None else gated)

    found, pull = jax.vjp(lambda *inputs: activated(activation, *inputs), x, gated)
    wide = jax.tree.map(jnp.float32, (x, gated))
    wanted, pull_wide = jax.vjp(plain, *wide)
    got, right = (found, *pull(d_out)), (wanted, *pull_wide(jnp.float32(d_out)))
    assert jax.tree.map(lambda a: a.dtype.name, got) == jax.tree.map(lambda _: dtype, got)
    # bfloat16 has 8 significant bits.
    bound = {"rtol": 2**-8, "atol": 1e-6} if dtype == "bfloat16" else {"rtol": 1e-5, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), b, **bound), got, right)
