"""A user's own function in place of one that a configuration names: called on shapes alone before training."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.rewards import load_function

# Lengths that stand for the axes of the shapes below, all different.
SIZES = {"B": 2, "T": 5, "T+1": 6, "K": 3}
# Axes of arrays by name: `mask`, `desirable` and `terminated` are bool, `best` is int32, all others float32; an int
# stands for itself.
Shapes = Mapping[str, tuple[str, ...] | int]


def check_own_loss(
    loss: Callable[..., Any] | None,
    arrays: Shapes,
    result: tuple[str, ...],
    *,
    config: Any,
    unread: Sequence[str],
    keywords: Shapes | None = None,
) -> Callable[..., Any] | None:
    """The user's loss: a live one, or that of `loss.function`; None where there is neither.

    Args:
      loss: the user's, live.
      arrays: axes of what it is given by position, with names for messages.
      result: axes of what it must return.
      config: the section `loss`.
      unread: fields of it that only the loss it names would read.
      keywords: axes of what it is given by name.

    Raises:
      ConfigError: there is no such file or function; it cannot be called so, or returns something else; or an option
        that it would not be told is set.
    """
    name = getattr(config, "function", "")
    return own_function(
        "loss", loss, "loss.function", name, arrays, result, config=config, unread=unread, keywords=keywords
    )


def own_function(
    argument: str,
    live: Callable[..., Any] | None,
    key: str,
    name: str,
    arrays: Shapes,
    result: tuple[str, ...],
    *,
    config: Any,
    unread: Sequence[str],
    keywords: Shapes | None = None,
) -> Callable[..., Any] | None:
    """What a Python call gives as `argument`, or the configuration names at `key`; None where neither does.

    It is called on abstract arrays. `name` is the value of `key`, as package.module:function or file.py:function; for
    the rest, and the errors, see `check_own_loss`.
    """
    if live is None and not name:
        return None
    if live is not None and name:
        raise ConfigError(f"{argument}= and {key}={name}: choose one")
    what = key if name else argument
    function = load_function(name, kind=key) if name else live
    if not callable(function):
        raise ConfigError(f"{argument}: expected a function, got {function!r:.60}")
    for field in dataclasses.fields(config):
        if field.name in unread and getattr(config, field.name) != field.default:
            raise ConfigError(
                f"loss.{field.name} is an option of the {argument} that the configuration names, whose place "
                f"{what if name else what + '='} takes; leave it at {field.default}, and bind it to the function"
            )
    given = {key: _abstract(key, axes) for key, axes in {**arrays, **(keywords or {})}.items()}
    told = [_told(key, axes) for key, axes in arrays.items()]
    told += [f"{key}={_told(key, axes)}" for key, axes in (keywords or {}).items()]
    call = f"{argument}({', '.join(told)})"
    expected = f"[{', '.join(result)}]"

    def called(given: Mapping[str, Any]) -> Any:
        # What is not an array is no argument of a traced function.
        every = {key: axes for key, axes in {**arrays, **(keywords or {})}.items() if isinstance(axes, int)}
        every |= given
        return function(*(every[key] for key in arrays), **{key: every[key] for key in keywords or {}})

    try:
        found: Any = jax.eval_shape(called, {key: x for key, x in given.items() if x is not None})
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{what}: it is called as {call} and must return {expected}; "
            f"{getattr(function, '__name__', type(function).__name__)} raised {type(error).__name__}: {first}"
        ) from error
    array = isinstance(found, jax.ShapeDtypeStruct)
    wanted = tuple(SIZES[axis] for axis in result)
    if not array or found.shape != wanted or not jnp.issubdtype(found.dtype, jnp.floating):
        got = f"{found.dtype} of shape {found.shape}" if array else type(found).__name__
        sizes = ", ".join(f"{axis} = {SIZES[axis]}" for axis in dict.fromkeys(result))
        raise ConfigError(f"{what}: {call} must return floats {expected}; where {sizes} it returned {got}")
    return function


def _told(name: str, axes: tuple[str, ...] | int) -> str:
    return name if isinstance(axes, int) else f"{name}[{', '.join(axes)}]"


def _abstract(name: str, axes: tuple[str, ...] | int) -> jax.ShapeDtypeStruct | None:
    if isinstance(axes, int):
        return None
    dtype = jnp.int32 if name == "best" else jnp.float32
    if name in ("mask", "desirable", "terminated"):
        dtype = jnp.bool_
    return jax.ShapeDtypeStruct(tuple(SIZES[axis] for axis in axes), dtype)
