"""Attention of one query a row over its cache by a kernel of our own: for NVIDIA GPUs.

XLA's form writes the scores of a step to memory, reads them for the softmax, reads its weights again, and goes over all
columns. The kernel reads the columns that are seen, once, and writes the result alone. One program serves a row's query
heads of one key head, so small batches would leave the device idle: they are left to XLA.

It is written in Pallas for Triton, which JAX 0.11.2 has and calls deprecated; without it XLA's form is taken.
"""

import functools
import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxalign.kernels.config import KernelConfig
from jaxalign.masking import NEGATIVE
from jaxalign.target import is_nvidia

# Columns read at a time: the best of 64 and 128 on an H200, with 2 or 4 warps, on 64 and 256 rows, heads of 64 and 128.
BLOCK, WARPS, STAGES = 64, 2, 3
# Products of fewer rows than this are not for tensor cores: query heads of a key head are filled up to it.
LEAST_HEADS = 16
# Rows times key heads from which on it was measured to be faster than XLA's form.
LEAST_PROGRAMS = 512


def refusal(config: KernelConfig, device: jax.Device, shape: tuple[int, ...], dtype: DTypeLike) -> str:
    """Why values [B, K, S, H] of a dtype are not read by the kernel on a device; empty where they are."""
    rows, kv_heads, columns, size = shape
    if not is_nvidia(device):
        return f"the kernel needs an NVIDIA GPU, this is a {device.platform}"
    if config.attention not in ("auto", "cudnn"):
        return f"attention is {config.attention}"
    if config.mesh is not None and config.mesh.size > 1:
        return "a mesh of several devices"
    if config.attention_softcap:
        return f"attention_softcap is {config.attention_softcap}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"the kernel reads bfloat16 and float16, not {dtype}"
    if size & (size - 1) or not 16 <= size <= 256:
        return f"head_dim {size} is no power of two from 16 to 256"
    if columns % BLOCK:
        return f"{columns} columns are no multiple of {BLOCK}"
    if rows * kv_heads < LEAST_PROGRAMS:
        return f"{rows} rows of {kv_heads} key heads are too few"
    return "" if _triton() is not None else f"JAX {jax.__version__} has no Pallas for Triton"


def decode_attention(
    q: Float[Array, "B K G H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    first: Int[Array, " B"],
    last: Int[Array, ""],
    *,
    interpret: bool = False,
) -> Float[Array, "B K G H"]:
    """softmax(q k^T) v over the columns from `first` to `last`, both included; float32 inside.

    Args:
      q: scaled queries, bfloat16 or float16.
      keys, values: cached, in the dtype of q; S a multiple of `BLOCK`.
      first: the first column that each row sees.
      last: the last one, not before any `first`.
      interpret: runs the kernel anywhere, for tests.

    Returns:
      In the dtype of q.
    """
    from jax.experimental import pallas as pl

    rows, heads, group, size = q.shape
    filled = max(LEAST_HEADS, 1 << (group - 1).bit_length())
    triton = _triton()

    def own(*shape: int) -> Any:
        return pl.BlockSpec((None, None, *shape), lambda row, head: (row, head, 0, 0))

    return pl.pallas_call(
        functools.partial(_kernel, pl, triton, group),
        grid=(rows, heads),
        in_specs=[
            own(filled, size),
            own(*keys.shape[2:]),
            own(*values.shape[2:]),
            pl.BlockSpec((1,), lambda row, head: (row,)),
            pl.BlockSpec((1,), lambda row, head: (0,)),
        ],
        out_specs=own(filled, size),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="decode_attention",
    )(q, keys, values, first.astype(jnp.int32), last.astype(jnp.int32).reshape(1))


def _kernel(
    pl: ModuleType, triton: ModuleType, group: int, q_ref, keys_ref, values_ref, first_ref, last_ref, out_ref
) -> None:
    """The query heads [G, H] of a key head, filled up with nothing: an online softmax over blocks of columns."""
    first, end = first_ref[0], last_ref[0] + 1
    there = (jnp.arange(q_ref.shape[0]) < group)[:, None]
    q = triton.load(q_ref, mask=there, other=0)

    def block(number: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]):
        top, total, out = carry
        columns = pl.ds(number * BLOCK, BLOCK)
        scores = jnp.dot(q, keys_ref[:, columns], preferred_element_type=jnp.float32)
        at = number * BLOCK + jnp.arange(BLOCK)
        scores = jnp.where(((at >= first) & (at < end))[None, :], scores, NEGATIVE)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        decay = jnp.exp(top - new_top)
        weights = jnp.exp(scores - new_top[:, None])
        values = values_ref[columns, :]
        part = jnp.dot(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return new_top, total * decay + weights.sum(axis=-1), out * decay[:, None] + part

    zero = jnp.zeros(q.shape[0], jnp.float32)
    start = (zero + NEGATIVE, zero, jnp.zeros(q.shape, jnp.float32))
    _, total, out = jax.lax.fori_loop(first // BLOCK, pl.cdiv(end, BLOCK), block, start)
    triton.store(out_ref, (out / total[:, None]).astype(out_ref.dtype), mask=there)


@functools.cache
def _triton() -> Any:
    """Pallas for Triton, an experimental part of JAX; None where it is not there."""
    try:
        module = importlib.import_module("jax.experimental.pallas.triton")
    except ImportError:
        return None
    wanted = ("CompilerParams", "load", "store")
    return module if all(hasattr(module, name) for name in wanted) else None
