"""Grouped-query attention over whole rows, and over a cache."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxalign.models.blockwise_attention import NEGATIVE, blockwise_attention
from jaxalign.models.config import ModelConfig
from jaxalign.models.layers import softcap
from jaxalign.models.remat import CONTEXT

BLOCK = 512
Form = Literal["blockwise", "plain"]


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


def scaled(q: jax.Array, config: ModelConfig) -> jax.Array:
    """Queries times the score scale."""
    return q * jnp.asarray(config.query_scale or config.head_dim**-0.5, q.dtype)


def _weighted(scores, values, pattern: str):
    """softmax(scores) @ values with the division after the product: one pass less over the scores."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(pattern, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (out / total).astype(values.dtype)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: jax.Array | int,
    config: ModelConfig,
) -> Float[Array, "B T NH"]:
    """Causal attention, in the form that is fast on this backend.

    A query that sees nothing (padding) gets a mean of values: finite, and never read. Columns must
    be in order of position within a segment.
    """
    if attention_form() == "plain":
        return attend_plain(q, k, v, positions, segments, window, config)
    rows, length, heads, size = q.shape
    kv_heads = k.shape[2]
    q = scaled(q, config).reshape(rows, length, kv_heads, heads // kv_heads, size).transpose(0, 2, 1, 3, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = blockwise_attention(q, k, v, positions, segments, window, softcap=config.attention_softcap)
    return out.transpose(0, 2, 1, 3, 4).reshape(rows, length, heads * size)


def attention_form() -> Form:
    """What `attend` runs here: `blockwise` on a CPU; `plain` where the compiler fuses better than we do."""
    return "blockwise" if jax.default_backend() == "cpu" else "plain"


def attend_plain(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: jax.Array | int,
    config: ModelConfig,
) -> Float[Array, "B T NH"]:
    """Causal attention in blocks of queries, each against the columns up to its own end; arguments as of `attend`."""
    rows, length, heads, size = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    # (B, K, G, T, H) once: the transposes stay off the score path.
    q = scaled(q, config).reshape(rows, length, kv_heads, group, size).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    parts = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        seen = visible(
            positions[:, start:end], positions[:, :end], segments[:, start:end], segments[:, :end], window
        )
        scores = jnp.einsum(
            "bkgtd,bksd->bkgts", q[:, :, :, start:end], k[:, :, :end], preferred_element_type=jnp.float32
        )
        scores = softcap(scores, config.attention_softcap) + jnp.where(seen, 0.0, NEGATIVE)[:, None, None]
        parts.append(_weighted(scores, v[:, :, :end], "bkgts,bksd->bkgtd"))
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=3)
    return checkpoint_name(out.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads * size), CONTEXT)


def attend_cached(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    bias: Float[Array, "B S"],
    config: ModelConfig,
) -> Float[Array, "B NH"]:
    """One query a row against its cache; `bias` is 0 at visible columns."""
    rows, heads, size = q.shape
    kv_heads = keys.shape[1]
    q = scaled(q, config).reshape(rows, kv_heads, heads // kv_heads, size)
    scores = jnp.einsum("bkgd,bkds->bkgs", q, keys, preferred_element_type=jnp.float32)
    scores = softcap(scores, config.attention_softcap) + bias[:, None, None, :]
    return _weighted(scores, values, "bkgs,bksd->bkgd").reshape(rows, heads * size)
