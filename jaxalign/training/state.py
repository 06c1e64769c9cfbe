"""What an update changes: parameters, optimizer state, and the count of updates."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that an optimizer step reads and writes.

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: the trained leaves only (with LoRA: the adapter).
      opt_state: Optax's state for them.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state. Parameters are copied: the step donates them, and the caller may keep his."""
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    # Under jit the moments take the sharding of the parameters.
    opt_state = jax.jit(optimizer.init)(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)
