"""Implementations of matrix products: what operands and results are, of which each processor runs another fast.

    compute_dtype     operands and results in the compute dtype, accumulated in float32: GPUs, TPUs, float32 anywhere
    bfloat16_float32  bfloat16 operands, float32 results: a CPU with bfloat16 instructions (AMX, AVX-512 BF16)
    float32           everything in float32, activations too: any other CPU, where bfloat16 products are slower, and
                      rounding what lies between float32 ones would make sampler and trainer differ

With the first two, activations are in the compute dtype. Sums are float32 in all of them, and so are scores, logits and
the gradients of weights, which come in the layout of the weight itself. In float32 compute all are one.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxalign.arrays import product_precision
from jaxalign.kernels.config import Choice, KernelConfig, MatmulImplementation
from jaxalign.target import platform

# With either, a CPU multiplies bfloat16 faster than float32 (`docs/performance_appendix.md`). The first that a CPU has
# is named as the reason.
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")


def choose_matmul(config: KernelConfig, platform: str, flags: frozenset[str] | None = None) -> Choice:
    """What is fast on a platform, by what the processor can do (never by timing: a run must be repeatable).

    Args:
      config: compute dtype, and `products` where one is asked for.
      platform: of the devices: cpu, gpu or tpu.
      flags: of the CPU; None reads them here.
    """
    if config.products != "auto":
        return Choice(config.products, "configured")
    if platform != "cpu":
        return Choice("compute_dtype", f"the {platform} multiplies {config.compute_dtype} itself")
    if config.compute_dtype == "float32":
        return Choice("compute_dtype", "float32 compute")
    if config.compute_dtype == "float16":
        return Choice("float32", "CPUs do not multiply float16")
    flags = cpu_flags() if flags is None else flags
    for flag in BFLOAT16_FLAGS:
        if flag in flags:
            return Choice("bfloat16_float32", f"a CPU with {flag}")
    return Choice("float32", f"a CPU without {' and '.join(BFLOAT16_FLAGS)}")


@functools.cache
def cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """What the CPU can do, by Linux's names; empty where there is no such file (other systems)."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def matmul_implementation(config: KernelConfig) -> MatmulImplementation:
    """How a model computes products: as it was told, else what is fast on its devices."""
    return choose_matmul(config, platform(config.mesh)).implementation


def operand_dtype(config: KernelConfig) -> Any:
    """Of activations, and what operands of scores and logits are cast to: float32, or the compute dtype."""
    return jnp.dtype("float32" if matmul_implementation(config) == "float32" else config.compute_dtype)


def cached_dtype(config: KernelConfig) -> Any:
    """What keys and values are cached in, and attention reads them in.

    float32 in both implementations of CPUs: products of one query with its own row's cache were slower in bfloat16
    there, with instructions for it (AVX-512 BF16) and without (`docs/performance_appendix.md`).
    """
    return jnp.dtype(config.compute_dtype if matmul_implementation(config) == "compute_dtype" else "float32")


def product(pattern: str, *operands: jax.Array, dtype: DTypeLike) -> jax.Array:
    """An einsum of operands cast to `dtype`, in float32."""
    operands = tuple(x.astype(dtype) for x in operands)
    return jnp.einsum(
        pattern, *operands, precision=product_precision(dtype), preferred_element_type=jnp.float32
    )


def dense(
    x: Float[Array, "*B K"], w: Float[Array, "K M"], implementation: MatmulImplementation
) -> Float[Array, "*B M"]:
    """x @ w, accumulated in float32, in the dtype of x.

    The weight gradient is one product x^T dy in the parameter's own layout: what autodiff
    writes goes through a transposed copy of dy on XLA's CPU backend (7 times slower for
    an MLP there) and plain bf16 products leave its fast path.
    """
    return _dense(implementation, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(implementation: MatmulImplementation, x: Float[Array, "*B K"], w: Float[Array, "K M"]):
    return multiply(x, w, x, (x.ndim - 1, 0), implementation)


def multiply(
    a: jax.Array,
    b: jax.Array,
    like: jax.Array,
    axes: tuple[int, int],
    implementation: MatmulImplementation,
) -> jax.Array:
    """One product, over an axis of `a` and one of `b`, in the implementation given and the dtype of `like`."""
    dtype = jnp.float32 if implementation == "float32" else like.dtype
    result = like.dtype if implementation == "compute_dtype" else jnp.float32
    out = jax.lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((axes[0],), (axes[1],)), ((), ())),
        precision=product_precision(dtype),
        preferred_element_type=result,
    )
    return out.astype(like.dtype)


def _dense_forward(implementation: MatmulImplementation, x: Float[Array, "*B K"], w: Float[Array, "K M"]):
    return _dense(implementation, x, w), (x, w)


def _dense_backward(
    implementation: MatmulImplementation, saved: tuple[jax.Array, jax.Array], dy: Float[Array, "*B M"]
):
    x, w = saved
    dy = dy.astype(x.dtype)
    last = dy.ndim - 1
    dx = multiply(dy, w, x, (last, 1), implementation)
    rows = tuple(range(last))
    operand = jnp.float32 if implementation == "float32" else x.dtype

    def over_rows(a: jax.Array, b: jax.Array):
        dimensions = ((rows, rows), ((), ()))
        return jax.lax.dot_general(
            a.astype(operand),
            b.astype(operand),
            dimensions,
            precision=product_precision(operand),
            preferred_element_type=jnp.float32,
        )

    if platform() == "cpu" and operand == jnp.float32 and x.shape[-1] > dy.shape[-1]:
        # XLA's CPU compiler transposes the left side of a product over rows: let it be the narrower one. The barrier
        # keeps it from writing the other product itself.
        dw = jax.lax.optimization_barrier(over_rows(dy, x)).T
    else:
        dw = over_rows(x, dy)
    return dx, dw.astype(w.dtype)


_dense.defvjp(_dense_forward, _dense_backward)
