"""Keys and values of the tokens seen so far, for decoding.

Every row ends at the same column: a prompt of n tokens fills the n columns before the one
that is written next, and a step writes one column for all rows. So a row that joins later
only starts later, and a token's position is its column less the row's first one.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.models.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """One array a layer, so that the decode loop carries them without copies.

    Attributes:
      keys: per layer [B, K, H, S].
      values: per layer [B, K, S, H].
      starts: int32 [B], the column of each row's first token.
      column: int32 scalar, the column that is written next.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    starts: Int[Array, " B"]
    column: Int[Array, ""]

    @property
    def length(self) -> int:
        """Columns, S."""
        return self.values[0].shape[2]

    def filled(self) -> Bool[Array, "B S"]:
        """Columns that hold a token of the row, the one of the current step included."""
        columns = jnp.arange(self.length)[None, :]
        return (columns >= self.starts[:, None]) & (columns <= self.column)


def from_prompt(
    keys: Float[Array, "L B P K H"],
    values: Float[Array, "L B P K H"],
    lengths: Int[Array, " B"],
    cache_length: int,
) -> KVCache:
    """A cache of `cache_length` columns that holds prompts, each in the last of P columns."""
    width = keys.shape[2]
    cache = KVCache(
        keys=tuple(k.transpose(0, 2, 3, 1) for k in keys),
        values=tuple(v.transpose(0, 2, 1, 3) for v in values),
        starts=(width - lengths).astype(jnp.int32),
        column=jnp.asarray(width, jnp.int32),
    )
    return grow(cache, cache_length)


def grow(cache: KVCache, length: int) -> KVCache:
    """The cache with `length` columns, the new ones empty."""
    more = length - cache.length
    return replace(
        cache,
        keys=tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, more))) for k in cache.keys),
        values=tuple(jnp.pad(v, ((0, 0), (0, 0), (0, more), (0, 0))) for v in cache.values),
    )


def moved(cache: KVCache, shift: Int[Array, ""] | None, length: int) -> KVCache:
    """Each column `shift` to the right (left where negative), in a cache of `length` columns.

    What leaves one end comes in at the other, where no row of the result may have a column.
    """
    wide = grow(cache, max(length, cache.length))
    if shift is None:
        return replace(
            cache,
            keys=tuple(k[..., :length] for k in wide.keys),
            values=tuple(v[:, :, :length] for v in wide.values),
        )
    return KVCache(
        keys=tuple(jnp.roll(k, shift, axis=3)[..., :length] for k in wide.keys),
        values=tuple(jnp.roll(v, shift, axis=2)[:, :, :length] for v in wide.values),
        starts=cache.starts + shift,
        column=cache.column + shift,
    )


def take_rows(cache: KVCache, rows: Int[Array, " R"]) -> KVCache:
    """The given rows of the cache, in that order (also to repeat a prompt for several samples)."""
    return replace(
        cache,
        keys=tuple(k[rows] for k in cache.keys),
        values=tuple(v[rows] for v in cache.values),
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
        keys=tuple(put(k, p, 3) for k, p in zip(cache.keys, chosen.keys, strict=True)),
        values=tuple(put(v, p, 2) for v, p in zip(cache.values, chosen.values, strict=True)),
        starts=jnp.where(new, chosen.starts + start, cache.starts),
    )


def window_of(config: ModelConfig, layer: int) -> int:
    """Keys a layer sees; 0 for all."""
    return config.sliding_window if config.layer_slides[layer] else 0
