"""Rollouts on a mesh: where weights, rows and caches lie, and programs in which each device minds its own rows.

The rows of a batch are split over all axes but `tensor` (`mesh.ROLLOUT_RULES`); what devices share them is a
group, of as many as `tensor` says. A group has all the weights. So it decodes its rows as if it were alone: nothing of
weights or cache passes between groups, and where a group is one device nothing at all: it ends its loop when its own
rows end.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign import models
from jaxalign.mesh import ROLLOUT_RULES, Rules, axes_of, constrained, partition_spec, tree_shardings
from jaxalign.models.config import ModelConfig
from jaxalign.models.kv_cache import KVCache
from jaxalign.processes import place

ROW_AXES = axes_of("batch", ROLLOUT_RULES)
ROWS = PartitionSpec(ROW_AXES)
ALL = PartitionSpec()


def mesh_of(config: Any) -> Mesh | None:
    """The mesh of several devices that a model lies on; None on one device."""
    mesh = config.mesh
    return None if mesh is None or mesh.size == 1 else mesh


def by_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Host arrays with an entry a row, on a mesh split over the groups."""
    return tree if mesh is None else place(tree, NamedSharding(mesh, ROWS))


def row_sharding(shape: Sequence[int], mesh: Mesh, *axes: str) -> NamedSharding:
    """Of an array with an entry a row: rows split over the groups; `axes`: logical, of the dimensions that follow."""
    return NamedSharding(mesh, partition_spec(_names(shape, *axes), shape, mesh, ROLLOUT_RULES))


def _names(shape: Sequence[int], *axes: str) -> tuple[str | None, ...]:
    return ("batch", *axes, *[None] * (len(shape) - 1 - len(axes)))


def constrained_rows(tree: Any, mesh: Mesh | None, *axes: str) -> Any:
    """In a program: arrays that lie, on a mesh, as `row_sharding` says."""
    return jax.tree.map(lambda x: constrained(x, _names(x.shape, *axes), mesh, ROLLOUT_RULES), tree)


def cache_shardings(tree: Any, mesh: Mesh) -> Any:
    """Of keys and values: rows split over the groups, heads over `tensor` if that divides them."""
    return jax.tree.map(lambda x: row_sharding(x.shape, mesh, "kv_heads"), tree)


def constrained_cache(cache: KVCache, mesh: Mesh | None) -> KVCache:
    """In a program: a cache that lies, on a mesh, as `cache_shardings` says."""
    keys, values = constrained_rows((cache.keys, cache.values), mesh, "kv_heads")
    return replace(cache, keys=keys, values=values, starts=constrained_rows(cache.starts, mesh))


def weight_shardings(weights: Any, mesh: Mesh, rules: Rules = ROLLOUT_RULES) -> Any:
    """Where the leaves of `decode_weights` lie."""
    return tree_shardings(weights, models.param_logical_axes(weights), mesh, rules)


def held(
    tree: Any, mesh: Mesh | None, place: Callable[[Any, Mesh], Any]
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of what a device holds of each leaf, by path; `place` gives the shardings of a tree on a mesh."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    shapes = [leaf.shape for _, leaf in leaves]
    if mesh is not None:
        shapes = [s.shard_shape(n) for s, n in zip(jax.tree.leaves(place(tree, mesh)), shapes, strict=True)]
    return {
        jax.tree_util.keystr(path): (shape, leaf.dtype)
        for (path, leaf), shape in zip(leaves, shapes, strict=True)
    }


def group_program(
    function: Callable[..., Any], mesh: Mesh | None, in_specs: tuple[Any, ...], out_specs: Any
) -> Callable[..., Any]:
    """A function that each group runs on its own rows; itself on one device.

    Args:
      function: of arrays; inside, `tensor` is left to the compiler.
      mesh: the devices.
      in_specs, out_specs: `ROWS` for what has an entry a row, `ALL` for what all groups have; of trees, a prefix.
    """
    if mesh is None:
        return function
    # A kernel's custom call must find no axis that is left to the compiler.
    axes = set(mesh.axis_names) if mesh.shape["tensor"] == 1 else set(ROW_AXES)
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False
    )


def in_group(definition: Any, mesh: Mesh | None) -> Any:
    """The definition of a model, and of those it is made of, for a group's program: it knows of no other devices."""
    if mesh is None:
        return definition
    group = Mesh(mesh.devices[(slice(1),) * len(ROW_AXES)], mesh.axis_names, axis_types=mesh.axis_types)

    def changed(part: Any) -> Any:
        if isinstance(part, ModelConfig):
            return replace(part, mesh=group)
        if isinstance(part, tuple):
            return tuple(map(changed, part))
        if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{f.name: changed(getattr(part, f.name)) for f in fields(part)})
        return part

    return changed(definition)


def spread_for_sampling(logits: jax.Array, mesh: Mesh | None) -> jax.Array:
    """In a group's program: logits [B, V] with no row torn, and each device with as many rows if they divide."""
    if mesh is None or mesh.shape["tensor"] == 1:
        return logits
    rows, vocabulary = ("tensor" if size % mesh.shape["tensor"] == 0 else None for size in logits.shape)
    # First as the head gives them: else the compiler would gather the head.
    for spec in ((None, vocabulary), (rows, None)):
        logits = jax.lax.with_sharding_constraint(logits, PartitionSpec(*spec))
    return logits


def whole_in_group(tree: Any, mesh: Mesh | None) -> Any:
    """In a group's program: what each device of the group is to have of all rows."""
    alone = mesh is None or mesh.shape["tensor"] == 1
    return tree if alone else jax.lax.with_sharding_constraint(tree, PartitionSpec())


def any_in_step(rows: jax.Array, mesh: Mesh | None) -> jax.Array:
    """In a group's program: whether any row is true, of all whose devices must take the same steps.

    That is a group's own; but groups of several devices exchange parts in operations that are all groups' together, so
    one that ended earlier would leave the others waiting.
    """
    found = rows.any()
    alone = mesh is None or mesh.shape["tensor"] == 1
    return found if alone else jax.lax.pmax(found.astype(jax.numpy.int32), ROW_AXES) > 0
