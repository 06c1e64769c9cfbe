"""Optimizer moments in 8 bits: blockwise dynamic quantization (arXiv:2110.02861)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

from jaxalign.training.core.update_rules import of_vectors

BLOCK = 256
# Smaller arrays cost nothing and keep their precision, as in the paper.
MIN_SIZE = 4096


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """An array in 8 bits.

    Attributes:
      codes: int8, or uint8 where no number is negative; of the array's shape.
      scales: float32, the largest magnitude of each block of 256 along the last axis.
    """

    codes: Shaped[Array, "*rows m"]
    scales: Float[Array, "*rows blocks"]


def quantize(x: Float[Array, "*rows m"], *, signed: bool) -> Quantized:
    """An array in 8 bits, a block of 256 numbers of a row at a time.

    The numbers, over the largest of their block, are cut into decades, and each decade has twice as many codes as the
    next smaller one (signed: 7 decades of 1 to 64 codes; else 8 of 1 to 128). So numbers near the largest are off by
    less than 1%, and one of a millionth of it is not lost. The paper's code has one more number, 1 itself.
    """
    decades = 7 if signed else 8
    blocks = _blocks(jnp.abs(x.astype(jnp.float32)))
    scales = jnp.max(blocks, axis=-1)
    share = blocks / jnp.where(scales > 0, scales, 1.0)[..., None]
    decade = jnp.clip(jnp.floor(jnp.log10(jnp.maximum(share, 1e-30))) + decades, 0, decades - 1)
    cells = jnp.exp2(decade)
    cell = jnp.floor((share * jnp.power(10.0, decades - 1 - decade) - 0.1) / 0.9 * cells)
    code = cells + jnp.clip(cell, 0, cells - 1)
    # Nearer to 0 than to the smallest number of the code.
    code = jnp.where(share < 0.275 * 10.0 ** (1 - decades), 0, code)
    code = code.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return Quantized((jnp.sign(x) * code).astype(jnp.int8 if signed else jnp.uint8), scales)


def dequantize(x: Quantized) -> Float[Array, "*rows m"]:
    """The array in float32: each number is the middle of its code's interval."""
    decades = 7 if x.codes.dtype == jnp.int8 else 8
    signs = x.codes.astype(jnp.int32)
    code = _blocks(jnp.abs(signs))
    decade = 31 - jax.lax.clz(jnp.maximum(code, 1))
    cells = jnp.left_shift(1, decade)
    share = 0.1 + 0.9 * ((code - cells).astype(jnp.float32) + 0.5) / cells.astype(jnp.float32)
    values = share * jnp.power(10.0, decade.astype(jnp.float32) - (decades - 1)) * x.scales[..., None]
    values = values.reshape(*signs.shape[:-1], -1)[..., : signs.shape[-1]]
    return jnp.sign(signs) * values


def in_8_bits(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation whose state keeps its moments (`mu` and `nu`) of matrices in 8 bits.

    Embeddings, norms, biases, arrays of less than 4,096 numbers, and those with a last axis below 256 stay as they
    are. The arithmetic is that of `inner`, in float32.
    """

    def init(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(_packed, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        full = jax.tree.map(lambda x: dequantize(x) if _is_quantized(x) else x, state, is_leaf=_is_quantized)
        updates, new = inner.update(updates, full, params)

        def repacked(old: Any, leaf: jax.Array) -> Any:
            return quantize(leaf, signed=old.codes.dtype == jnp.int8) if _is_quantized(old) else leaf

        return updates, jax.tree.map(repacked, state, new, is_leaf=_is_quantized)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def numbers_in_8_bits(state: Any) -> int:
    """How many numbers an optimizer's state keeps in 8 bits."""
    leaves = jax.tree.leaves(state, is_leaf=_is_quantized)
    return sum(leaf.codes.size for leaf in leaves if _is_quantized(leaf))


def _packed(path: tuple[Any, ...], leaf: jax.Array) -> Any:
    names = [str(getattr(p, "name", getattr(p, "key", p))) for p in path]
    second = "nu" in names
    if not (second or "mu" in names) or "embed" in names or of_vectors(path):
        return leaf
    if leaf.ndim < 2 or leaf.size < MIN_SIZE or leaf.shape[-1] < BLOCK:
        return leaf
    return quantize(leaf, signed=not second)


def _is_quantized(x: Any) -> bool:
    return isinstance(x, Quantized)


def _blocks(x: jax.Array) -> jax.Array:
    """[..., m] -> [..., blocks, 256], the last block filled up with zeros."""
    missing = -x.shape[-1] % BLOCK
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]).reshape(*x.shape[:-1], -1, BLOCK)
