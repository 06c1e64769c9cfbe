"""Causal attention by JAX's splash kernel (Pallas): for TPUs. On a CPU the kernel is interpreted, for tests.

The kernel works on multiples of 128 columns: rows are filled up with padding, heads with zeros, which change no score.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.kernels.config import KernelConfig
from jaxalign.kernels.remat import CONTEXT
from jaxalign.target import platform

# Rows and head sizes are filled up to multiples of it.
LANES = 128
# Rows of a tile, the largest first that divides the row.
BLOCKS = (512, 256, 128)


def refusal(config: KernelConfig, device: jax.Device) -> str:
    """Why a device cannot run a model's attention so; empty where it can."""
    del config
    if device.platform != "tpu":
        return f"splash attention needs a TPU, this is a {device.platform}"
    return ""


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    *,
    window: int,
    softcap: float = 0.0,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T + mask) v: a kernel as `attention` says, queries scaled before, of any float dtype.

    Args:
      q, k, v, segments, window: as `attention` says.
      softcap: c in c * tanh(score / c); 0 for none.

    Returns:
      In the dtype of q. A query in padding gets a mean of values of padding.
    """
    _, length, heads, size = q.shape
    more, wider = -length % LANES, -size % LANES
    q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, wider))).transpose(0, 2, 1, 3) for x in (q, k, v))
    segments = jnp.pad(segments, ((0, 0), (0, more)))
    kernel = _kernel(length + more, heads, window, softcap)

    def row(
        q: Float[Array, "N T H"], k: Float[Array, "K T H"], v: Float[Array, "K T H"], ids: Int[Array, " T"]
    ):
        from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

        return kernel(q, k, v, segment_ids=SegmentIds(q=ids, kv=ids))

    out = jax.vmap(row)(q, k, v, segments)
    return out.transpose(0, 2, 1, 3)[:, :length, :, :size].astype(q.dtype)


def _kernel(length: int, heads: int, window: int, softcap: float) -> Any:
    """The kernel of one row; keys of a group of heads are shared."""
    # Imported where it is used: Pallas takes half a second to load, on machines that never need it too.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    mask = splash.LocalMask(shape, (window - 1, 0), offset=0) if window else splash.CausalMask(shape)
    block = next(b for b in BLOCKS if length % b == 0)
    fields = (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
        "block_q_dq", "block_kv_dq",
    )  # fmt: skip
    make = functools.partial(
        splash.make_splash_mha,
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(fields, block)),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        # Its output, and with it the logarithms of sums that its backward pass reads.
        residual_checkpoint_name=CONTEXT,
        interpret=platform() == "cpu",
    )
    # What it computes of the mask must be numbers, also while a program is traced.
    with jax.ensure_compile_time_eval():
        return make()
