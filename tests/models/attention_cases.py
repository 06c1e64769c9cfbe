"""Inputs, layouts and a derivation in float64 that the tests of all forms of attention share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models import ModelConfig

HEADS, KV_HEADS, SIZE = 4, 2, 8


def inputs(length, *, rows=2, dtype=jnp.float32, seed=0, size=SIZE):
    """Queries, keys, values, and a cotangent of the output."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [(rows, length, n, size) for n in (HEADS, KV_HEADS, KV_HEADS)] + [(rows, length, HEADS * size)]
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def layout(kind, length, rows=2):
    """Positions and segments [B, T], of each row others (but of full rows)."""
    columns, row = np.broadcast_to(np.arange(length), (rows, length)), np.arange(rows)[:, None]
    if kind == "full":
        return columns, np.ones_like(columns)
    lengths = np.linspace(length, length // 3, rows).astype(int)[:, None]
    if kind == "padded":
        return columns, (columns < lengths).astype(np.int32)
    if kind == "left":  # padding on the left, as prompts are read
        positions = columns - (length - lengths)
        return np.maximum(positions, 0), (positions >= 0).astype(np.int32)
    assert kind == "packed"
    segments = np.minimum(columns // (7 + row) + 1, 5) * (columns < length - 3 - row)
    starts = np.where(columns == 0, True, segments != np.roll(segments, 1, axis=1))
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1), segments


def in_float64(q, k, v, positions, segments, window, softcap):
    """softmax over the visible keys, written out; rows without any are left at 0."""
    rows, length, heads, size = q.shape
    out = np.zeros((rows, length, heads, size))
    for b in range(rows):
        for t in range(length):
            seen = (segments[b] == segments[b, t]) & (positions[b] <= positions[b, t])
            seen &= (positions[b, t] - positions[b] < window) | (window == 0)
            if not segments[b, t]:
                continue
            for n in range(heads):
                kv = n // (heads // KV_HEADS)
                scores = k[b, seen, kv] @ q[b, t, n] / np.sqrt(size)
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, seen, kv]
    return out.reshape(rows, length, heads * size)


def config(softcap=0.0, **changes):
    """A model's shape as far as attention reads it."""
    shape = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": SIZE, "max_positions": 1024}
    rest = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1}
    return ModelConfig(**(shape | rest | {"attention_softcap": softcap} | changes))
