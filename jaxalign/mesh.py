"""The device mesh, and the table of logical axes to mesh axes.

There is always a mesh: on one device every axis has size 1, so a laptop and a pod run the same program. Layers name
their axes logically (`embed`, `heads`, `vocab`, ...); only this table maps them to mesh axes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign import processes
from jaxalign.errors import ConfigError, DeviceError

Tree = TypeVar("Tree")
AXES = ("data", "fsdp", "expert", "context", "tensor")
NAMES = " x ".join(AXES)

# Logical axis -> mesh axis. None: replicated. A tuple: the product of several mesh axes.
Rules = Mapping[str, str | tuple[str, ...] | None]
DEFAULT_RULES: Rules = {
    "batch": ("data", "fsdp", "expert"),
    # Columns of rows of tokens; within attention, which needs all of a row, its heads instead.
    "length": "context",
    "attention_heads": ("tensor", "context"),
    "layers": None,
    "embed": ("fsdp", "expert", "context"),
    # Of a mixture's weights [E, D, F]; a device has whole experts, and of each a part of the width.
    "experts": "expert",
    "expert_embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "rank": None,
}
# While completions are decoded each group of `tensor` devices has all weights and rows of its own: a token needs
# nothing of another group.
ROLLOUT_RULES: Rules = {
    **DEFAULT_RULES,
    "batch": ("data", "fsdp", "expert", "context"),
    **dict.fromkeys(("length", "embed", "experts", "expert_embed")),
}


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each mesh axis.

    Attributes:
      data: number of model replicas, each with a share of the rows; -1 uses all remaining devices.
      fsdp: number of devices to shard parameters, gradients, optimizer state and rows over.
      expert: number of devices to split the experts of a mixture over, each with whole ones; rows, and all other
        parameters, gradients and optimizer state, are sharded over them as over `fsdp`.
      context: number of devices to split each row's tokens over, for rows that are too long for one device; parameters,
        gradients and optimizer state are sharded over them too. A power of two.
      tensor: number of devices to split each matrix product over.
    """

    data: int = 1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            size = getattr(self, name)
            if size < 1 and not (name == "data" and size == -1):
                raise ValueError(f"mesh.{name} must be a positive number of devices, got {size}")
        if self.context & (self.context - 1):  # widths of rows are multiples of powers of two (`buckets`)
            raise ValueError(f"mesh.context must be a power of two, got {self.context}")

    @property
    def others(self) -> int:
        """Devices of one replica."""
        return math.prod(self.shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes in the order of `AXES`; -1 for all remaining devices."""
        return tuple(getattr(self, name) for name in AXES)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `AXES`.

    Args:
      config: sizes of the axes; None uses 1 for all.
      devices: devices to use; None uses all of `jax.devices()`.

    Raises:
      DeviceError: the axes need more devices than there are, or a process has none of those that they take.
      ConfigError: `data=-1` and the number of devices is not divisible by the other axes; see `over_slices`.
    """
    config = config or MeshConfig()
    devices = list(jax.devices() if devices is None else devices)
    data = config.data
    if data == -1:
        data, rest = divmod(len(devices), config.others)
        if rest or not data:
            raise ConfigError(
                f"mesh.data=-1: {len(devices)} devices are not divisible by {' x '.join(AXES[1:])} = {config.others}"
            )
    shape = (data, *config.shape[1:])
    count = math.prod(shape)
    if count > len(devices):
        raise DeviceError(
            f"the mesh {NAMES} = {shape} needs {count} devices, but there are {len(devices)}: "
            + ", ".join(str(d) for d in devices[:8])
        )
    slices = slices_of(devices)
    grid = over_slices(shape, slices) if len(slices) > 1 else None
    used = devices[:count] if grid is None else list(grid.flat)
    idle = sorted({d.process_index for d in devices} - {d.process_index for d in used})
    if idle:
        raise DeviceError(
            f"the mesh {NAMES} = {shape} has {count} of {len(devices)} devices, and none of process "
            f"{idle[0]}; every process must have a part: mesh.data=-1 takes all devices"
        )
    types = (AxisType.Auto,) * len(AXES)
    if grid is not None:
        return Mesh(grid, AXES, axis_types=types)
    return jax.make_mesh(shape, AXES, axis_types=types, devices=used)


def slices_of(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each TPU slice; all others in one, though GPUs count each host as a slice."""
    numbers = [getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices]
    return [
        [d for d, own in zip(devices, numbers, strict=True) if own == number] for number in sorted({*numbers})
    ]


def over_slices(shape: Sequence[int], slices: Sequence[Sequence[Any]]) -> np.ndarray:
    """Devices in the shape of the axes, of which `data` alone crosses slices: their network is the slowest.

    Raises:
      ConfigError: `mesh.data` is not a multiple of the number of slices, or a slice has too few devices.
    """
    data, *rest = shape
    each, left = divmod(data, len(slices))
    if left:
        raise ConfigError(
            f"mesh.data={data}: there are {len(slices)} TPU slices, and only rows are split over them, so mesh.data "
            f"must be a multiple of {len(slices)}; mesh.data=-1 takes all devices"
        )
    count = each * math.prod(rest)
    if count > min(map(len, slices)):
        raise ConfigError(
            f"mesh.data={data}: each of {len(slices)} TPU slices would need {count} devices, but one has "
            f"{min(map(len, slices))}; only rows are split over slices"
        )
    return create_hybrid_device_mesh(
        (each, *rest),
        (len(slices), *(1 for _ in rest)),
        [device for one in slices for device in one[:count]],
        allow_split_physical_axes=True,  # as `jax.make_mesh` does: of 4 x 4 chips, 8 along an axis
    )


def partition_spec(
    logical_axes: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
) -> PartitionSpec:
    """The mesh axes of one array; an axis whose size is not divisible is replicated."""
    spec: list[str | tuple[str, ...] | None] = []
    used: set[str] = set()
    for name, size in zip(logical_axes, shape, strict=True):
        names = axes_of(name, rules)
        # Axes of one device split nothing, and a single axis goes by its name.
        names = tuple(n for n in names if mesh.shape.get(n, 1) > 1)
        width = math.prod(mesh.shape[n] for n in names)
        if width == 1 or size % width or used.intersection(names):
            spec.append(None)
            continue
        used.update(names)
        spec.append(names[0] if len(names) == 1 else names)
    return PartitionSpec(*spec)


def tree_shardings(
    tree: Any,
    logical_axes: Any,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
) -> Any:
    """A `NamedSharding` per leaf of `tree`; `logical_axes` has a tuple of names where `tree` has an array."""
    leaves, treedef = jax.tree.flatten(tree)
    axes = treedef.flatten_up_to(logical_axes)
    shardings = [
        NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, rules))
        for leaf, names in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(treedef, shardings)


def entry_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def constrained(
    x: jax.Array, logical_axes: Sequence[str | None], mesh: Mesh | None, rules: Rules = DEFAULT_RULES
) -> jax.Array:
    """x, which the partitioner must lay out by its logical axes; as it is on one device (None).

    Without this it may split a product over the axis that parameters are sharded along, and sum activations of the
    whole batch over the devices.
    """
    if mesh is None or mesh.size == 1:
        return x
    spec = partition_spec(logical_axes, x.shape, mesh, rules)
    # In a `shard_map` that leaves axes to the partitioner, its own mesh is meant: the given one says their sizes.
    inside = jax.sharding.get_abstract_mesh().manual_axes
    return jax.lax.with_sharding_constraint(x, spec if inside else NamedSharding(mesh, spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Tree, mesh: Mesh, *, axis: int = 0) -> Tree:
    """Puts a tree of host arrays on the mesh, rows (along `axis`) split over the mesh if divisible."""

    def placed(value: Any) -> jax.Array:
        array = np.asarray(value)
        names = tuple("batch" if index == axis else None for index in range(array.ndim))
        return processes.place(array, NamedSharding(mesh, partition_spec(names, array.shape, mesh)))

    return jax.tree.map(placed, batch)


def row_shards(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> int:
    """Number of shards of a batch's rows."""
    return math.prod(mesh.shape.get(name, 1) for name in axes_of("batch", rules))


def length_shards(mesh: Mesh | None) -> int:
    """Number of shards of a row's tokens."""
    return 1 if mesh is None else mesh.shape.get("context", 1)


def axes_of(logical_axis: str | None, rules: Rules = DEFAULT_RULES) -> tuple[str, ...]:
    """The mesh axes that a logical axis is split over, as far as its size divides."""
    return entry_axes(None if logical_axis is None else rules.get(logical_axis))


def devices_of(kind: str) -> list[Any]:
    """The devices of one kind: `cpu`, `gpu`, `tpu`, or `auto` (JAX's default).

    Raises:
      DeviceError: no such device; the message lists the available ones.
    """
    if kind == "auto":
        return list(jax.devices())
    try:
        return list(jax.devices(kind))
    except RuntimeError:
        there = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise DeviceError(f"--device {kind}: no {kind} found; available: {there}") from None
