"""Whether a run fits its mesh: devices without work, and rows and weights that do not divide by an axis.

An array whose axis does not divide is replicated: the result is the same, and every device pays for all of it. So what
scores without a gradient is filled up with rows that do not count (see `data.eval_batches`); rows that train must
divide; weights that do not are told with what they cost.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.mesh import AXES, axes_of, devices_of, entry_axes, partition_spec, row_shards
from jaxalign.models.memory import sized
from jaxalign.models.transformer import parameter_shapes
from jaxalign.runs import Run

# --- devices ----------------------------------------------------------------------------------


def tell_idle(run: Run, mesh: Mesh) -> None:
    """Warns of visible devices that are not in the mesh, with the nearest setting that uses all."""
    there = devices_of(run.config.device)
    used = set(mesh.devices.flat)
    idle = [device for device in there if device not in used]
    if idle:
        run.warn(
            f"{len(idle)} of {len(there)} devices are unused ({_numbered(idle)}; the mesh has "
            f"{_numbered([d for d in there if d in used])}): set {_using_all(len(there), mesh)}"
        )


def _numbered(devices: Sequence[Any]) -> str:
    """`cpu 2 to 7`."""
    ids = [device.id for device in devices]
    if len(ids) > 2 and ids == list(range(ids[0], ids[-1] + 1)):
        return f"{devices[0].platform} {ids[0]} to {ids[-1]}"
    return f"{devices[0].platform} {', '.join(map(str, ids))}"


def _using_all(there: int, mesh: Mesh) -> str:
    if mesh.size == 1:
        return f"mesh.data=-1 to split the rows over all devices, or mesh.fsdp={there} to shard the parameters too"
    sizes = {name: mesh.shape[name] for name in AXES if name != "data"}
    if there % math.prod(sizes.values()):
        sizes["tensor"] = _nearest(there, sizes["tensor"])[0]
        left = there // sizes["tensor"]
        for axis in ("context", "expert"):
            sizes[axis] = math.gcd(left, sizes[axis])
            left //= sizes[axis]
        sizes["fsdp"] = _nearest(left, sizes["fsdp"])[0]
    changed = [f"mesh.{name}={size}" for name, size in sizes.items() if size != mesh.shape[name]]
    return " and ".join(["mesh.data=-1", *changed]) + " to use all"


# --- rows -------------------------------------------------------------------------------------


def check_rows(config: Any, mesh: Mesh) -> None:
    """Checks that the rows of a training step can be split evenly over the mesh, those of each micro-batch too.

    Packed rows always can, and so can batches by tokens.

    Raises:
      ConfigError: they cannot; names the key, its value and the nearest that fit.
    """
    train, shards = config.train, row_shards(mesh)
    if shards == 1 or train.packing or getattr(train, "batch_tokens", 0):
        return
    if hasattr(train, "batch_size"):
        key, size, each, parts = "batch_size", train.batch_size, 1, train.accumulation_steps
    else:
        key, size, each = "prompts", train.prompts, config.rows_per_prompt
        parts = train.minibatches * train.accumulation_steps
    if size * each % (parts * shards) == 0:
        return
    unit = parts * shards // math.gcd(parts * shards, each)
    fitting = [str(n) for n in (size // unit * unit, -(-size // unit) * unit) if n]
    part = "an optimizer step" if parts == 1 else "a micro-batch"
    axes = " x ".join(f"mesh.{axis}" for axis in axes_of("batch") if mesh.shape[axis] > 1)
    raise ConfigError(
        f"train.{key}={size}: the {size * each // parts} rows of {part} cannot be split evenly over {axes} = "
        f"{shards} devices, so each would compute all of them; set train.{key} to "
        f"{' or '.join(dict.fromkeys(fitting))}, or train.packing=true"
    )


# --- weights ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Misfit:
    """A logical axis of weights that are replicated over mesh axes, as its size does not divide by theirs.

    Attributes:
      name, size: of the logical axis.
      axes, width: the mesh axes that it would be split over, and the product of their sizes.
      cost: bytes that a device holds of them in addition to its share.
    """

    name: str
    size: int
    axes: tuple[str, ...]
    width: int
    cost: float


def misfits(config: models.ModelConfig, mesh: Mesh) -> tuple[list[Misfit], set[str]]:
    """What of a model's weights does not divide by the mesh, and the mesh axes that any of its matrices divides by."""
    itemsize = jnp.dtype(config.param_dtype).itemsize
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, config.param_dtype),
        parameter_shapes(config),
        is_leaf=lambda shape: isinstance(shape, tuple),
    )
    leaves, treedef = jax.tree.flatten(shapes)
    costs: defaultdict[tuple[str, int, tuple[str, ...], int], float] = defaultdict(float)
    divided: set[str] = set()
    for leaf, names in zip(leaves, treedef.flatten_up_to(models.param_logical_axes(shapes)), strict=True):
        spec = partition_spec(names, leaf.shape, mesh)
        own = {axis for entry in spec for axis in entry_axes(entry)}
        if len(names) - ("layers" in names) > 1:
            divided |= own
        held = math.prod(leaf.shape) * itemsize / math.prod(mesh.shape[axis] for axis in own)
        for name, size in zip(names, leaf.shape, strict=True):
            axes = tuple(axis for axis in axes_of(name) if mesh.shape[axis] > 1)
            if size % (width := math.prod(mesh.shape[axis] for axis in axes)):
                # The width of experts is that of the model, which may be split over fewer axes.
                costs[name.removeprefix("expert_"), size, axes, width] += held * (1 - 1 / width)
    return [Misfit(*key, cost) for key, cost in costs.items()], divided


def tell_fit(run: Run | None, section: str, config: models.ModelConfig, mesh: Mesh) -> None:
    """Warns of weights and heads of a model that are replicated over an axis of the mesh; of equal models once.

    Args:
      run: the open run; None only checks.
      section: of the configuration that names the model.
      config: the model's shape.
      mesh: the devices.

    Raises:
      ConfigError: none of its matrices divides by an axis that is asked for, its attention heads do not by
        `mesh.context`, or its experts by `mesh.expert`; see `check_experts`.
    """
    if mesh.size == 1:
        return
    check_experts(section, config.mixture.experts, mesh)
    found, divided = misfits(config, mesh)
    for axis in AXES[1:]:
        if mesh.shape[axis] > 1 and axis not in divided:
            raise ConfigError(_nothing_divides(section, axis, found))
    _check_heads(section, config.num_heads, mesh)
    if run is None:
        return
    for misfit in found:
        axes = " x mesh.".join(misfit.axes)
        run.warn_once(
            section,
            f"{misfit.name} = {misfit.size} is not divisible by mesh.{axes}={misfit.width}: those weights are "
            f"replicated over it, which costs {sized(misfit.cost)} a device; nearest that fits: "
            f"{_settings(axes, _nearest(misfit.size, misfit.width))}",
        )
    heads, width = config.num_kv_heads, mesh.shape["tensor"]
    if heads % width and mesh.shape["context"] == 1:
        run.warn_once(
            section,
            f"{heads} KV head{'s' if heads > 1 else ''} cannot be split over mesh.tensor={width}: keys, values and "
            f"attention are replicated over it; nearest that fits: "
            f"{_settings('tensor', _nearest(heads, width))}",
        )


def check_experts(section: str, experts: int, mesh: Mesh) -> None:
    """Checks that `mesh.expert` divides a model's experts; of models beside the one that learns, only where any are.

    Raises:
      ConfigError: it does not.
    """
    width = mesh.shape["expert"]
    if not experts and width > 1 and section == "model":
        raise ConfigError(
            f"mesh.expert={width}: {section} is no mixture of experts; set mesh.expert=1, or mesh.fsdp="
            f"{mesh.shape['fsdp'] * width} to shard its parameters over as many devices"
        )
    if experts % width:
        raise ConfigError(
            f"mesh.expert={width}: the {experts} experts of {section} must be divisible by it; nearest that fits: "
            f"{_settings('expert', _nearest(experts, width))}"
        )


def _check_heads(section: str, heads: int, mesh: Mesh) -> None:
    context, tensor = mesh.shape["context"], mesh.shape["tensor"]
    if context > 1 and heads % (context * tensor):
        fitting = [n for n in (1 << i for i in range(heads.bit_length())) if heads % (n * tensor) == 0]
        most = f"the largest that does is mesh.context={fitting[-1]}" if fitting else "none does"
        raise ConfigError(
            f"mesh.context={context}: the {heads} attention heads of {section} must be divisible by mesh.context x "
            f"mesh.tensor = {context * tensor}; {most}"
        )


def _nothing_divides(section: str, axis: str, found: Iterable[Misfit]) -> str:
    own = [m for m in found if axis in m.axes]
    axes, width, sizes = " x mesh.".join(own[0].axes), own[0].width, {m.name: m.size for m in own}
    common = _nearest(math.gcd(*sizes.values()), width)
    shape = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    return (
        f"mesh.{axes}={width}: none of the matrices of {section} ({shape}) can be sharded over it; nearest that fits: "
        f"{_settings(axes, common)}" + (f", or use mesh.data={width}" if axes == "fsdp" else "")
    )


def _nearest(size: int, width: int) -> list[int]:
    """The divisors of a size just below and just above a width, up to twice that; the nearer one first."""
    divisors = [n for n in range(1, min(size, 2 * width) + 1) if size % n == 0]
    beside = [*[n for n in divisors if n <= width][-1:], *[n for n in divisors if n > width][:1]]
    return sorted(beside, key=lambda n: (abs(n - width), -n))


def _settings(axis: str, sizes: Iterable[int]) -> str:
    return " or ".join(f"mesh.{axis}={size}" for size in sorted(sizes))
