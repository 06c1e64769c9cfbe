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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxalign.models.remat import CONTEXT, STATISTICS

NEGATIVE = -1e30
# Rows of one product; measured best among 64..512 for 1 and 2 heads a group.
ROWS = 128
MAX_BLOCKS = 16
# Numbers in a tile, 64 MiB of float32: rows of the batch are taken in turns where all at once would be more. One row's
# tile may be larger: it grows with the square of its length above ROWS * MAX_BLOCKS.
TILE = 1 << 24


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

    Returns:
      In the dtype of v. A query that sees nothing (padding) gets a mean of values: finite, and never to be read.
    """
    where = Where(positions, segments, jnp.asarray(window))
    return _attention(float(softcap), q, k, v, where)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(softcap, q, k, v, where):
    return _forward(softcap, q, k, v, where)[0]


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


def _product(pattern: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(pattern, *operands, preferred_element_type=jnp.float32)


def _scores(softcap, q, k, hidden):
    """Masked scores [B, K, Q, G, S], float32, and the slope of the soft cap there (None where there is none)."""
    rows, heads, queries, group, size = q.shape
    flat = _product(
        "zqd,zsd->zqs", q.reshape(rows * heads, queries * group, size), k.reshape(rows * heads, -1, size)
    )
    scores = flat.reshape(rows, heads, queries, group, -1)
    if not softcap:
        return scores + hidden, None
    bent = jnp.tanh(scores / softcap)
    return softcap * bent + hidden, 1.0 - jnp.square(bent)


def _forward(softcap, q, k, v, where):
    group = q.shape[3]

    def block(q, k, v, hidden):
        rows, heads, queries, _, size = q.shape
        scores, _ = _scores(softcap, q, k, hidden)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        flat = weights.astype(v.dtype).reshape(rows * heads, queries * group, -1)
        out = _product("zqs,zsd->zqd", flat, v.reshape(rows * heads, -1, size))
        # The division comes after the product: one pass less over the tile.
        return (out.reshape(q.shape) / total).astype(v.dtype), top, 1.0 / total

    parts = []
    for start, end in _blocks(q.shape[2], group):
        hidden = _hidden(where, start, end)
        parts.append(
            _in_turns(block, (q[:, :, start:end], k[:, :, :end], v[:, :, :end]), hidden, (end - start) * end)
        )
    out, top, scale = (jnp.concatenate(x, axis=2) for x in zip(*parts, strict=True))
    # Named together: where one of them is not kept, all of attention is computed again.
    out, top, scale = (
        checkpoint_name(x, name) for x, name in ((out, CONTEXT), (top, STATISTICS), (scale, STATISTICS))
    )
    return out, (q, k, v, where, out, top, scale)


def _backward(softcap, saved, d_out):
    q, k, v, where, out, top, scale = saved
    rows, heads, length, group, size = q.shape
    d_out = d_out.astype(q.dtype)
    # sum over keys of weight * d(weight), from the output (appendix B.2, equation 4).
    drift = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)

    def block(q, k, v, d_out, top, scale, drift, hidden):
        rows, heads, queries, _, _ = q.shape
        z, r = rows * heads, queries * group
        scores, slope = _scores(softcap, q, k, hidden)
        weights = jnp.exp(scores - top) * scale
        d_weights = _product("zqd,zsd->zqs", d_out.reshape(z, r, size), v.reshape(z, -1, size))
        d_scores = weights * (d_weights.reshape(weights.shape) - drift)
        if slope is not None:
            d_scores *= slope
        d_scores = d_scores.astype(q.dtype).reshape(z, r, -1)
        dq = _product("zqs,zsd->zqd", d_scores, k.reshape(z, -1, size))
        dk = _product("zqs,zqd->zds", d_scores, q.reshape(z, r, size))
        dv = _product("zqs,zqd->zds", weights.astype(q.dtype).reshape(z, r, -1), d_out.reshape(z, r, size))
        return dq.reshape(q.shape), dk.reshape(rows, heads, size, -1), dv.reshape(rows, heads, size, -1)

    dq = []
    dk = dv = jnp.zeros((rows, heads, size, length), jnp.float32)
    for start, end in _blocks(length, group):
        queries = tuple(x[:, :, start:end] for x in (q, d_out, top, scale, drift))
        arrays = (queries[0], k[:, :, :end], v[:, :, :end], *queries[1:])
        part = _in_turns(block, arrays, _hidden(where, start, end), (end - start) * end)
        dq.append(part[0])
        rest = ((0, 0), (0, 0), (0, 0), (0, length - end))
        dk, dv = dk + jnp.pad(part[1], rest), dv + jnp.pad(part[2], rest)
    return (
        jnp.concatenate(dq, axis=2).astype(q.dtype),
        dk.swapaxes(2, 3).astype(k.dtype),
        dv.swapaxes(2, 3).astype(v.dtype),
        None,
    )


_attention.defvjp(_forward, _backward)


def _in_turns(block, arrays, hidden, pairs: int):
    """`block(*arrays, hidden)`, rows of the batch in turns where the whole tile would be larger than `TILE`.

    Args:
      block: a function of arrays whose first axis is the batch.
      arrays: queries [B, K, Q, G, H] first.
      hidden: [B, 1, Q, 1, S].
      pairs: queries times keys of the tile.
    """
    rows, heads, _, group, _ = arrays[0].shape
    if rows == 1 or rows * heads * group * pairs <= TILE:
        return block(*arrays, hidden)
    return jax.tree.map(
        lambda x: x[:, 0],
        jax.lax.map(lambda row: block(*(x[None] for x in row)), (*arrays, hidden)),
    )
