"""Grouped-query attention over whole rows, and over a cache.

Over whole rows it has four forms, which give the same:

    plain      blocks of queries against all earlier keys, the derivative left to JAX: anywhere
    blockwise  tiles with a backward pass of their own: CPUs
    cudnn      cuDNN's fused kernels: NVIDIA GPUs (see `cudnn_attention.refusal` for what they cannot do)
    splash     a Pallas kernel: TPUs

The last two are kernels, which XLA's partitioner cannot split: on a mesh of several devices they run on each device's
rows and heads (`ModelConfig.mesh`). A kernel is a function `(q, k, v, segments, *, window) -> out` of q and out
[B, T, N, H], k and v [B, T, K, H] and int segments [B, T]: above 0 and the same in all columns of a segment, which lie
side by side in order of position; 0 for padding, whose output is finite and never read. Each query sees the `window`
columns of its own segment that end at its own, or all of them up to its own where `window` (an int) is 0.

Where the mesh axis `context` splits the tokens of a row, its devices exchange tokens for heads before attention and
back after it, so that each has whole rows of some of the heads (DeepSpeed-Ulysses, arXiv:2309.14509): every form above
computes them as it is, each device as much as the next whatever the mask.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxalign.kernels import cudnn_attention, decode_attention, splash_attention
from jaxalign.kernels.blockwise_attention import blockwise_attention
from jaxalign.kernels.config import AttentionImplementation, Choice
from jaxalign.kernels.int8 import Int8
from jaxalign.kernels.matmul import cached_dtype, operand_dtype, product
from jaxalign.kernels.remat import CONTEXT
from jaxalign.masking import NEGATIVE
from jaxalign.mesh import constrained, length_shards, partition_spec
from jaxalign.models.config import ModelConfig
from jaxalign.models.kv_cache import Seen
from jaxalign.models.layers import softcap
from jaxalign.target import target_device

BLOCK = 512
# Logical axes of queries, keys and values: as they come and go, and within attention.
BY_LENGTH = ("batch", "length", "kv_heads", None)
BY_HEADS = ("batch", None, "attention_heads", None)
NO_SINKS = "attention sinks are computed by plain alone"
REFUSALS = {"cudnn": cudnn_attention.refusal, "splash": splash_attention.refusal}
FASTEST: dict[str, AttentionImplementation] = {"cpu": "blockwise", "gpu": "cudnn", "tpu": "splash"}


def choose_attention(
    config: ModelConfig,
    device: jax.Device,
    *,
    max_segments: int = 1,
    mapped: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Choice:
    """The implementation that is fast on a device, and why.

    Args:
      config: what the implementation must be able to do, and `attention` where one is asked for.
      device: one of those that will run it.
      max_segments: of a row, as for `attend`.
      mapped: whether several models will run as one, by `jax.vmap`, which nothing inside can see.
      shape: of a device's queries [B, T, N, H], where it is known.

    Raises:
      ValueError: the implementation that is asked for cannot run there, or not such rows; in one line.
    """
    configured = config.attention != "auto"
    implementation = config.attention if configured else FASTEST.get(device.platform, "plain")
    why = REFUSALS[implementation](config, device) if implementation in REFUSALS else ""
    if config.attention_sinks and implementation != "plain":
        why = NO_SINKS
    if implementation == "cudnn":
        why = why or cudnn_attention.refusal_of_rows(device, max_segments, mapped=mapped, shape=shape)
    if why and configured:
        others = "" if why == NO_SINKS else "; plain and blockwise run anywhere"
        raise ValueError(f"attention {implementation}: {why}{others}")
    return (
        Choice("plain", why)
        if why
        else Choice(implementation, "configured" if configured else f"a {device.platform}")
    )


def attention_for(config: ModelConfig, *, max_segments: int = 1, mapped: bool = False) -> ModelConfig:
    """The config, but where it says `cudnn` (or would take it) and that cannot compute such rows, with another.

    For several models that will run as one, which `attend` cannot see. Arguments as of `choose_attention`.
    """
    if config.attention not in ("auto", "cudnn"):
        return config
    auto = replace(config, attention="auto")
    implementation = choose_attention(
        auto, _device(config), max_segments=max_segments, mapped=mapped
    ).implementation
    return replace(config, attention=implementation)


def _device(config: ModelConfig) -> Any:
    """One of the devices that run the model."""
    return target_device(config.mesh)


def visible(
    query_positions: Int[Array, "B Q"],
    key_positions: Int[Array, "B S"],
    query_segments: Int[Array, "B Q"],
    key_segments: Int[Array, "B S"],
    window: jax.Array | int,
) -> Bool[Array, "B Q S"]:
    """Which keys each query sees: earlier ones of its own segment, inside the window (0: no window).

    Segment 0 is padding: no query sees it.
    """
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    same = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    return same & (distance >= 0) & ((distance < window) | (jnp.asarray(window) == 0))


def segment_starts(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The first column of each token's segment."""
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    columns = jnp.arange(segments.shape[1])[None, :]
    return jax.lax.cummax(jnp.where(begins, columns, 0), axis=1)


def scaled(q: jax.Array, config: ModelConfig) -> jax.Array:
    """Queries times the score scale."""
    return q * jnp.asarray(config.query_scale or config.head_dim**-0.5, q.dtype)


def sinks_of(sinks: Float[Array, " N"] | None, heads: int, axes: int) -> Float[Array, "K G *S"] | None:
    """The scores of sinks [K, G, 1, ...], for scores with as many axes behind the heads."""
    if sinks is None:
        return None
    return sinks.astype(jnp.float32).reshape(heads, -1, *(1,) * axes)


def _weighted(
    scores: jax.Array,
    values: jax.Array,
    pattern: str,
    dtype: DTypeLike,
    scales: jax.Array | None = None,
    sinks: jax.Array | None = None,
):
    """softmax(scores) @ (scales * values) with the division after the product: one pass less over the scores.

    `sinks` are scores of one key more, whose value is 0.
    """
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jax.lax.stop_gradient(top if sinks is None else jnp.maximum(top, sinks))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    total = total if sinks is None else total + jnp.exp(sinks - top)
    weights = weights if scales is None else weights * scales
    return (product(pattern, weights, values, dtype=dtype) / total).astype(values.dtype)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: jax.Array | int,
    config: ModelConfig,
    *,
    max_segments: int = 0,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T NH"]:
    """Causal attention, in the implementation that the config names or that is fast on this backend.

    A query that sees nothing (padding) gets something finite, which is never read. The columns of a segment lie
    side by side, in order of position.

    Args:
      q, k, v: queries, keys and values.
      positions: of each token.
      segments: 1, 2, ... by segment, 0 for padding.
      window: how far back a query sees; 0: all of it. Traced, it is 0 or `config.sliding_window`.
      config: implementation, soft cap and scale.
      max_segments: 1 where each row holds one segment that begins at column 0; else no row holds more than that;
        0 where it is not known. Rows that `cudnn` cannot compute are computed by `plain`.
      sinks: a score of each head, see `ModelConfig.attention_sinks`.

    Raises:
      ValueError: the implementation that the config names cannot run on this backend.
    """
    if length_shards(config.mesh) > 1:
        # Else the partitioner would split the projections by heads too, and gather what they read.
        q, k, v = (constrained(x, BY_LENGTH, config.mesh) for x in (q, k, v))
        k, v = (_for_each_device(x, q.shape[2], config.mesh) for x in (k, v))
    specs, device = _specs(q, k, segments, config), _device(config)
    implementation = choose_attention(config, device).implementation
    if implementation == "cudnn":
        # A device's share of the queries: its offsets are what must fit.
        shape = q.shape if specs is None else NamedSharding(config.mesh, specs[0]).shard_shape(q.shape)
        if cudnn_attention.refusal_of_rows(device, max_segments, shape=shape):
            implementation = "plain"
    if implementation in ("plain", "blockwise") and length_shards(config.mesh) > 1:
        q, k, v = (constrained(x, BY_HEADS, config.mesh) for x in (q, k, v))
    if implementation == "plain":
        return attend_plain(q, k, v, positions, segments, window, config, sinks)
    if implementation == "blockwise":
        q = rearrange(scaled(q, config), "b t (k g) h -> b k t g h", k=k.shape[2])
        k, v = (rearrange(x, "b t k h -> b k t h") for x in (k, v))
        out = blockwise_attention(
            q,
            k,
            v,
            positions,
            segments,
            window,
            softcap=config.attention_softcap,
            dtype=operand_dtype(config),
        )
        return rearrange(out, "b k t g h -> b t (k g h)")
    if implementation == "cudnn":
        scale = config.query_scale or config.head_dim**-0.5
        call = functools.partial(cudnn_attention.cudnn_attention, scale=scale, max_segments=max_segments)
    else:
        q = scaled(q, config)
        call = functools.partial(splash_attention.splash_attention, softcap=config.attention_softcap)
    # What waits for the backward pass, a kernel names itself, or nothing of it does.
    out = _by_kernel(call, q, k, v, segments, window, config)
    return rearrange(out, "b t n h -> b t (n h)")


def _specs(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], segments: Int[Array, "B T"], config: ModelConfig
) -> tuple[PartitionSpec, PartitionSpec] | None:
    """How queries (as keys and values) and segments are split over the mesh; None on one device."""
    mesh = config.mesh
    if mesh is None or mesh.size == 1:
        return None
    # Query and key heads are split together or not at all: else a group would be torn from its key.
    of_queries, of_keys = (partition_spec(BY_HEADS, x.shape, mesh) for x in (q, k))
    if of_queries != of_keys:
        of_queries = partition_spec(("batch", None, None, None), q.shape, mesh)
    return of_queries, partition_spec(("batch", None), segments.shape, mesh)


def _for_each_device(x: Float[Array, "B T K H"], heads: int, mesh: Any) -> Float[Array, "B T R H"]:
    """Keys or values, repeated where `context` splits the query heads further than the key heads divide."""
    wanted = math.lcm(x.shape[2], length_shards(mesh) * mesh.shape["tensor"])
    return x if heads % wanted else jnp.repeat(x, wanted // x.shape[2], axis=2)


def _by_kernel(
    call: Callable[..., jax.Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    window: jax.Array | int,
    config: ModelConfig,
) -> jax.Array:
    """A kernel on each device's rows and heads; its window is static, so a traced one chooses between two kernels."""
    specs = _specs(q, k, segments, config)

    def run(static: int) -> jax.Array:
        kernel = functools.partial(call, window=static)
        if specs is None:
            return kernel(q, k, v, segments)
        heads, of_segments = specs
        return jax.shard_map(
            kernel,
            mesh=config.mesh,
            in_specs=(heads, heads, heads, of_segments),
            out_specs=heads,
            check_vma=False,
        )(q, k, v, segments)

    if isinstance(window, int):
        return run(window)
    return jax.lax.cond(window > 0, lambda: run(config.sliding_window), lambda: run(0))


def attend_plain(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: jax.Array | int,
    config: ModelConfig,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T NH"]:
    """Causal attention in blocks of queries, each against the columns up to its own end; arguments as of `attend`."""
    length, dtype = q.shape[1], operand_dtype(config)
    # Once: the transposes stay off the score path.
    q = rearrange(scaled(q, config), "b t (k g) h -> b k g t h", k=k.shape[2])
    k, v = (rearrange(x, "b t k h -> b k t h") for x in (k, v))
    own = sinks_of(sinks, k.shape[1], 2)
    parts = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        seen = visible(
            positions[:, start:end], positions[:, :end], segments[:, start:end], segments[:, :end], window
        )
        scores = product("bkgtd,bksd->bkgts", q[:, :, :, start:end], k[:, :, :end], dtype=dtype)
        scores = softcap(scores, config.attention_softcap) + jnp.where(seen, 0.0, NEGATIVE)[:, None, None]
        parts.append(_weighted(scores, v[:, :, :end], "bkgts,bksd->bkgtd", dtype, sinks=own))
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=3)
    return checkpoint_name(rearrange(out, "b k g t h -> b t (k g h)"), CONTEXT)


def attend_cached(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B K H S"] | Int8,
    values: Float[Array, "B K S H"] | Int8,
    seen: Seen,
    config: ModelConfig,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B NH"]:
    """One query a row against the columns of its cache that it sees; by a kernel where one is faster."""
    q = rearrange(scaled(q, config), "b (k g) h -> b k g h", k=keys.shape[1])
    dtype = cached_dtype(config)
    if (
        sinks is None
        and isinstance(keys, jax.Array)
        and isinstance(values, jax.Array)
        and not decode_attention.refusal(config, _device(config), values.shape, values.dtype)
    ):
        q = q.astype(values.dtype)
        out = decode_attention.decode_attention(q, keys, values, seen.first, seen.last)
        return rearrange(out, "b k g h -> b (k g h)")
    # A token has one scale a head, so integers go into the products and scales to the scores and weights.
    key_scales = keys.scales if isinstance(keys, Int8) else None
    value_scales = values.scales.swapaxes(2, 3) if isinstance(values, Int8) else None
    k, v = (x.values.astype(q.dtype) if isinstance(x, Int8) else x for x in (keys, values))
    scores = product("bkgd,bkds->bkgs", q, k, dtype=dtype)
    scores = scores if key_scales is None else scores * key_scales
    scores = softcap(scores, config.attention_softcap) + seen.bias[:, None, None, :]
    out = _weighted(scores, v, "bkgs,bksd->bkgd", dtype, value_scales, sinks_of(sinks, keys.shape[1], 1))
    return rearrange(out.astype(q.dtype), "b k g h -> b (k g h)")
