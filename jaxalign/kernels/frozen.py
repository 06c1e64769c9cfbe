"""Weights that do not learn and are kept in another form than floats, and products with them."""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxalign.kernels.config import MatmulImplementation
from jaxalign.kernels.matmul import multiply
from jaxalign.kernels.ordering import after
from jaxalign.target import platform


class Frozen(ABC):
    """What stands in a parameter tree where an array was."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the array."""

    @property
    @abstractmethod
    def dtype(self) -> Any:
        """What the numbers become where nothing else is asked for."""

    @abstractmethod
    def astype(self, dtype: DTypeLike) -> jax.Array:
        """The numbers as a plain array."""

    def product(self, x: Float[Array, "*B K"], implementation: MatmulImplementation) -> Float[Array, "*B M"]:
        """x @ self [K, M] in the dtype of x."""
        return multiply(x, beside(x, self).astype(x.dtype), x, (x.ndim - 1, 0), implementation)


def frozen_dense(
    x: Float[Array, "*B K"], w: Frozen, implementation: MatmulImplementation
) -> Float[Array, "*B M"]:
    """x @ w for w [K, M], in the dtype of x; the gradient is that of x alone.

    What is kept for the backward pass is w as it is: its floats are made again, for one product at a time.
    """
    return _frozen_dense(implementation, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen_dense(implementation: MatmulImplementation, x: jax.Array, w: Frozen) -> Any:
    return w.product(x, implementation)


def _forward(implementation: MatmulImplementation, x: jax.Array, w: Frozen):
    return w.product(x, implementation), w


def _backward(implementation: MatmulImplementation, w: Frozen, dy: jax.Array):
    return multiply(dy, beside(dy, w).astype(dy.dtype), dy, (dy.ndim - 1, 1), implementation), None


_frozen_dense.defvjp(_forward, _backward)


def beside(x: jax.Array, weight: Any) -> Any:
    """The weight (any tree), which is not to be converted before x is there.

    Left alone, a compiler converts weights before a loop that reads them, and the floats of all layers stay.
    """
    if platform() == "cpu":
        return after(x, weight)
    return jax.lax.optimization_barrier((x, weight))[1]
