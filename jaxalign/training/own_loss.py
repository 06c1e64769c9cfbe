"""A user's own loss in place of the one that a configuration names: called on shapes alone before training."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError

# Lengths that stand for the axes of the shapes below, all different.
SIZES = {"B": 2, "T": 5, "T+1": 6, "K": 3}
# Axes of arrays by name: `mask`, `desirable` and `terminated` are bool, `best` is int32, all others float32.
Shapes = Mapping[str, tuple[str, ...]]


def check_own_loss(
    loss: Callable[..., Any] | None,
    arrays: Shapes,
    result: tuple[str, ...],
    *,
    config: Any,
    unread: Sequence[str],
    keywords: Shapes | None = None,
) -> None:
    """Calls a loss on abstract arrays; None is left alone.

    Args:
      loss: the user's.
      arrays: axes of what it is given by position, with names for messages.
      result: axes of what it must return.
      config: the section `loss`.
      unread: fields of it that only the loss it names would read.
      keywords: axes of what it is given by name.

    Raises:
      ConfigError: it cannot be called so, or returns something else; or an option that it would not be told is set.
    """
    if loss is None:
        return
    if not callable(loss):
        raise ConfigError(f"loss: expected a function, got {loss!r:.60}")
    for field in dataclasses.fields(config):
        if field.name in unread and getattr(config, field.name) != field.default:
            raise ConfigError(
                f"loss.{field.name} is an option of the loss that the configuration names, whose place loss= takes; "
                f"leave it at {field.default}, and bind it to the function"
            )
    told = [f"{name}[{', '.join(axes)}]" for name, axes in arrays.items()]
    told += [f"{name}={name}[{', '.join(axes)}]" for name, axes in (keywords or {}).items()]
    call = f"loss({', '.join(told)})"
    expected = f"[{', '.join(result)}]"
    try:
        found: Any = jax.eval_shape(
            loss,
            *(_abstract(name, axes) for name, axes in arrays.items()),
            **{name: _abstract(name, axes) for name, axes in (keywords or {}).items()},
        )
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"loss: it is called as {call} and must return {expected}; "
            f"{getattr(loss, '__name__', type(loss).__name__)} raised {type(error).__name__}: {first}"
        ) from error
    array = isinstance(found, jax.ShapeDtypeStruct)
    wanted = tuple(SIZES[axis] for axis in result)
    if not array or found.shape != wanted or not jnp.issubdtype(found.dtype, jnp.floating):
        got = f"{found.dtype} of shape {found.shape}" if array else type(found).__name__
        sizes = ", ".join(f"{axis} = {SIZES[axis]}" for axis in dict.fromkeys(result))
        raise ConfigError(f"loss: {call} must return floats {expected}; where {sizes} it returned {got}")


def _abstract(name: str, axes: tuple[str, ...]) -> jax.ShapeDtypeStruct:
    dtype = jnp.int32 if name == "best" else jnp.float32
    if name in ("mask", "desirable", "terminated"):
        dtype = jnp.bool_
    return jax.ShapeDtypeStruct(tuple(SIZES[axis] for axis in axes), dtype)
