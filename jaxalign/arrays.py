"""Array aliases and the checks that name the argument they fail on.

Axis letters: B rows, T time (tokens), V vocabulary, D hidden, N heads, H head size,
G group, K candidates.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import core as jax_core
from jaxtyping import Array, Float

from jaxalign.target import platform

Scalar = float | int | Float[Array, ""]
"""A hyper-parameter: a Python number or a traced scalar."""

AnyArray = Any
"""In annotations of batches: a `jax.Array` on the device, a `np.ndarray` on the host."""


def product_precision(dtype: Any) -> jax.lax.Precision | None:
    """The precision to ask of products with operands of this dtype, so that float32 means float32.

    GPUs round operands of float32 products to TF32 (10 bits) and TPUs to bfloat16 unless they are asked not to: two
    programs then give log-probs of one model that are 2e-3 nats apart. None, JAX's own choice, for narrower operands,
    on CPUs, and where `jax_default_matmul_precision` says what is wanted.
    """
    asked = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    if asked or jnp.dtype(dtype) != jnp.float32 or platform() == "cpu":
        return None
    return jax.lax.Precision.HIGHEST


def check_shapes(**arrays: Any) -> None:
    """All arrays given have one shape.

    Raises:
      AssertionError: naming the first argument that differs (chex's message leaves names out).
    """
    names = [name for name, value in arrays.items() if value is not None]
    values = [jnp.shape(arrays[name]) for name in names]
    for name, shape in zip(names[1:], values[1:], strict=True):
        if shape != values[0]:
            raise AssertionError(f"{name} has shape {shape}, but {names[0]} has shape {values[0]}")


def check_rank(rank: int | Sequence[int], **arrays: Any) -> None:
    """Each array given has this rank (or one of these).

    Raises:
      AssertionError: naming the argument.
    """
    ranks = (rank,) if isinstance(rank, int) else tuple(rank)
    for name, value in arrays.items():
        try:
            chex.assert_rank(value, set(ranks))
        except AssertionError as error:
            raise AssertionError(f"{name}: expected rank {rank}, got shape {jnp.shape(value)}") from error


def check_leading(axes: int, **arrays: Any) -> None:
    """All arrays given agree in their first `axes` axes.

    Raises:
      AssertionError: naming the first argument that differs, with both shapes.
    """
    shapes = {name: jnp.shape(value) for name, value in arrays.items() if value is not None}
    first, *others = shapes
    for name in others:
        if len(shapes[name]) < axes or shapes[name][:axes] != shapes[first][:axes]:
            raise AssertionError(
                f"{name} has shape {shapes[name]}, expected its first axes to be {shapes[first][:axes]}: "
                f"{first} has shape {shapes[first]}"
            )


def check_floating(**arrays: Any) -> None:
    """Each array given holds floats.

    Raises:
      AssertionError: naming the argument.
    """
    for name, value in arrays.items():
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise AssertionError(f"{name}: expected a float dtype, got {jnp.result_type(value)}")


def check_range(
    name: str,
    value: Any,
    low: float = -float("inf"),
    high: float = float("inf"),
    *,
    open_low=False,
    open_high=False,
) -> None:
    """A concrete hyper-parameter lies in its range; a traced one is not looked at.

    Raises:
      ValueError: naming the parameter, its value and the range.
    """
    if value is None or isinstance(value, jax_core.Tracer):
        return
    number = float(value) if jnp.ndim(value) == 0 else None
    if number is None:
        return
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if below or above or number != number:
        left, right = "(["[not open_low], ")]"[not open_high]
        raise ValueError(f"{name} must lie in {left}{low:g}, {high:g}{right}, got {number:g}")


def float32(x: Any) -> jax.Array:
    """Any float array as float32."""
    return jnp.asarray(x).astype(jnp.float32)
