"""That the form of attention which this device takes computes the plain one, with gradients: by numbers, in seconds.

For machines on which the tests cannot run. Padded and packed rows, heads of 64 and 128, several queries a key.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import shape

from jaxalign.models import ModelConfig, choose_attention
from jaxalign.models.attention import attend

LENGTH, HEADS, KV_HEADS = 200, 8, 2
# Lengths of the segments of two rows, the first number of each being padding before them; and the most segments.
LAYOUTS = {
    "full": (((0, 200), (0, 200)), 1),
    "padded": (((0, 200), (0, 67)), 1),
    "left": (((0, 200), (133, 67)), 2),
    "packed": (((0, 90, 1, 70, 20), (0, 31, 150)), 8),
}
# Largest difference by largest number, and mean by mean: bfloat16 rounds to 1/256, a wrong mask is far above.
LARGEST, MEAN = 0.04, 0.02


def attention_form(config: ModelConfig, queries: tuple[int, ...], most: int) -> str:
    """The form in which queries of this shape [B, T, N, H] attend here, in rows of at most `most` segments."""
    choice = choose_attention(config, jax.devices()[0], max_segments=most, shape=queries)
    return f"plain ({choice.reason})" if choice.implementation == "plain" else choice.implementation


def layout(rows: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segments [2, LENGTH] of one of `LAYOUTS`."""
    positions, segments = np.zeros((2, len(rows), LENGTH), np.int32)
    for row, (column, *lengths) in enumerate(rows):
        for number, length in enumerate(lengths, 1):
            positions[row, column : column + length] = np.arange(length)
            segments[row, column : column + length] = number
            column += length
    return positions, segments


def difference(kind: str, size: int) -> dict[str, Any]:
    """Of output and gradients in bfloat16 from the plain form in float32, for heads of `size`."""
    rows, most = LAYOUTS[kind]
    positions, segments = (jnp.asarray(x) for x in layout(rows))
    there = (segments > 0)[..., None]
    keys = jax.random.split(jax.random.key(size), 4)
    shapes = [(2, LENGTH, heads, size) for heads in (HEADS, KV_HEADS, KV_HEADS)] + [(2, LENGTH, HEADS * size)]
    arrays = [jax.random.normal(key, dims, jnp.bfloat16) for key, dims in zip(keys, shapes, strict=True)]
    own = dataclasses.replace(
        shape("S"), num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=size, compute_dtype="bfloat16"
    )
    plain = dataclasses.replace(own, attention="plain", products="compute_dtype", compute_dtype="float32")

    def computed(config: ModelConfig) -> list[np.ndarray]:
        *inputs, d_out = (x.astype(config.compute_dtype) for x in arrays)

        def loss(q, k, v):
            out = attend(q, k, v, positions, segments, 0, config, max_segments=most)
            out = jnp.where(there, out, 0)
            return jnp.sum((out * d_out).astype(jnp.float32)), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    # A GPU would round float32 products to fewer bits.
    with jax.default_matmul_precision("highest"):
        wanted = computed(plain)
    found = computed(own)
    pairs = list(zip(found, wanted, strict=True))
    # NumPy's maximum of something that is not a number is not one either.
    largest = float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))
    mean = float(np.max([np.abs(a - b).mean() / np.abs(b).mean() for a, b in pairs]))
    return {
        "form": attention_form(own, shapes[0], most),
        "largest": largest,
        "mean": mean,
        "ok": bool(largest < LARGEST and mean < MEAN),
    }


def attention_checks() -> dict[str, Any]:
    """All layouts and sizes of heads; one that raises is a failed one."""
    cases: dict[str, dict[str, Any]] = {}
    for size in (64, 128):
        for kind in LAYOUTS:
            try:
                found = difference(kind, size)
            except Exception as problem:
                found = {
                    "ok": False,
                    "problem": str(problem).splitlines()[0] if str(problem) else repr(problem),
                }
            cases[f"{kind} {size}"] = found
            print(f"attention, {kind} rows, heads of {size}: {found}", flush=True)
    return {
        "ok": all(found["ok"] for found in cases.values()),
        "largest": max((found["largest"] for found in cases.values() if "largest" in found), default=None),
        "attention": ", ".join(sorted({found["form"] for found in cases.values() if "form" in found})),
        "cases": cases,
    }
