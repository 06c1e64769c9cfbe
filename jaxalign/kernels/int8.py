"""Numbers kept as 8-bit integers with scales: a quarter of the memory of float32, for weights that do not learn.

An `Int8` stands in a parameter tree where the array was, so `merge`, `hidden`, `prefill`
and decoding read a tree of `quantize_params` as they read any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxalign.arrays import product_precision
from jaxalign.kernels.ordering import after
from jaxalign.target import platform


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
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
    operand, values = _beside(x.astype(dtype), w.values)
    out = _product("...k,km->...m", operand, values)
    return (out * w.scales[0]).astype(x.dtype)


def scaled_logits(hidden: Float[Array, "*B D"], w: Int8, *, dtype: DTypeLike) -> Float[Array, "*B V"]:
    """hidden @ w.T in float32, for w [V, D] with a scale a row; `dtype` as for `scaled_product`."""
    hidden, values = _beside(hidden.astype(dtype), w.values)
    return _product("...d,vd->...v", hidden, values) * w.scales[:, 0]


def _product(pattern: str, a: jax.Array, b: jax.Array) -> jax.Array:
    precision = product_precision(a.dtype)
    return jnp.einsum(pattern, a, b, precision=precision, preferred_element_type=jnp.float32)


def _beside(x: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x, and the integers in its dtype, which are there only while they are needed.

    Left alone, a compiler converts weights before a decode loop, and the floats of all layers stay.
    """
    if platform() == "cpu":
        return x, after(x, values).astype(x.dtype)
    x, values = jax.lax.optimization_barrier((x, values))
    return x, values.astype(x.dtype)


def int8_axis(names: Sequence[str]) -> int | None:
    """The axis whose numbers share a scale: -2 of a projection (a scale an output), -1 of embedding and head (a token).

    Args:
      names: the keys on the path of a leaf; None for norms, biases, learned positions and all under "experts".
    """
    if "experts" in names:
        return None
    if "layers" in names and names[-1].endswith("_proj"):
        return -2
    return -1 if tuple(names[-2:]) in (("embed", "tokens"), ("head", "weight")) else None


def keys_of(path: Sequence[Any]) -> list[str]:
    """The keys of dicts on the path of a leaf."""
    return [str(part.key) for part in path if hasattr(part, "key")]


def quantize_params(params: dict[str, Any]) -> dict[str, Any]:
    """The tree with `Int8` for each projection (a scale an output), the embedding and the head (a scale a token).

    Norms, biases, learned positions and the head of a scalar model stay; so does what is an `Int8` already, and what
    lies under "experts": models that guide the one to be decoded.
    """

    def changed(path: Sequence[Any], leaf: Any) -> Any:
        axis = None if isinstance(leaf, Int8) else int8_axis(keys_of(path))
        return leaf if axis is None else quantized(leaf, axis=axis)

    return jax.tree_util.tree_map_with_path(changed, params, is_leaf=lambda x: isinstance(x, Int8))
