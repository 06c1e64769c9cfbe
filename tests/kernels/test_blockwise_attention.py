"""Attention in tiles, against the plain form and a derivation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.kernels import blockwise_attention
from jaxalign.models import attention
from tests.models.attention_cases import config, in_float64, inputs, layout

CASES = [
    ("full", 37, 0, 0.0),
    ("padded", 150, 0, 0.0),
    ("packed", 33, 0, 0.0),
    ("packed", 70, 5, 0.0),
    ("padded", 40, 11, 2.0),
]


@pytest.mark.parametrize(("kind", "length", "window", "softcap"), CASES)
def test_blockwise_attention_is_the_plain_one_and_the_one_by_hand(kind, length, window, softcap):
    q, k, v, d_out = inputs(length)
    positions, segments = layout(kind, length)
    counted = jnp.asarray(segments > 0)[..., None]

    def run(form):
        def loss(q, k, v):
            out = form(q, k, v, positions, segments, window, config(softcap))
            return jnp.sum(jnp.where(counted, out * d_out, 0.0)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    (_, out), grads = run(attention.attend)
    (_, plain), plain_grads = run(attention.attend_plain)
    by_hand = in_float64(
        *(np.asarray(x, np.float64) for x in (q, k, v)), positions, segments, window, softcap
    )
    mask = np.asarray(counted)
    np.testing.assert_allclose(np.where(mask, out, 0), by_hand, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(np.where(mask, plain, 0), by_hand, rtol=2e-5, atol=2e-6)
    for got, wanted in zip(grads, plain_grads, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert np.isfinite(out).all()


def gradient(length, rows, kind="packed"):
    """A function of q, k, v, to be compiled, and its arguments."""
    q, k, v, d_out = inputs(length, rows=rows)
    positions, segments = layout(kind, length, rows=rows)
    counted = jnp.asarray(segments > 0)[..., None]

    def loss(q, k, v):
        out = attention.attend(q, k, v, positions, segments, 0, config(2.0))
        return jnp.sum(jnp.where(counted, out * d_out, 0.0))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))), (q, k, v)


def test_tiles_above_the_bound_are_taken_row_by_row(monkeypatch):
    function, arrays = gradient(50, rows=3)
    whole = function(*arrays)
    monkeypatch.setattr(blockwise_attention, "TILE_BOUND", 10_000)
    lowered = gradient(50, rows=3)[0].lower(*arrays)
    assert "while" in lowered.as_text()
    for a, b in zip(whole, lowered.compile()(*arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def largest(jaxpr):
    """Numbers in the largest array of a program."""
    found = [0]
    for equation in jaxpr.eqns:
        found += [variable.aval.size for variable in equation.outvars]
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            found += [largest(inner)] if hasattr(inner, "eqns") else []
    return max(found)


@pytest.mark.long
@pytest.mark.parametrize("rows", [1, 2])
# Of one head's block of 64 queries, two to a key: all; and 5 at once, where the last turn has fillers.
@pytest.mark.parametrize("bound", [64 * 2 * 256, 5 * 2 * 300])
def test_a_tile_of_one_row_above_the_bound_is_taken_by_heads_then_by_queries(monkeypatch, rows, bound):
    function, arrays = gradient(300, rows=rows, kind="full")
    whole = function(*arrays)
    assert largest(jax.make_jaxpr(function)(*arrays).jaxpr) == rows * 4 * 64 * 256
    monkeypatch.setattr(blockwise_attention, "TILE_BOUND", bound)
    function, arrays = gradient(300, rows=rows, kind="full")
    assert largest(jax.make_jaxpr(function)(*arrays).jaxpr) <= max(bound, *(x.size for x in arrays))
    for a, b in zip(whole, function(*arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_no_array_is_as_large_as_all_pairs_of_positions():
    q, k, v, d_out = inputs(640, rows=1)
    positions, segments = layout("full", 640, rows=1)

    def loss(q, k, v):
        return jnp.sum(attention.attend(q, k, v, positions, segments, 0, config()) * d_out)

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).as_text()
    # Blocks of 64 queries of two heads; neither all pairs of positions nor those of a group are there.
    assert "128x640" in text
    assert "640x640" not in text and "1280x640" not in text


def test_bfloat16_stays_within_its_rounding():
    q, k, v, _ = inputs(64)
    positions, segments = layout("full", 64)
    exact = attention.attend(q, k, v, positions, segments, 0, config())
    for products in ("compute_dtype", "float32"):
        rounding = config(compute_dtype="bfloat16", products=products)
        rounded = attention.attend(
            *(x.astype(jnp.bfloat16) for x in (q, k, v)), positions, segments, 0, rounding
        )
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(rounded, np.float32), exact, atol=0.04)


def test_a_segment_does_not_depend_on_its_neighbours():
    q, k, v, _ = inputs(33)
    positions, segments = layout("packed", 33)
    other = [jnp.where(jnp.asarray(segments == 2)[..., None, None], x + 3.0, x) for x in (q, k, v)]
    before, after = (attention.attend(*x, positions, segments, 0, config()) for x in ((q, k, v), other))
    np.testing.assert_array_equal(np.asarray(before)[segments == 3], np.asarray(after)[segments == 3])
    assert not np.allclose(np.asarray(before)[segments == 2], np.asarray(after)[segments == 2])


def test_long_rows_take_their_tiles_one_by_one_with_the_same_result_in_less_memory(monkeypatch):
    q, k, v, d_out = inputs(448, rows=1)
    positions, segments = layout("full", 448, rows=1)

    def compiled():
        def loss(q, k, v):
            return jnp.sum(attention.attend(q, k, v, positions, segments, 0, config()) * d_out)

        program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
        return program, program.memory_analysis().temp_size_in_bytes

    at_once, much = compiled()
    monkeypatch.setattr(blockwise_attention, "LAYER_BOUND", 0)
    one_by_one, less = compiled()
    assert less < much / 2
    for a, b in zip(at_once(q, k, v), one_by_one(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
