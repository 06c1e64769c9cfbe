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
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from jaxalign import models
from jaxalign.mesh import DEFAULT_RULES, ROLLOUT_RULES
from jaxalign.models import kv_cache
from jaxalign.models.composite import ModelDefinition
from jaxalign.models.kv_cache import KVCache
from jaxalign.models.layers import Adapter, Params
from jaxalign.rollout import sharding
from jaxalign.rollout.sampling import SamplerFeatures, next_token, row_uniforms
from jaxalign.rollout.sharding import ALL, ROWS

# Keys, values and starts have an entry a row.
CACHE = KVCache(keys=ROWS, values=ROWS, starts=ROWS, column=ALL)  # type: ignore[arg-type]


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
    logits: jax.Array,
    uniforms: jax.Array,
    draws: RowSampling,
    stops: jax.Array,
    features: SamplerFeatures,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    """A token a row of a group, its log-probs, and whether it is a stop token."""
    token, logp, sampling_logp = next_token(
        sharding.spread_for_sampling(logits, mesh),
        uniforms,
        draws.temperature,
        draws.top_k,
        draws.top_p,
        draws.min_p,
        features=features,
    )
    token = sharding.whole_in_group(token, mesh)
    stop = (token[:, None] == stops[None, :]).any(-1)
    return {"tokens": token, "logps": logp, "sampling_logps": sampling_logp, "stop": stop}


@partial(jax.jit, static_argnames=("definition",))
def decode_weights(definition: ModelDefinition, params: Params, adapter: Adapter | None) -> Any:
    """The weights that decoding reads, once for all blocks; on a mesh each group of devices gets all of them."""
    weights, mesh = (
        models.merge(definition, params).decode_weights(adapter),
        sharding.mesh_of(definition.config),
    )
    if mesh is None:
        return weights
    # First where the parameters lie: what travels is then in the dtype that they were cast to.
    for rules in (DEFAULT_RULES, ROLLOUT_RULES):
        shardings = sharding.weight_shardings(weights, mesh, rules)
        weights = jax.lax.with_sharding_constraint(weights, shardings)
    return weights


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
    model, mesh = models.merge(definition, params), sharding.mesh_of(definition.config)
    hidden, cache = model.prefill(
        tokens, lengths, cache_length=tokens.shape[1], adapter=adapter, int8_cache=int8_cache
    )
    logits = sharding.constrained_rows(model.logits(sharding.constrained_rows(hidden, mesh)), mesh, "vocab")

    def first(
        logits: jax.Array, draws: RowSampling, stops: jax.Array, key: jax.Array
    ) -> dict[str, jax.Array]:
        uniforms = row_uniforms(key, draws.ids, jnp.zeros_like(draws.ids))
        return _drawn(jnp.repeat(logits, copies, axis=0), uniforms, draws, stops, features, mesh)

    drawn = sharding.group_program(first, mesh, (ROWS, ROWS, ALL, ALL), ROWS)(logits, draws, stops, key)
    return sharding.constrained_cache(cache, mesh), drawn


@partial(jax.jit, static_argnames=("length", "mesh"))
def new_cache(
    prompts: KVCache,
    source: Int[Array, " B"],
    column: Int[Array, ""],
    *,
    length: int,
    mesh: Mesh | None = None,
) -> KVCache:
    """`seat` in an empty cache of B rows and `length` columns, of which `column` is written next."""

    def made(prompts: KVCache, source: Int[Array, " B"], column: Int[Array, ""]) -> KVCache:
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

    cache = sharding.group_program(made, mesh, (CACHE, ROWS, ALL), CACHE)(prompts, source, column)
    return sharding.constrained_cache(cache, mesh)


@partial(jax.jit, static_argnames=("mesh",), donate_argnames=("cache",))
def seat(cache: KVCache, prompts: KVCache, source: Int[Array, " B"], *, mesh: Mesh | None = None) -> KVCache:
    """Prompts in the rows of the cache where `source` says which (on a mesh, of its group), negative elsewhere."""
    seated = sharding.group_program(kv_cache.put_rows, mesh, (CACHE, CACHE, ROWS), CACHE)
    return sharding.constrained_cache(seated(cache, prompts, source), mesh)


@partial(jax.jit, static_argnames=("length", "mesh"))
def rearranged(
    cache: KVCache,
    rows: Int[Array, " R"],
    shift: Int[Array, ""] | None,
    *,
    length: int,
    mesh: Mesh | None = None,
) -> KVCache:
    """The given rows (on a mesh, of their group), their columns moved by `shift`, in a cache of `length` columns."""

    def made(cache: KVCache, rows: Int[Array, " R"], shift: Int[Array, ""] | None) -> KVCache:
        return kv_cache.moved(kv_cache.take_rows(cache, rows), shift, length)

    cache = sharding.group_program(made, mesh, (CACHE, ROWS, ALL), CACHE)(cache, rows, shift)
    return sharding.constrained_cache(cache, mesh)


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
    mesh = sharding.mesh_of(definition.config)
    block_of = partial(_block, definition, mesh=mesh, features=features, block=block)
    by_row = (CACHE, ROWS, ROWS, ROWS)
    run = sharding.group_program(block_of, mesh, (ALL, *by_row, ALL, ALL, ROWS, ALL, ALL), (CACHE, ROWS))
    before = sharding.constrained_cache(cache, mesh)
    cache, out = run(weights, before, token, alive, drawn, limit, steps, draws, stops, key)
    if mesh is None:
        return cache, out
    # Groups whose rows had ended took fewer steps; what they did not write no row reads.
    out["step"] = out["step"].max()
    return sharding.constrained_cache(replace(cache, column=before.column + out["step"]), mesh), out


def _block(
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
    mesh: Mesh | None,
    features: SamplerFeatures,
    block: int,
) -> tuple[KVCache, dict[str, jax.Array]]:
    """`decode_block` of one group of the mesh; its `step` is [1] there."""
    model = models.merge(sharding.in_group(definition, mesh), weights)
    rows = token.shape[0]
    # A dead row starts at the next column: nothing of it is seen, and its position is small.
    starts = sharding.whole_in_group(jnp.where(alive, cache.starts, cache.column), mesh)
    cache = replace(cache, starts=starts)
    positions = drawn[:, None] + jnp.arange(block)[None, :]
    uniforms = jax.vmap(lambda at: row_uniforms(key, draws.ids, at), in_axes=1, out_axes=1)(positions)

    def unfinished(carry: dict[str, Any]):
        return (carry["step"] < steps) & carry["going"]

    def step(carry: dict[str, Any]):
        at, alive = carry["step"], carry["alive"]
        hidden, cache = model.decode(weights, carry["token"], carry["cache"])
        hidden = sharding.whole_in_group(hidden, mesh)
        here = jax.lax.dynamic_index_in_dim(uniforms, at, axis=1, keepdims=False)
        new = _drawn(model.logits(hidden), here, draws, stops, features, mesh)
        written = {
            name: jax.lax.dynamic_update_slice_in_dim(
                carry[name], jnp.where(alive, new[name], 0)[:, None], at, 1
            )
            for name in ("tokens", "logps", "sampling_logps")
        }
        drawn = carry["drawn"] + alive
        still = sharding.whole_in_group(alive & ~new["stop"] & (drawn < limit), mesh)
        return {
            **written,
            "cache": cache,
            "token": new["tokens"],
            "drawn": drawn,
            "stopped": carry["stopped"] | (alive & new["stop"]),
            "alive": still,
            "going": sharding.any_in_step(still, mesh),
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
        "going": sharding.any_in_step(alive, mesh),
        "step": jnp.zeros((), jnp.int32),
    }
    carry = jax.lax.while_loop(unfinished, step, carry)
    cache = carry.pop("cache")
    carry.pop("going")
    return cache, carry if mesh is None else {**carry, "step": carry["step"][None]}
