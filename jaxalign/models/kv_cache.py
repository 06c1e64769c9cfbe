"""Keys and values of the tokens seen so far, for decoding.

Every row ends at the same column: a prompt of n tokens fills the n columns before the one
that is written next, and a step writes one column for all rows. So a row that joins later
only starts later, and a token's position is its column less the row's first one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxalign.kernels.int8 import Int8, quantized
from jaxalign.masking import NEGATIVE
from jaxalign.models.config import ModelConfig


class Seen(NamedTuple):
    """The columns that a step's queries see.

    Attributes:
      first: int32 [B], the first one of each row.
      last: int32 scalar, the last one.
      bias: float32 [B, S], 0 there and very small elsewhere.
    """

    first: Int[Array, " B"]
    last: Int[Array, ""]
    bias: Float[Array, "B S"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """One array a layer, so that the decode loop carries them without copies.

    Attributes:
      keys: per layer [B, K, H, S], an array or an `Int8` with a scale for each token of a head.
      values: per layer [B, K, S, H], likewise.
      starts: int32 [B], the column of each row's first token.
      column: int32 scalar, the column that is written next.
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    starts: Int[Array, " B"]
    column: Int[Array, ""]

    @property
    def length(self) -> int:
        """Columns, S."""
        return self.values[0].shape[2]

    def seen(self, window: int) -> Seen:
        """What the current step sees, its own column included: the last `window` columns, or all where that is 0."""
        first = jnp.maximum(self.starts, self.column - window + 1) if window else self.starts
        columns = jnp.arange(self.length)[None, :]
        there = (columns >= first[:, None]) & (columns <= self.column)
        return Seen(first, self.column, jnp.where(there, 0.0, NEGATIVE))


def from_prompt(
    keys: Float[Array, "L B P K H"],
    values: Float[Array, "L B P K H"],
    lengths: Int[Array, " B"],
    cache_length: int,
    *,
    int8: bool = False,
) -> KVCache:
    """A cache of `cache_length` columns that holds prompts, each in the last of P columns; `int8`: as integers."""
    width = keys.shape[2]
    by_layer = (
        [rearrange(k, "b p k h -> b k h p") for k in keys],
        [rearrange(v, "b p k h -> b k p h") for v in values],
    )
    cache = KVCache(
        keys=tuple(quantized(k, axis=2) if int8 else k for k in by_layer[0]),
        values=tuple(quantized(v, axis=3) if int8 else v for v in by_layer[1]),
        starts=(width - lengths).astype(jnp.int32),
        column=jnp.asarray(width, jnp.int32),
    )
    return grow(cache, cache_length)


def grow(cache: KVCache, length: int) -> KVCache:
    """The cache with `length` columns, the new ones empty."""
    more = length - cache.length
    return replace(
        cache,
        keys=jax.tree.map(lambda k: jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, more))), cache.keys),
        values=jax.tree.map(lambda v: jnp.pad(v, ((0, 0), (0, 0), (0, more), (0, 0))), cache.values),
    )


def moved(cache: KVCache, shift: Int[Array, ""] | None, length: int) -> KVCache:
    """Each column `shift` to the right (left where negative), in a cache of `length` columns.

    What leaves one end comes in at the other, where no row of the result may have a column.
    """
    wide = grow(cache, max(length, cache.length))
    if shift is None:
        return replace(
            cache,
            keys=jax.tree.map(lambda k: k[..., :length], wide.keys),
            values=jax.tree.map(lambda v: v[:, :, :length], wide.values),
        )
    return KVCache(
        keys=jax.tree.map(lambda k: jnp.roll(k, shift, axis=3)[..., :length], wide.keys),
        values=jax.tree.map(lambda v: jnp.roll(v, shift, axis=2)[:, :, :length], wide.values),
        starts=cache.starts + shift,
        column=cache.column + shift,
    )


def take_rows(cache: KVCache, rows: Int[Array, " R"]) -> KVCache:
    """The given rows of the cache, in that order (also to repeat a prompt for several samples)."""
    return replace(
        cache,
        keys=jax.tree.map(lambda k: k[rows], cache.keys),
        values=jax.tree.map(lambda v: v[rows], cache.values),
        starts=cache.starts[rows],
    )


def put_rows(cache: KVCache, prompts: KVCache, source: Int[Array, " B"]) -> KVCache:
    """The cache with prompts in some of its rows, ending before the column that is written next.

    Args:
      cache: B rows; its next column is P or more.
      prompts: prompts of P columns.
      source: for each row of the cache the prompt that replaces it; negative where it stays.
    """
    width, start = prompts.length, cache.column - prompts.length
    new = source >= 0
    chosen = take_rows(prompts, jnp.maximum(source, 0))

    def put(old: jax.Array, prompt: jax.Array, axis: int) -> jax.Array:
        there = jax.lax.dynamic_slice_in_dim(old, start, width, axis)
        merged = jnp.where(new[:, None, None, None], prompt, there)
        return jax.lax.dynamic_update_slice_in_dim(old, merged, start, axis)

    return replace(
        cache,
        keys=jax.tree.map(lambda k, p: put(k, p, 3), cache.keys, chosen.keys),
        values=jax.tree.map(lambda v, p: put(v, p, 2), cache.values, chosen.values),
        starts=jnp.where(new, chosen.starts + start, cache.starts),
    )


def take_layers(cache: KVCache, first: int, count: int) -> KVCache:
    """The cache of `count` of the layers, from `first` on."""
    part = slice(first, first + count)
    return replace(cache, keys=cache.keys[part], values=cache.values[part])


def joined(caches: Sequence[KVCache]) -> KVCache:
    """One cache of the layers of all, one after another; their starts and column are the same."""
    return replace(
        caches[0],
        keys=tuple(k for cache in caches for k in cache.keys),
        values=tuple(v for cache in caches for v in cache.values),
    )


def written(cached: Any, new: jax.Array, column: Int[Array, ""], *, axis: int) -> Any:
    """Keys (columns on `axis` 3) or values (axis 2) of a layer with one column more."""
    features = 5 - axis
    start = (0, 0, 0, column) if axis == 3 else (0, 0, column, 0)
    column_of = quantized(new, axis=features) if isinstance(cached, Int8) else new
    return jax.tree.map(
        lambda old, x: jax.lax.dynamic_update_slice(old, x.astype(old.dtype), start), cached, column_of
    )


def window_of(config: ModelConfig, layer: int) -> int:
    """Keys a layer sees; 0 for all."""
    return config.sliding_window if config.layer_slides[layer] else 0
