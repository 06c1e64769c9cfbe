"""Numbers kept as 8-bit integers with scales: a quarter of the memory of float32, for weights that do not learn.

An `Int8` stands in a parameter tree where the array was, so `merge`, `hidden`, `prefill` and decoding read a tree of
`quantize.quantize_params` as they read any other.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxalign.arrays import product_precision
from jaxalign.kernels.config import MatmulImplementation
from jaxalign.kernels.frozen import Frozen, beside


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8(Frozen):
    """Integers times scales, in the place of an array of floats.

    Attributes:
      values: int8, in [-127, 127].
      scales: float32, of the same shape but 1 along one axis, whose numbers share a scale.
    """

    values: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        return self.values.shape

    @property
    def dtype(self) -> Any:
        """What the numbers become where nothing else is asked for."""
        return self.scales.dtype

    def astype(self, dtype: DTypeLike) -> jax.Array:
        """The numbers as a plain array."""
        return (self.values.astype(jnp.float32) * self.scales).astype(dtype)

    def product(self, x: Float[Array, "*B K"], implementation: MatmulImplementation) -> Float[Array, "*B M"]:
        """x @ self [K, M] in the dtype of x, see `scaled_product`."""
        return scaled_product(x, self, dtype=jnp.float32 if implementation == "float32" else x.dtype)

    def __getitem__(self, index: Any) -> "Int8":
        """Of axes along which no scale is shared."""
        return Int8(self.values[index], self.scales[index])


@partial(jax.jit, static_argnames="axis")
def quantized(x: Float[Array, "..."], *, axis: int) -> Int8:
    """The nearest integers, scaled so that the largest number along `axis` is 127.

    A number is off by at most half its scale. Zeros stay zeros.

    Source: vector-wise absmax quantization, arXiv:2208.07339, section 2.1.
    """
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127
    return Int8(jnp.round(x / jnp.where(scales > 0, scales, 1)).astype(jnp.int8), scales)


def scaled_product(x: Float[Array, "*B K"], w: Int8, *, dtype: DTypeLike) -> Float[Array, "*B M"]:
    """x @ w in the dtype of x, for w [K, M] with a scale a column: it is applied to the sum, which is float32.

    `dtype` is that of the operands (`matmul.operand_dtype`): all integers of w are numbers of bfloat16 too.
    """
    operand = x.astype(dtype)
    out = _product("...k,km->...m", operand, beside(operand, w.values).astype(dtype))
    return (out * w.scales[0]).astype(x.dtype)


def scaled_logits(hidden: Float[Array, "*B D"], w: Int8, *, dtype: DTypeLike) -> Float[Array, "*B V"]:
    """hidden @ w.T in float32, for w [V, D] with a scale a row; `dtype` as for `scaled_product`."""
    hidden = hidden.astype(dtype)
    return _product("...d,vd->...v", hidden, beside(hidden, w.values).astype(dtype)) * w.scales[:, 0]


def _product(pattern: str, a: jax.Array, b: jax.Array) -> jax.Array:
    precision = product_precision(a.dtype)
    return jnp.einsum(pattern, a, b, precision=precision, preferred_element_type=jnp.float32)
