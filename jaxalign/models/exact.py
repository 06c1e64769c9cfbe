"""Forward passes whose bits do not depend on how tokens are batched: sampler and trainer compute the same numbers.

A compiler computes a product of 16 rows and one of 4,096 in different orders, so the log-probs of a decoding step and
of a training pass differ by rounding, and in bfloat16 by much more than one rounding (see `docs/sampling.md`). Here
every token goes through programs of one shape: `TILE` tokens at a time, whatever row they belong to, and attention in
blocks of `BLOCK` keys counted from a segment's first token. Tokens beside it, padding and keys that it does not see
change nothing in a token's numbers, so batch size, order, packing and the cache's length and columns do not matter.

Only values are computed here. Gradients are those of the ordinary passes, at these values (`with_value`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxalign.kernels.matmul import cached_dtype, operand_dtype, product
from jaxalign.masking import NEGATIVE
from jaxalign.models.adapted import Adapter
from jaxalign.models.attention import scaled, segment_starts
from jaxalign.models.block import attended, block, cast, project
from jaxalign.models.config import ModelConfig, Rotation
from jaxalign.models.layers import Params, norm, softcap
from jaxalign.models.rotary import rope_tables

TILE = 16
BLOCK = 64

barrier = jax.lax.optimization_barrier


@jax.custom_vjp
def with_value(fast: Any, exact: Any) -> Any:
    """`exact`, with the gradient of `fast`: without a gradient `fast` is not computed."""
    del fast
    return exact


def _with_value_forward(fast: Any, exact: Any):
    del fast
    return exact, None


def _with_value_backward(_: None, cotangent: Any):
    return cotangent, jax.tree.map(jnp.zeros_like, cotangent)


with_value.defvjp(_with_value_forward, _with_value_backward)


def tiled(function: Callable[..., Any], *tokens: Any) -> Any:
    """`function` of N tokens, `TILE` at a time.

    Args:
      function: arrays [TILE, ...] -> a tree of arrays [TILE, ...], in which each token's part depends on its own only.
      *tokens: trees of arrays [N, ...].

    Returns:
      The tree of arrays [N, ...].
    """
    count = jax.tree.leaves(tokens)[0].shape[0]
    tiles = -(-count // TILE)
    filled = jax.tree.map(
        lambda x: jnp.pad(x, ((0, tiles * TILE - count),) + ((0, 0),) * (x.ndim - 1)), tokens
    )
    # A number of turns that the compiler does not know: it would write out a loop of one turn, and fuse the tile with
    # what stands around it.
    turns = barrier(jnp.int32(tiles))

    def at(x: jax.Array, turn: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, turn * TILE, TILE, 0)

    def body(turn: jax.Array, out: Any) -> Any:
        tile = barrier(jax.tree.map(lambda x: at(x, turn), filled))
        new = barrier(function(*tile))
        return jax.tree.map(
            lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, turn * TILE, 0), out, new
        )

    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: at(x, jnp.int32(0)), filled))
    zeros = jax.tree.map(lambda x: jnp.zeros((tiles * TILE, *x.shape[1:]), x.dtype), shapes)
    return jax.tree.map(lambda x: x[:count], jax.lax.fori_loop(0, turns, body, zeros))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Where N tokens lie, int32 [N]: their row, the column of their segment's first token, and their own column."""

    rows: jax.Array
    first: jax.Array
    columns: jax.Array


def tables(
    positions: Int[Array, " N"], config: ModelConfig, rotation: Rotation
) -> tuple[Float[Array, "N 1 R"], Float[Array, "N 1 R"]]:
    """`rotary.rope_tables` of N tokens."""

    def tile(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        cos, sin = rope_tables(positions[:, None], config, rotation)
        return cos[:, 0], sin[:, 0]

    return tiled(tile, positions)


def layer(
    x: Float[Array, "N D"],
    params: Params,
    adapter: Adapter | None,
    config: ModelConfig,
    tables: tuple[jax.Array, jax.Array],
    places: Places,
    window: jax.Array | int,
    stored: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
) -> tuple[Float[Array, "N D"], Float[Array, "N K H"], Float[Array, "N K H"]]:
    """One layer of N tokens: its output, and their keys and values.

    Args:
      x: its input.
      params, adapter: its weights, as `cast`, and adapters.
      config: the model's shape.
      tables: of the tokens' positions.
      places: where they lie in the cache.
      window: how many columns a token sees; 0: all.
      stored: keys and values [N, K, H] -> all keys [B, K, H, S] and values [B, K, S, H] that the tokens may see.
    """

    def project_tile(x: jax.Array, turns: tuple[jax.Array, jax.Array]) -> Any:
        h = attended(x[:, None], params, config)
        turns = jax.tree.map(lambda t: t[:, None], turns)
        return jax.tree.map(lambda y: y[:, 0], project(h, params, config, turns, adapter, None))

    q, k, v = tiled(project_tile, x, tables)
    keys, values = stored(k, v)
    heads = attend(q, keys, values, places.rows, places.first, places.columns, window, config)

    def block_tile(x: jax.Array, heads: jax.Array) -> jax.Array:
        return block(x[:, None], params, config, lambda _: heads[:, None], adapter, None)[:, 0]

    return tiled(block_tile, x, heads), k, v


@dataclass(frozen=True)
class Pass:
    """A pass over whole rows [B, T], in exact mode: what its layers share."""

    places: Places
    tables: Mapping[Any, tuple[jax.Array, jax.Array]]
    shape: tuple[int, int]

    @classmethod
    def of(cls, positions: Int[Array, "B T"], segments: Int[Array, "B T"], config: ModelConfig) -> "Pass":
        """The pass over rows of these positions and segments."""
        rows, length = positions.shape
        columns = jnp.broadcast_to(jnp.arange(length), positions.shape)
        row = jnp.broadcast_to(jnp.arange(rows)[:, None], positions.shape)
        places = Places(*(x.reshape(-1) for x in (row, segment_starts(segments), columns)))
        turns = {r: tables(positions.reshape(-1), config, r) for r in config.rotations}
        return cls(places, turns, (rows, length))

    def layer(
        self,
        x: Float[Array, "B T D"],
        params: Params,
        adapter: Adapter | None,
        config: ModelConfig,
        tables: tuple[jax.Array, jax.Array],
        window: jax.Array | int,
    ) -> tuple[Float[Array, "B T D"], tuple[jax.Array, jax.Array]]:
        """A layer's output, and its keys and values [B, T, K, H]; without a gradient."""
        x, params, adapter = jax.lax.stop_gradient((x, params, adapter))
        rows, length = self.shape
        more = -length % BLOCK

        def stored(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            keys = rearrange(k, "(b t) k h -> b k h t", b=rows)
            values = rearrange(v, "(b t) k h -> b k t h", b=rows)
            return (
                jnp.pad(keys, ((0, 0), (0, 0), (0, 0), (0, more))),
                jnp.pad(values, ((0, 0), (0, 0), (0, more), (0, 0))),
            )

        # Rounded before they are read, as a sampler's are.
        params = barrier(cast(params, operand_dtype(config)))
        flat = rearrange(x, "b t d -> (b t) d")
        out, *cached = layer(flat, params, adapter, config, tables, self.places, window, stored)
        k, v = (rearrange(y, "(b t) k h -> b t k h", b=rows) for y in cached)
        return out.reshape(x.shape), (k, v)


def normed(x: Float[Array, "N D"], params: Params, config: ModelConfig) -> Float[Array, "N D"]:
    """The final norm of N tokens."""
    x, params = jax.lax.stop_gradient((x, params))
    return tiled(lambda x: norm(x, params, "weight", config), x)


def _logits_tile(
    hidden: Float[Array, "N D"], head: Float[Array, "V D"], options: dict[str, Any]
) -> Float[Array, "N V"]:
    out = barrier(product("nd,vd->nv", hidden, head, dtype=options["product_dtype"]))
    if options["bias"] is not None:
        out = barrier(out + options["bias"].astype(jnp.float32))
    return barrier(softcap(out, options["softcap"] or 0.0))


def _logps_tile(
    logits: Float[Array, "N V"], targets: Int[Array, " N"], temperature: Float[Array, " N"]
) -> Float[Array, " N"]:
    scaled = logits / temperature[:, None]
    top = scaled.max(-1)
    normalizer = top + jnp.log(jnp.exp(scaled - top[:, None]).sum(-1))
    return jnp.take_along_axis(scaled, targets[:, None], axis=1)[:, 0] - normalizer


def logps(
    logits: Float[Array, "N V"], targets: Int[Array, " N"], temperature: Float[Array, " N"]
) -> Float[Array, " N"]:
    """log softmax(logits / temperature) at the targets of N tokens."""
    return tiled(_logps_tile, logits, targets, temperature)


def logits(
    hidden: Float[Array, "N D"], head: Float[Array, "V D"], options: dict[str, Any]
) -> Float[Array, "N V"]:
    """float32 logits of N tokens; `options` are `Transformer.head_options`."""
    head = barrier(head.astype(options["product_dtype"]))
    return tiled(lambda hidden: _logits_tile(hidden, head, options), hidden)


def linear_logps(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    options: dict[str, Any],
    targets: Int[Array, " N"],
    temperature: Float[Array, " N"],
) -> Float[Array, " N"]:
    """`logps` of `logits`, of which only those of a tile are in memory; without a gradient."""
    hidden, head, bias = jax.lax.stop_gradient((hidden, head, options["bias"]))
    options = {**options, "bias": bias}
    head = barrier(head.astype(options["product_dtype"]))
    # A compiler that knows the temperature multiplies by its reciprocal, which rounds otherwise: it must not know.
    temperature = jnp.where(targets < 0, 1.0, temperature)

    def tile(hidden: jax.Array, targets: jax.Array, temperature: jax.Array) -> jax.Array:
        return logps(_logits_tile(hidden, head, options), targets, temperature)

    return tiled(tile, hidden, targets, temperature)


def attend(
    q: Float[Array, "M N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    rows: Int[Array, " M"],
    first: Int[Array, " M"],
    last: Int[Array, " M"],
    window: jax.Array | int,
    config: ModelConfig,
) -> Float[Array, "M NH"]:
    """Attention of M queries, each over the columns `first` to `last` of its row.

    Args:
      q: queries.
      keys, values: of B rows of S columns; finite everywhere.
      rows: the row of each query.
      first: the first column of its segment, from which blocks of keys count.
      last: its own column.
      window: how many columns it sees at most; 0: all.
    """
    dtype = cached_dtype(config)
    keys, values = keys.astype(dtype), values.astype(dtype)
    if (short := BLOCK - keys.shape[3]) > 0:
        keys = jnp.pad(keys, ((0, 0), (0, 0), (0, 0), (0, short)))
        values = jnp.pad(values, ((0, 0), (0, 0), (0, short), (0, 0)))
    columns, heads = keys.shape[3], keys.shape[1]

    def blocks_of(x: jax.Array, axis: int, rows: jax.Array, starts: jax.Array, last: jax.Array) -> jax.Array:
        """Columns from `starts` on, `BLOCK` a query, of its row; those after `last` may be any."""
        at = jnp.minimum(starts, columns - BLOCK)

        def part(row: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(
                jax.lax.dynamic_index_in_dim(x, row, 0, False), start, BLOCK, axis
            )

        parts = jax.vmap(part)(rows, at)
        # The last block of a row may reach beyond the end: then what was read begins too early.
        early = jnp.where(starts <= last, at - starts, 0)
        moved = jax.vmap(lambda part, shift: jnp.roll(part, shift, axis))
        return jax.lax.cond(jnp.any(early != 0), moved, lambda parts, _: parts, parts, early)

    def tile(q: jax.Array, rows: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
        q = rearrange(scaled(q, config), "m (k g) h -> m k g h", k=heads).astype(dtype)
        oldest = jnp.where(jnp.asarray(window) == 0, first, jnp.maximum(first, last - window + 1))

        def step(number: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]):
            top, total, out = carry
            starts = first + number * BLOCK
            k, v = blocks_of(keys, 2, rows, starts, last), blocks_of(values, 1, rows, starts, last)
            k, v = barrier((k, v))
            scores = barrier(product("mkgh,mkhs->mkgs", q, k, dtype=dtype))
            at = starts[:, None] + jnp.arange(BLOCK)
            there = (at >= oldest[:, None]) & (at <= last[:, None])
            scores = softcap(scores, config.attention_softcap)
            scores = jnp.where(there[:, None, None, :], scores, NEGATIVE)
            new_top = jnp.maximum(top, scores.max(-1))
            decay = jnp.exp(top - new_top)
            weights = jnp.where(there[:, None, None, :], jnp.exp(scores - new_top[..., None]), 0.0)
            part = product("mkgs,mksh->mkgh", barrier(weights), v, dtype=dtype)
            return barrier((new_top, total * decay + weights.sum(-1), out * decay[..., None] + part))

        zero = jnp.zeros(q.shape[:3], jnp.float32)
        start = (zero + NEGATIVE, zero, jnp.zeros(q.shape, jnp.float32))
        # Blocks that no token of the tile sees are left out; one that this token does not see changes nothing.
        blocks = jnp.max((last - first) // BLOCK) + 1
        begin = jnp.min((oldest - first) // BLOCK)
        _, total, out = jax.lax.fori_loop(begin, blocks, step, start)
        return rearrange(out / jnp.maximum(total, 1e-30)[..., None], "m k g h -> m (k g h)")

    return tiled(tile, q, rows, first, last).astype(q.dtype)
