"""The decoding kernel: interpreted, and on a GPU by itself, it computes the plain form; what it leaves to XLA."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.kernels import decode_attention
from jaxalign.models import attention, kv_cache
from tests.models.attention_cases import config

try:
    GPU = jax.devices("gpu")[0]
except RuntimeError:
    GPU = None
H100 = SimpleNamespace(platform="gpu", client=SimpleNamespace(platform_version="cuda 13000"))
# Rows, key heads, query heads of each, size, columns.
SHAPE = 3, 2, 3, 16, 192


def arrays(rows, heads, group, size, columns, *, dtype=jnp.bfloat16):
    draw = iter(jax.random.split(jax.random.key(0), 3))
    shapes = (rows, heads * group, size), (rows, heads, size, columns), (rows, heads, columns, size)
    return [jax.random.normal(next(draw), shape, dtype) for shape in shapes]


def cache(keys, values, column):
    # A row that began with the cache, one inside its second block, one at the step itself.
    starts = jnp.asarray([0, 70, column] + [0] * (keys.shape[0] - 3), jnp.int32)
    return kv_cache.KVCache((keys,), (values,), starts, jnp.asarray(column, jnp.int32))


def by_hand(q, keys, values, starts, column, window):
    """In float64, a loop over rows and heads."""
    rows, heads, size, _ = keys.shape
    q, keys, values = (np.asarray(x, np.float64) for x in (q, keys, values))
    group = q.shape[1] // heads
    out = np.zeros((rows, heads * group, size))
    for row in range(rows):
        first = max(int(starts[row]), column - window + 1 if window else 0)
        for head in range(heads * group):
            scores = q[row, head] @ keys[row, head // group, :, first : column + 1] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values[row, head // group, first : column + 1] / weights.sum()
    return out.reshape(rows, -1)


def own(group, **changes):
    return config(num_heads=2 * group, num_kv_heads=2, head_dim=16, products="compute_dtype", **changes)


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("column", [71, 127, 128, 191])
def test_the_kernel_attends_to_the_columns_that_are_seen_and_to_no_other(column, window):
    q, keys, values = arrays(*SHAPE)
    seen = cache(keys, values, column).seen(window)
    # What is not seen must not be read into the result.
    there = (jnp.arange(192) >= seen.first[:, None]) & (jnp.arange(192) <= column)
    keys = jnp.where(there[:, None, None, :], keys, 100)
    values = jnp.where(there[:, None, :, None], values, 100)
    scaled = attention.scaled(q, own(3)).reshape(3, 2, 3, 16)
    out = decode_attention.decode_attention(scaled, keys, values, seen.first, seen.last, interpret=True)
    starts = cache(keys, values, column).starts
    wanted = by_hand(q, keys, values, starts, column, window)
    np.testing.assert_allclose(np.asarray(out, np.float64).reshape(3, -1), wanted, atol=0.02)
    plain = attention.attend_cached(q, keys, values, seen, own(3, compute_dtype="bfloat16"))
    np.testing.assert_allclose(np.asarray(plain, np.float64), wanted, atol=0.02)


def test_it_is_taken_on_an_nvidia_gpu_and_what_it_cannot_do_is_left_to_xla():
    shape, bfloat16 = (256, 8, 1024, 64), jnp.bfloat16
    plain = own(3)

    def why(config=plain, device=H100, shape=shape, dtype=bfloat16):
        return decode_attention.refusal(config, device, shape, dtype)

    assert why() == "" == why(shape=(64, 8, 64, 128))
    assert "NVIDIA" in why(device=SimpleNamespace(platform="cpu", client=H100.client))
    assert "plain" in why(replace(plain, attention="plain"))
    assert "softcap" in why(replace(plain, attention_softcap=50.0))
    assert "float32" in why(dtype=jnp.dtype("float32"))
    assert "head_dim 48" in why(shape=(256, 8, 1024, 48))
    assert "48 columns" in why(shape=(256, 8, 48, 64))
    assert "too few" in why(shape=(63, 8, 1024, 64))


@pytest.mark.skipif(GPU is None, reason="needs an NVIDIA GPU")
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize(
    "shape", [(64, 8, 4, 64, 1024), (512, 1, 20, 128, 192), (300, 2, 1, 16, 64)], ids=str
)
@pytest.mark.parametrize("window", [0, 40])
def test_on_a_gpu_decoding_takes_it_and_it_computes_the_plain_form(shape, window):
    _, heads, group, size, columns = shape
    q, keys, values = arrays(*shape)
    options = replace(
        own(group), num_heads=heads * group, num_kv_heads=heads, head_dim=size, compute_dtype="bfloat16"
    )
    for column in (columns // 2, columns - 1):
        held = cache(keys, values, column)
        held = replace(held, starts=jnp.minimum(held.starts, column))
        run = jax.jit(lambda *x: attention.attend_cached(*x, options))
        out = run(q, keys, values, held.seen(window))
        assert "decode_attention" in run.lower(q, keys, values, held.seen(window)).as_text()
        wanted = by_hand(q, keys, values, held.starts, column, window)
        np.testing.assert_allclose(np.asarray(out, np.float64), wanted, atol=0.03)
