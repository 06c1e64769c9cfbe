"""Causal attention in tiles with a backward pass of its own: the form that XLA's CPU compiler runs fast.

The forward pass keeps the output and two numbers a query (the largest score and the sum of the weights); the
backward pass computes each tile's weights again from them. Nothing of the size [B, N, T, T] is ever held, and
no tile above a bound but for that of a single query (Dao et al. 2022, "FlashAttention", arXiv 2205.14135,
algorithm 1 and appendix B.2).

What makes it fast on a CPU (docs/performance_appendix.md): queries of a group of heads are rows of one product
with their shared keys; gradients of keys and values are summed in [H, S] layout, as a product whose large side
must be transposed costs a copy of it; a block of queries is narrow, so that half of the square above the
diagonal is not computed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxalign.kernels.matmul import product
from jaxalign.kernels.ordering import after
from jaxalign.kernels.remat import CONTEXT, STATISTICS
from jaxalign.masking import NEGATIVE

# Rows of one product; measured best among 64..512 for 1 and 2 heads a group.
ROWS = 128
MAX_BLOCKS = 16
# Numbers in a tile, 64 MiB of float32: rows of the batch are taken in turns where all at once would be more, then
# heads, then queries.
TILE_BOUND = 1 << 24
# Numbers in all tiles of a layer up to which the compiler may have them at once, and keep them for the backward pass.
LAYER_BOUND = 1 << 23


# The soft cap, and the dtype of the operands of products.
Static = tuple[float, Any]
# (queries, and what goes with them; keys, likewise) -> (what it finds of each query, sums over the queries).
Block = Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]]


class Where(NamedTuple):
    """Where tokens are: what decides which keys a query sees. Time is the third axis, as it is of queries."""

    positions: Int[Array, "B 1 T"]
    segments: Int[Array, "B 1 T"]

    def part(self, start: int, end: int) -> "Where":
        return Where(self.positions[:, :, start:end], self.segments[:, :, start:end])


def blockwise_attention(
    q: Float[Array, "B K T G H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: jax.Array | int,
    *,
    softcap: float = 0.0,
    dtype: DTypeLike | None = None,
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
    where = Where(positions[:, None], segments[:, None])
    return _attention((float(softcap), jnp.dtype(dtype or q.dtype)), q, k, v, where, jnp.asarray(window))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    static: Static,
    q: Float[Array, "B K T G H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    where: Where,
    window: jax.Array,
):
    return _forward(static, q, k, v, where, window)[0]


def _blocks(length: int, group: int) -> list[tuple[int, int]]:
    """Where each block of queries begins and ends."""
    size = max(ROWS // group, -(-length // MAX_BLOCKS), 16)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _hidden(queries: Where, keys: Where, window: jax.Array) -> Float[Array, "B 1 Q 1 S"]:
    """0 where a query sees a key, else NEGATIVE."""
    distance = queries.positions[..., None] - keys.positions[:, :, None]
    seen = (queries.segments[..., None] == keys.segments[:, :, None]) & (keys.segments > 0)[:, :, None]
    seen &= (distance >= 0) & ((distance < window) | (window == 0))
    return jnp.where(seen, 0.0, NEGATIVE)[:, :, :, None, :]


def _scores(
    static: Static,
    q: Float[Array, "B K Q G H"],
    k: Float[Array, "B K S H"],
    hidden: Float[Array, "B 1 Q 1 S"],
):
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


def _forward(
    static: Static,
    q: Float[Array, "B K T G H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    where: Where,
    window: jax.Array,
):
    group = q.shape[3]

    def block(of_queries: tuple[Any, ...], of_keys: tuple[Any, ...]):
        (q, here), (k, v, there) = of_queries, of_keys
        rows, heads, queries, _, size = q.shape
        scores, _ = _scores(static, q, k, _hidden(here, there, window))
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        flat = weights.reshape(rows * heads, queries * group, -1)
        out = product("zqs,zsd->zqd", flat, v.reshape(rows * heads, -1, size), dtype=static[1])
        # The division comes after the product: one pass less over the tile.
        return ((out.reshape(q.shape) / total).astype(v.dtype), top, 1.0 / total), ()

    parts, one_by_one = [], _is_long(q)
    for start, end in _blocks(q.shape[2], group):
        of_queries = (q[:, :, start:end], where.part(start, end))
        if parts and one_by_one:
            of_queries = after(parts[-1][0], of_queries)
        parts.append(_in_turns(block, of_queries, (k, v, where), end)[0])
    out, top, scale = (jnp.concatenate(x, axis=2) for x in zip(*parts, strict=True))
    # Named together: where one of them is not kept, all of attention is computed again.
    out, top, scale = (
        checkpoint_name(x, name) for x, name in ((out, CONTEXT), (top, STATISTICS), (scale, STATISTICS))
    )
    return out, (q, k, v, where, window, out, top, scale)


def _backward(static: Static, saved: tuple[Any, ...], d_out: Float[Array, "B K T G H"]):
    dtype = static[1]
    q, k, v, where, window, out, top, scale = saved
    length, group, size = q.shape[2:]
    d_out = d_out.astype(q.dtype)
    # sum over keys of weight * d(weight), from the output (appendix B.2, equation 4).
    both = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    # As a product with ones: eight times faster than a sum on a CPU.
    drift = product("bktgd,do->bktgo", both, jnp.ones((size, 1)), dtype=jnp.float32)

    def block(of_queries: tuple[Any, ...], of_keys: tuple[Any, ...]):
        (q, d_out, top, scale, drift, here), (k, v, there) = of_queries, of_keys
        rows, heads, queries, _, _ = q.shape
        z, r = rows * heads, queries * group
        scores, slope = _scores(static, q, k, _hidden(here, there, window))
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
        return (dq.reshape(q.shape),), (dk.reshape(rows, heads, size, -1), dv.reshape(rows, heads, size, -1))

    dq, one_by_one = [], _is_long(q)
    dk = dv = None
    # Long rows one block after another: else XLA's CPU compiler has all tiles at once. From the last one, which sees
    # all keys: what the others add is added in place.
    for start, end in reversed(_blocks(length, group)):
        of_queries = (*(x[:, :, start:end] for x in (q, d_out, top, scale, drift)), where.part(start, end))
        if one_by_one:
            of_queries = after(dq[-1] if dq else d_out, of_queries)
        (part,), sums = _in_turns(block, of_queries, (k, v, where), end)
        dq.append(part)
        dk, dv = _with(dk, sums[0]), _with(dv, sums[1])
    assert dk is not None and dv is not None
    return (
        jnp.concatenate(dq[::-1], axis=2).astype(q.dtype),
        dk.swapaxes(2, 3).astype(k.dtype),
        dv.swapaxes(2, 3).astype(v.dtype),
        None,
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


def _in_turns(block: Block, of_queries: tuple[Any, ...], of_keys: tuple[Any, ...], end: int):
    """`block(of_queries, of_keys[:end])`, in turns where the whole tile would be larger than `TILE_BOUND`.

    Rows of the batch come one after another then; where the tile of one is larger still, its key heads do; and
    where that of one head is, some queries after others.

    Args:
      block: gives what it finds of each query, and sums over the queries.
      of_queries: arrays [B, K or 1, Q, ...], queries [B, K, Q, G, H] first.
      of_keys: arrays [B, K or 1, T, ...]. Whole, so that the loops of all blocks read the same ones.
      end: keys that the queries may see.
    """
    rows, heads, count, group, _ = of_queries[0].shape
    if rows * heads * count * group * end <= TILE_BOUND:
        return block(of_queries, jax.tree.map(lambda x: x[:, :, :end], of_keys))
    if rows > 1:
        return _one_by_one(block, (of_queries, of_keys), end, 0, rows)
    if heads > 1:
        return _one_by_one(block, (of_queries, of_keys), end, 1, heads)
    return _some_by_some(block, of_queries, of_keys, end)


def _one_by_one(block: Block, arrays: tuple[Any, ...], end: int, axis: int, count: int):
    """The rows (axis 0) or heads (axis 1) of `_in_turns`."""

    def one(number: jax.Array):
        def part(x: jax.Array):  # positions and segments are those of all heads
            return jax.lax.dynamic_slice_in_dim(x, number if x.shape[axis] > 1 else 0, 1, axis)

        of_queries, of_keys = jax.tree.map(part, arrays)
        return _in_turns(block, of_queries, of_keys, end)

    stacked = jax.lax.map(one, jnp.arange(count))
    return jax.tree.map(lambda x: jnp.moveaxis(jnp.squeeze(x, axis + 1), 0, axis), stacked)


def _some_by_some(block: Block, of_queries: tuple[Any, ...], of_keys: tuple[Any, ...], end: int):
    """The queries of `_in_turns`, of one row and head, as many at once as the bound allows."""
    _, _, count, group, _ = of_queries[0].shape
    turns = -(-count // max(TILE_BOUND // (group * end), 1))
    size = -(-count // turns)
    seen = jax.tree.map(lambda x: x[:, :, :end], of_keys)

    def cut(x: jax.Array):
        # Zeros are of no segment, and add nothing to sums.
        whole = jnp.pad(x, [(0, (turns * size - count) * (axis == 2)) for axis in range(x.ndim)])
        return jnp.moveaxis(whole.reshape(*x.shape[:2], turns, size, *x.shape[3:]), 2, 0)

    def join(x: jax.Array):
        return jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, *x.shape[4:])[:, :, :count]

    def turn(sums: tuple[Any, ...], part: tuple[Any, ...]):
        outputs, more = block(part, seen)
        return jax.tree.map(jnp.add, sums, more), outputs

    parts = jax.tree.map(cut, of_queries)
    shapes = jax.eval_shape(lambda parts: block(jax.tree.map(lambda x: x[0], parts), seen)[1], parts)
    sums, outputs = jax.lax.scan(turn, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)
    return jax.tree.map(join, outputs), sums
