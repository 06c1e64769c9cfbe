"""Computations in an order that XLA's CPU compiler keeps: it drops barriers before it decides what runs when."""

from typing import Any

import jax
import jax.numpy as jnp


def after(done: jax.Array, values: Any) -> Any:
    """The values, which the compiler cannot have before `done`.

    They depend on a number of `done` by a condition that never holds and that the compiler does not see through.
    """
    number = done[(0,) * done.ndim]
    never = jnp.isnan(number) & jnp.isinf(number)
    return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), values)
