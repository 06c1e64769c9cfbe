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
      loss_scale: see `loss_scale.LossScale`; None where nothing computes in float16.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    loss_scale: Any = None


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state. Parameters are copied: the step donates them, and the caller may keep his.

    If the parameters lie on a mesh, so does the whole state, each moment sharded as its parameter is.
    """
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    step = jnp.zeros((), jnp.int32)
    mesh = next(
        (x.sharding.mesh for x in jax.tree.leaves(params) if isinstance(x.sharding, NamedSharding)), None
    )
    if mesh is None:
        return TrainState(step, params, jax.jit(optimizer.init)(params))
    replicated = NamedSharding(mesh, P())
    params = jax.tree.map(
        lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, replicated), params
    )
    abstract = jax.eval_shape(optimizer.init, params)
    init = jax.jit(optimizer.init, out_shardings=moment_shardings(abstract, params, replicated))
    return TrainState(jax.device_put(step, replicated), params, init(params))


def moment_shardings(opt_state: Any, params: Any, otherwise: NamedSharding) -> Any:
    """Shardings of an optimizer state: moments lie as their parameters do.

    `init` makes moments of zeros, which depend on no parameter, so XLA would replicate them. A leaf belongs to the
    parameter whose path ends its own path (`mu['layers']['up_proj']`) if their shapes are equal: that holds for
    `optax.partition`, for masks and for any transformation that maps over the parameters. So do the parts of a
    quantized moment (`mu['layers']['up_proj'].codes`); the last axis of its scales is shorter, and is replicated where
    the devices do not divide it.

    Args:
      opt_state: the state, or its shapes.
      params: arrays (or shapes with a sharding) on the mesh.
      otherwise: the sharding of counters and of factored statistics.
    """
    leaves = {_names(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            parameter = leaves.get(names[start:])
            if parameter is not None and parameter.shape == leaf.shape:
                return parameter.sharding
            parameter = leaves.get(names[start:-1])
            if parameter is not None and parameter.shape[:-1] == leaf.shape[:-1]:
                return _as_far_as_it_divides(parameter, leaf.shape[-1])
        return otherwise

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def _as_far_as_it_divides(parameter: Any, size: int) -> NamedSharding:
    """The sharding of a parameter, for an array with another last axis."""
    sharding, rank = parameter.sharding, len(parameter.shape)
    spec = (*sharding.spec, *[None] * (rank - len(sharding.spec)))
    shards = parameter.shape[-1] // sharding.shard_shape(parameter.shape)[-1]
    return NamedSharding(sharding.mesh, P(*spec[:-1], spec[-1] if size % shards == 0 else None))


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(map(str, path))
