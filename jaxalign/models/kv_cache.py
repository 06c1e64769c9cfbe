"""Keys and values of the tokens seen so far, for decoding.

Prompts are right-padded into columns 0..P-1. Completion token number s of *every* row
is written into column P + s, so a step writes one column for all rows; its position is
the row's own prompt length + s.
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
      prompt_lengths: int32 [B], tokens of each prompt.
      prompt_width: int32 scalar, P.
      step: int32 scalar, completion tokens written.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    prompt_lengths: Int[Array, " B"]
    prompt_width: Int[Array, ""]
    step: Int[Array, ""]

    @property
    def length(self) -> int:
        """Columns, S."""
        return self.values[0].shape[2]

    def positions(self) -> Int[Array, "B S"]:
        """Position of the token in each column."""
        columns = jnp.arange(self.length)[None, :]
        after = self.prompt_lengths[:, None] + columns - self.prompt_width
        return jnp.where(columns < self.prompt_width, columns, after)

    def filled(self) -> Bool[Array, "B S"]:
        """Columns that hold a token, the one of the current step included."""
        columns = jnp.arange(self.length)[None, :]
        prompt = columns < self.prompt_lengths[:, None]
        return prompt | ((columns >= self.prompt_width) & (columns <= self.prompt_width + self.step))


def from_prompt(
    keys: Float[Array, "L B P K H"],
    values: Float[Array, "L B P K H"],
    lengths: Int[Array, " B"],
    cache_length: int,
) -> KVCache:
    """A cache of `cache_length` columns that holds the prompts."""
    width = keys.shape[2]
    pad = [(0, 0), (0, 0), (0, 0), (0, cache_length - width)]
    return KVCache(
        keys=tuple(jnp.pad(k.transpose(0, 2, 3, 1), pad) for k in keys),
        values=tuple(jnp.pad(v.transpose(0, 2, 1, 3), [pad[0], pad[1], pad[3], pad[2]]) for v in values),
        prompt_lengths=lengths.astype(jnp.int32),
        prompt_width=jnp.asarray(width, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def grow(cache: KVCache, length: int) -> KVCache:
    """The cache with `length` columns, the new ones empty."""
    more = length - cache.length
    return replace(
        cache,
        keys=tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, more))) for k in cache.keys),
        values=tuple(jnp.pad(v, ((0, 0), (0, 0), (0, more), (0, 0))) for v in cache.values),
    )


def take_rows(cache: KVCache, rows: Int[Array, " R"]) -> KVCache:
    """The given rows of the cache, in that order (also to repeat a prompt for several samples)."""
    return replace(
        cache,
        keys=tuple(k[rows] for k in cache.keys),
        values=tuple(v[rows] for v in cache.values),
        prompt_lengths=cache.prompt_lengths[rows],
    )


def window_of(config: ModelConfig, layer: int) -> int:
    """Keys a layer sees; 0 for all."""
    return config.sliding_window if config.layer_slides[layer] else 0
