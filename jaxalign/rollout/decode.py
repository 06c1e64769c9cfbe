"""The programs of generation: read prompts, place them, decode a block of tokens, move the cache.

All shapes come from short ladders, and everything that changes between calls (settings,
stop tokens, how many tokens to draw) is an array, so few programs serve all calls.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxalign import models
from jaxalign.models import kv_cache
from jaxalign.models.composite import ModelDefinition
from jaxalign.models.kv_cache import KVCache
from jaxalign.models.layers import Adapter, Params
from jaxalign.rollout.sampling import SamplerFeatures, next_token, row_uniforms


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSampling:
    """How each of B rows is sampled.

    Attributes:
      ids: int32 [B], the randomness of the row.
      temperature, min_p, top_p: float32 [B].
      top_k: int32 [B].
    """

    ids: Any
    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any

    def take(self, rows: np.ndarray) -> "RowSampling":
        """The given rows."""
        return jax.tree.map(lambda x: x[rows], self)


def _drawn(
    logits: jax.Array, uniforms: jax.Array, draws: RowSampling, stops: jax.Array, features: SamplerFeatures
) -> dict[str, jax.Array]:
    """A token a row, its log-probs, and whether it is a stop token."""
    token, logp, sampling_logp = next_token(
        logits,
        uniforms,
        draws.temperature,
        draws.top_k,
        draws.top_p,
        draws.min_p,
        features=features,
    )
    stop = (token[:, None] == stops[None, :]).any(-1)
    return {"tokens": token, "logps": logp, "sampling_logps": sampling_logp, "stop": stop}


@partial(jax.jit, static_argnames=("definition",))
def decode_weights(definition: ModelDefinition, params: Params, adapter: Adapter | None) -> Any:
    """The weights that decoding reads, once for all blocks."""
    return models.merge(definition, params).decode_weights(adapter)


def int8_params(definition: ModelDefinition, params: Params, adapter: Adapter | None) -> Any:
    """The parameters as 8-bit integers, the adapter added to them before; without one, what is 8-bit is no copy."""
    return models.quantize_params(params) if adapter is None else _adapted(definition, params, adapter)


@partial(jax.jit, static_argnames=("definition",))
def _adapted(definition: ModelDefinition, params: Params, adapter: Adapter) -> Any:
    return models.quantize_params(models.merge_adapter(models.merge(definition, params), adapter).params)


@partial(jax.jit, static_argnames=("definition", "copies", "features", "int8_cache"))
def read_prompts(
    definition: ModelDefinition,
    params: Params,
    adapter: Adapter | None,
    tokens: Int[Array, "n P"],
    lengths: Int[Array, " n"],
    draws: RowSampling,
    stops: Int[Array, " Z"],
    key: jax.Array,
    *,
    copies: int,
    features: SamplerFeatures,
    int8_cache: bool,
) -> tuple[KVCache, dict[str, jax.Array]]:
    """Reads n prompts, each once, and draws the first token of the n * `copies` completions."""
    model = models.merge(definition, params)
    hidden, cache = model.prefill(
        tokens, lengths, cache_length=tokens.shape[1], adapter=adapter, int8_cache=int8_cache
    )
    logits = jnp.repeat(model.logits(hidden), copies, axis=0)
    uniforms = row_uniforms(key, draws.ids, jnp.zeros_like(draws.ids))
    return cache, _drawn(logits, uniforms, draws, stops, features)


@partial(jax.jit, static_argnames=("length",))
def new_cache(prompts: KVCache, source: Int[Array, " B"], column: Int[Array, ""], *, length: int) -> KVCache:
    """`seat` in an empty cache of B rows and `length` columns, of which `column` is written next."""
    rows = source.shape[0]
    empty = KVCache(
        keys=jax.tree.map(lambda k: jnp.zeros((rows, *k.shape[1:3], length), k.dtype), prompts.keys),
        values=jax.tree.map(
            lambda v: jnp.zeros((rows, v.shape[1], length, v.shape[3]), v.dtype), prompts.values
        ),
        starts=jnp.broadcast_to(column, (rows,)),
        column=column,
    )
    return kv_cache.put_rows(empty, prompts, source)


@partial(jax.jit, donate_argnames=("cache",))
def seat(cache: KVCache, prompts: KVCache, source: Int[Array, " B"]) -> KVCache:
    """Prompts in the rows of the cache where `source` says which one, negative elsewhere."""
    return kv_cache.put_rows(cache, prompts, source)


@partial(jax.jit, static_argnames=("length",))
def rearranged(cache: KVCache, rows: Int[Array, " R"], shift: Int[Array, ""], *, length: int) -> KVCache:
    """The given rows, their columns moved by `shift`, in a cache of `length` columns."""
    return kv_cache.moved(kv_cache.take_rows(cache, rows), shift, length)


@partial(jax.jit, static_argnames=("definition", "features", "block"), donate_argnames=("cache",))
def decode_block(
    definition: ModelDefinition,
    weights: Params,
    cache: KVCache,
    token: Int[Array, " B"],
    alive: Bool[Array, " B"],
    drawn: Int[Array, " B"],
    limit: Int[Array, ""],
    steps: Int[Array, ""],
    draws: RowSampling,
    stops: Int[Array, " Z"],
    key: jax.Array,
    *,
    features: SamplerFeatures,
    block: int,
) -> tuple[KVCache, dict[str, jax.Array]]:
    """Samples up to `steps` (at most `block`) tokens per row, fewer where all rows end before.

    Args:
      definition: static part of the model.
      weights: from `decode_weights`.
      cache: B rows with room for `steps` columns; given away.
      token: the last token of each row, not yet in the cache.
      alive: rows that go on; the others are carried along and give nothing.
      drawn: tokens of each completion so far, `token` included.
      limit: longest completion.
      steps: tokens to draw, at most.
      draws, stops, key: see `RowSampling`; ids that end a row; source of all randomness.
      features: what sampling must provide for.
      block: columns of the result.

    Returns:
      The cache, and [B, `block`] `tokens`, `logps` and `sampling_logps`, 0 where the row had
      ended, with `token`, `alive` and `drawn` [B] as they are now, and `stopped` [B]: ended
      by a stop token in this block.
    """
    model = models.merge(definition, weights)
    rows = token.shape[0]
    # A dead row starts at the next column: nothing of it is seen, and its position is small.
    cache = replace(cache, starts=jnp.where(alive, cache.starts, cache.column))
    positions = drawn[:, None] + jnp.arange(block)[None, :]
    uniforms = jax.vmap(lambda at: row_uniforms(key, draws.ids, at), in_axes=1, out_axes=1)(positions)

    def unfinished(carry: dict[str, Any]):
        return (carry["step"] < steps) & carry["alive"].any()

    def step(carry: dict[str, Any]):
        at, alive = carry["step"], carry["alive"]
        hidden, cache = model.decode(weights, carry["token"], carry["cache"])
        here = jax.lax.dynamic_index_in_dim(uniforms, at, axis=1, keepdims=False)
        new = _drawn(model.logits(hidden), here, draws, stops, features)
        written = {
            name: jax.lax.dynamic_update_slice_in_dim(
                carry[name], jnp.where(alive, new[name], 0)[:, None], at, 1
            )
            for name in ("tokens", "logps", "sampling_logps")
        }
        drawn = carry["drawn"] + alive
        return {
            **written,
            "cache": cache,
            "token": new["tokens"],
            "drawn": drawn,
            "stopped": carry["stopped"] | (alive & new["stop"]),
            "alive": alive & ~new["stop"] & (drawn < limit),
            "step": at + 1,
        }

    carry = {
        "tokens": jnp.zeros((rows, block), jnp.int32),
        "logps": jnp.zeros((rows, block), jnp.float32),
        "sampling_logps": jnp.zeros((rows, block), jnp.float32),
        "cache": cache,
        "token": token,
        "drawn": drawn,
        "stopped": jnp.zeros(rows, bool),
        "alive": alive,
        "step": jnp.zeros((), jnp.int32),
    }
    carry = jax.lax.while_loop(unfinished, step, carry)
    cache = carry.pop("cache")
    return cache, carry
