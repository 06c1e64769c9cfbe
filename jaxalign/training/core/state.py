"""What an update changes: parameters, optimizer state, and the count of updates."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


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
    """A fresh state. Parameters are copied: the step donates them, and the caller may keep his.

    Where the parameters lie on a mesh, so does all of the state.
    """
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    # Under jit the moments take the sharding of the parameters.
    state = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params))
    mesh = next(
        (x.sharding.mesh for x in jax.tree.leaves(params) if isinstance(x.sharding, NamedSharding)), None
    )
    if mesh is None:
        return state

    def place(x: jax.Array) -> jax.Array:
        return x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, NamedSharding(mesh, P()))

    return jax.tree.map(place, state)
