"""Causal attention by cuDNN's fused kernels, forward and backward: for NVIDIA GPUs.

No mask is ever made. Right-padded rows are told by their lengths. Packed rows are told by where each segment begins and
how long it is, which JAX passes on by a function of its own that is no public interface: where a version of JAX has no
such function, `refusal_of_rows` says so. Under `jax.vmap` JAX maps neither lengths that all share nor any offsets.
"""

import importlib
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.kernels.config import KernelConfig
from jaxalign.target import is_nvidia

# The kernels count elements in 32 bits where they are told offsets.
MOST_ELEMENTS = 1 << 31


def refusal(config: KernelConfig, device: jax.Device) -> str:
    """Why a device cannot run a model's attention so; empty where it can."""
    if not is_nvidia(device):
        version = " ".join(device.client.platform_version.split())  # it may have several lines
        return f"cuDNN needs an NVIDIA GPU, this is a {device.platform} ({version})"
    if config.compute_dtype not in ("bfloat16", "float16"):
        return f"cuDNN computes in bfloat16 or float16, compute_dtype is {config.compute_dtype}"
    if config.attention_softcap:
        return f"cuDNN has no soft cap on scores, attention_softcap is {config.attention_softcap}"
    if _capability(device) < (8, 0):
        return f"cuDNN's attention needs compute capability 8.0, this is {device.compute_capability}"
    largest = 256 if _capability(device) >= (9, 0) else 128
    if config.head_dim % 8 or config.head_dim > largest:
        return f"cuDNN takes head sizes up to {largest} in steps of 8, head_dim is {config.head_dim}"
    return ""


def refusal_of_rows(
    device: jax.Device, max_segments: int, *, mapped: bool = False, shape: tuple[int, ...] | None = None
) -> str:
    """Why a device cannot compute such rows so; empty where it can. Arguments as of `attention.choose_attention`."""
    if mapped:
        return "cuDNN's kernels cannot be mapped over several models"
    if max_segments == 1:
        return ""
    if not max_segments:
        return "packed rows need the most segments that one holds (max_segments)"
    if _capability(device) < (9, 0):
        return f"packed rows need compute capability 9.0, this is {device.compute_capability}"
    if _packed_function() is None:
        return f"JAX {jax.__version__} has no attention by offsets"
    if shape is not None and math.prod(shape) >= MOST_ELEMENTS:
        return f"{shape[0]} packed rows of {shape[1]} tokens on a device are too many elements for offsets of 32 bits"
    return ""


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    *,
    window: int,
    scale: float,
    max_segments: int,
) -> Float[Array, "B T N H"]:
    """softmax(scale q k^T + mask) v: a kernel as `attention` says, for bfloat16 and float16.

    Args:
      q, k, v, segments, window: as `attention` says.
      scale: factor on the scores.
      max_segments: 1 where each row holds one segment from column 0 on; else no row holds more. The statistics
        that the backward pass keeps are float32 [B * max_segments, N, T].

    Returns:
      In the dtype of q; 0 in padding.
    """
    there = (segments > 0)[..., None, None]
    # What the kernels leave in padding, and in its gradients, is undefined: it must reach nothing.
    q, k, v = (jnp.where(there, x, 0) for x in (q, k, v))
    if max_segments == 1:
        # A length of 0 would be a row without any key.
        lengths = jnp.maximum(jnp.sum(segments > 0, axis=1, dtype=jnp.int32), 1)
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=True,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            local_window_size=(window - 1, 0) if window else None,
            implementation="cudnn",
        )
    else:
        attention, causal = _packed_function()  # type: ignore[misc]
        starts, lengths = spans(segments, max_segments)
        if jax.__version_info__ < (0, 11, 2):
            # There the offsets of keys are counted with as many heads as queries have.
            k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        out = attention(
            q,
            k,
            v,
            q_seqlen=lengths,
            kv_seqlen=lengths,
            q_offsets=starts,
            kv_offsets=starts,
            scale=scale,
            mask_type=causal,
            sliding_window_length=window or None,
        )
    return jnp.where(there, out, 0)


def spans(segments: Int[Array, "B T"], most: int) -> tuple[Int[Array, "B M1"], Int[Array, "B M"]]:
    """Where the segments of each row begin, and their lengths; -1 fills (the last column of starts always)."""
    edge = jnp.zeros_like(segments[:, :1])
    first = (segments > 0) & (segments != jnp.concatenate([edge, segments[:, :-1]], axis=1))
    last = (segments > 0) & (segments != jnp.concatenate([segments[:, 1:], edge], axis=1))

    def columns(flags: Bool[Array, " T"]):
        return jnp.nonzero(flags, size=most, fill_value=-1)[0].astype(jnp.int32)

    starts, ends = jax.vmap(columns)(first), jax.vmap(columns)(last)
    lengths = jnp.where(starts < 0, -1, ends - starts + 1)
    return jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1), lengths


def _packed_function() -> tuple[Any, Any] | None:
    """JAX's attention that takes offsets, and its name for a causal mask with padding; None where it has neither."""
    try:
        module = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
        function, causal = module.dot_product_attention, module.MaskType.PADDING_CAUSAL
    except (ImportError, AttributeError):
        return None
    wanted = {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "sliding_window_length"}
    return (function, causal) if wanted <= inspect.signature(function).parameters.keys() else None


def _capability(device: jax.Device) -> tuple[int, ...]:
    """(9, 0) of a device whose compute capability is 9.0."""
    return tuple(int(part) for part in str(device.compute_capability).split("."))
