"""Causal attention in tiles with a backward pass of its own: the form that XLA's CPU compiler runs fast.

The forward pass keeps the output and two numbers a query (the largest score and the sum of the weights); the
backward pass computes each tile's weights again from them. Nothing of the size [B, N, T, T] is ever held
(Dao et al. 2022, "FlashAttention", arXiv 2205.14135, algorithm 1 and appendix B.2).

What makes it fast on a CPU, measured (docs/performance.md): queries of a group of heads are rows of one product
with their shared keys; gradients of keys and values are summed in [H, S] layout, as a product whose large side
must be transposed costs a copy of it; a block of queries is narrow, so that half of the square above the
diagonal is not computed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxalign.masking import NEGATIVE
from jaxalign.models.ordering import after
from jaxalign.models.products import product
from jaxalign.models.remat import CONTEXT, STATISTICS

# Rows of one product; measured best among 64..512 for 1 and 2 heads a group.
ROWS = 128
MAX_BLOCKS = 16
# Numbers in a tile, 64 MiB of float32: rows of the batch are taken in turns where all at once would be more. One row's
# tile may be larger: it grows with the square of its length above ROWS * MAX_BLOCKS.
TILE_BOUND = 1 << 24
# Numbers in all tiles of a layer up to which the compiler may have them at once, and keep them for the backward pass.
LAYER_BOUND = 1 << 23


class Where(NamedTuple):
    """Where a token is: what decides which keys a query sees."""

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    window: jax.Array


def blockwise_attention(
    q: Float[Array, "B K T G H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: jax.Array | int,
    *,
    softcap: float = 0.0,
    dtype: Any = None,
) -> Float[Array, "B K T G H"]:
    """softmax(q k^T + mask) v, queries scaled before.

    Args:
      q: queries, G a key head.
      k: keys; in order of position within a segment.
      v: values.
      positions: of each token.
      segments: 1, 2, ... by segment, 0 for padding. A query sees earlier keys of its own segment only.
      window: how far back it sees; 0: all of it.
      softcap: c in c * tanh(score / c); 0 for none.
      dtype: of the operands of products; None takes that of q.

    Returns:
      In the dtype of v. A query that sees nothing (padding) gets a mean of values: finite, and never to be read.
    """
    where = Where(positions, segments, jnp.asarray(window))
    return _attention((float(softcap), jnp.dtype(dtype or q.dtype)), q, k, v, where)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, where):
    return _forward(static, q, k, v, where)[0]


def _blocks(length: int, group: int) -> list[tuple[int, int]]:
    """Where each block of queries begins and ends."""
    size = max(ROWS // group, -(-length // MAX_BLOCKS), 16)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _hidden(where: Where, start: int, end: int) -> Float[Array, "B 1 Q 1 S"]:
    """0 where queries start..end see a key 0..end, else NEGATIVE."""
    distance = where.positions[:, start:end, None] - where.positions[:, None, :end]
    keys = where.segments[:, None, :end]
    seen = (where.segments[:, start:end, None] == keys) & (keys > 0) & (distance >= 0)
    seen &= (distance < where.window) | (where.window == 0)
    return jnp.where(seen, 0.0, NEGATIVE)[:, None, :, None, :]


def _scores(static, q, k, hidden):
    """Masked scores [B, K, Q, G, S], float32, and the slope of the soft cap there (None where there is none)."""
    softcap, dtype = static
    rows, heads, queries, group, size = q.shape
    flat = product(
        "zqd,zsd->zqs",
        q.reshape(rows * heads, queries * group, size),
        k.reshape(rows * heads, -1, size),
        dtype=dtype,
    )
    scores = flat.reshape(rows, heads, queries, group, -1)
    if not softcap:
        return scores + hidden, None
    bent = jnp.tanh(scores / softcap)
    return softcap * bent + hidden, 1.0 - jnp.square(bent)


def _forward(static, q, k, v, where):
    group = q.shape[3]

    def block(q, k, v, hidden):
        rows, heads, queries, _, size = q.shape
        scores, _ = _scores(static, q, k, hidden)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        flat = weights.reshape(rows * heads, queries * group, -1)
        out = product("zqs,zsd->zqd", flat, v.reshape(rows * heads, -1, size), dtype=static[1])
        # The division comes after the product: one pass less over the tile.
        return (out.reshape(q.shape) / total).astype(v.dtype), top, 1.0 / total

    parts, one_by_one = [], _is_long(q)
    for start, end in _blocks(q.shape[2], group):
        queries, here = q[:, :, start:end], where
        if parts and one_by_one:
            queries, here = after(parts[-1][0], (queries, here))
        arrays = (queries, k[:, :, :end], v[:, :, :end])
        parts.append(_in_turns(block, arrays, _hidden(here, start, end), (end - start) * end))
    out, top, scale = (jnp.concatenate(x, axis=2) for x in zip(*parts, strict=True))
    # Named together: where one of them is not kept, all of attention is computed again.
    out, top, scale = (
        checkpoint_name(x, name) for x, name in ((out, CONTEXT), (top, STATISTICS), (scale, STATISTICS))
    )
    return out, (q, k, v, where, out, top, scale)


def _backward(static, saved, d_out):
    dtype = static[1]
    q, k, v, where, out, top, scale = saved
    length, group, size = q.shape[2:]
    d_out = d_out.astype(q.dtype)
    # sum over keys of weight * d(weight), from the output (appendix B.2, equation 4).
    both = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    # As a product with ones: eight times faster than a sum on a CPU.
    drift = product("bktgd,do->bktgo", both, jnp.ones((size, 1)), dtype=jnp.float32)

    def block(q, k, v, d_out, top, scale, drift, hidden):
        rows, heads, queries, _, _ = q.shape
        z, r = rows * heads, queries * group
        scores, slope = _scores(static, q, k, hidden)
        weights = jnp.exp(scores - top) * scale
        d_weights = product("zqd,zsd->zqs", d_out.reshape(z, r, size), v.reshape(z, -1, size), dtype=dtype)
        d_scores = weights * (d_weights.reshape(weights.shape) - drift)
        if slope is not None:
            d_scores *= slope
        d_scores = d_scores.reshape(z, r, -1)
        dq = product("zqs,zsd->zqd", d_scores, k.reshape(z, -1, size), dtype=dtype)
        # Products whose left side comes transposed are float32 in any case: casts of tiles would only be rounding.
        dk = product("zqs,zqd->zds", d_scores, q.reshape(z, r, size), dtype=jnp.float32)
        dv = product("zqs,zqd->zds", weights.reshape(z, r, -1), d_out.reshape(z, r, size), dtype=jnp.float32)
        return dq.reshape(q.shape), dk.reshape(rows, heads, size, -1), dv.reshape(rows, heads, size, -1)

    dq, one_by_one = [], _is_long(q)
    dk = dv = None
    # Long rows one block after another: else XLA's CPU compiler has all tiles at once. From the last one, which sees
    # all keys: what the others add is added in place.
    for start, end in reversed(_blocks(length, group)):
        queries, here = tuple(x[:, :, start:end] for x in (q, d_out, top, scale, drift)), where
        if one_by_one:
            queries, here = after(dq[-1] if dq else d_out, (queries, here))
        arrays = (queries[0], k[:, :, :end], v[:, :, :end], *queries[1:])
        part = _in_turns(block, arrays, _hidden(here, start, end), (end - start) * end)
        dq.append(part[0])
        dk, dv = _with(dk, part[1]), _with(dv, part[2])
    assert dk is not None and dv is not None
    return (
        jnp.concatenate(dq[::-1], axis=2).astype(q.dtype),
        dk.swapaxes(2, 3).astype(k.dtype),
        dv.swapaxes(2, 3).astype(v.dtype),
        None,
    )


def _with(total: jax.Array | None, part: Float[Array, "B K H S"]) -> jax.Array:
    """The total with what a block adds to its first columns."""
    if total is None:
        return part
    more = total[..., : part.shape[-1]] + part
    return jax.lax.dynamic_update_slice(total, more, (0, 0, 0, 0))


_attention.defvjp(_forward, _backward)


def _is_long(q: Float[Array, "B K T G H"]) -> bool:
    """Whether all tiles together would be too large to be there at once."""
    rows, heads, length, group, _ = q.shape
    return rows * heads * group * length**2 // 2 > LAYER_BOUND


def _in_turns(block, arrays, hidden, pairs: int):
    """`block(*arrays, hidden)`, rows of the batch in turns where the whole tile would be larger than `TILE_BOUND`.

    Args:
      block: a function of arrays whose first axis is the batch.
      arrays: queries [B, K, Q, G, H] first.
      hidden: [B, 1, Q, 1, S].
      pairs: queries times keys of the tile.
    """
    rows, heads, _, group, _ = arrays[0].shape
    if rows == 1 or rows * heads * group * pairs <= TILE_BOUND:
        return block(*arrays, hidden)
    return jax.tree.map(
        lambda x: x[:, 0],
        jax.lax.map(lambda row: block(*(x[None] for x in row)), (*arrays, hidden)),
    )
