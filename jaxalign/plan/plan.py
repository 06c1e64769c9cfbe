"""`jaxalign plan COMMAND`: compiles the command's optimizer step for devices that need not be there, and says what it
takes of each."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import jax

from jaxalign.errors import ConfigError
from jaxalign.mesh import AXES, make_mesh
from jaxalign.models.memory import number_of_weights, sized
from jaxalign.peaks import peak_of
from jaxalign.plan.collectives import Collective, collectives
from jaxalign.plan.steps import model_of, planned, shape_of, step_of
from jaxalign.plan.targets import Target, cudnn_of, devices_of, parse_target
from jaxalign.target import compiling_for

# Model FLOPs utilization at which a step's time is estimated.
MFU = 0.4
# Of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
JAX_TAKES = 0.75


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What to plan; all other flags are those of the command.

    Attributes:
      command: training command to plan: sft, reward, dpo, grpo, online-dpo or ppo.
      target: kind and number of devices: h100x8 (H100 SXM, 80 GB); a TPU slice by Google Cloud's name, such as v5p-8,
        v5e-64 or v6e-8; cpux8 compiles for virtual CPU devices, whose bytes and collectives differ from an
        accelerator's.
      tokens: length of a row, prompt and completion.
      collectives: number of collectives to list, largest first.
    """

    command: str
    target: str = "h100x8"
    tokens: int = 2048
    collectives: int = 3

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("collectives", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Plan:
    """A plan and the configuration of the command that it is for."""

    own: PlanConfig
    settings: Any


@dataclass(frozen=True)
class Figures:
    """What a compiled step takes of one device.

    Attributes:
      arguments: bytes of parameters, optimizer state, frozen models and the batch.
      temporaries: bytes beside them while it runs.
      unaliased: bytes of results that take no argument's place.
      collectives: what moves between devices.
      flops: model FLOPs of all devices, see `models.flops.Pass`.
      seconds: time to compile.
    """

    arguments: int
    temporaries: int
    unaliased: int
    collectives: list[Collective]
    flops: float
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of a device at most."""
        return self.arguments + self.temporaries + self.unaliased


def plan(asked: Plan) -> None:
    """Compiles the optimizer step of a training command for a target, and prints bytes and collectives of a device.

    Only config.json of the model is read: no weights, no data.

    Args:
      asked: what to plan, and the command's configuration.

    Raises:
      UserError: an invalid configuration, or a compiler that is not installed.
    """
    target = parse_target(asked.own.target)
    model_of(asked.own.command, asked.settings)  # before the compiler is looked for
    for line in report(asked, target, figures(asked.own.command, asked.settings, target, asked.own.tokens)):
        print(line)


def figures(command: str, config: Any, target: Target, tokens: int) -> Figures:
    """What the step of a command takes of a device of the target.

    Args:
      command: see `steps.planned`.
      config: the command's.
      target: the devices.
      tokens: of a row.
    """
    devices = devices_of(target)
    with compiling_for(devices[0]), cudnn_of(target):
        mesh = make_mesh(config.mesh, devices)
        if mesh.size < target.count:
            raise ConfigError(
                f"mesh: data x fsdp x tensor = {mesh.size}, but the target has {target.count} devices; set "
                f"mesh.data=-1{smaller(target, mesh.size)}"
            )
        begun = time.perf_counter()
        update, shapes = planned(command, config, mesh, tokens)
        compiled = update.lower(*shapes).compile(compiler_options=cast(Any, target.compiler_options or None))
        seconds = time.perf_counter() - begun
        flops = step_of(command, config, mesh, tokens).flops
    memory: Any = compiled.memory_analysis()
    return Figures(
        arguments=memory.argument_size_in_bytes - repeated_bytes(shapes),
        temporaries=memory.temp_size_in_bytes,
        unaliased=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        collectives=collectives(compiled.as_text() or ""),
        flops=flops,
        seconds=seconds,
    )


def smaller(target: Target, count: int) -> str:
    """`, or --target=...` with fewer devices, where there is such a target."""
    fewer = str(replace(target, count=count))
    try:
        parse_target(fewer)
    except ConfigError:
        return ""
    return f", or --target={fewer}"


def repeated_bytes(shapes: Any) -> int:
    """Bytes of a device that the compiler counts again for leaves that stand in several places of a tree."""
    leaves = jax.tree.leaves(shapes)
    sizes = [math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves]
    return sum(sizes) - sum({id(leaf): size for leaf, size in zip(leaves, sizes, strict=True)}.values())


def report(asked: Plan, target: Target, found: Figures) -> Iterator[str]:
    """The lines that `jaxalign plan` prints."""
    config, own = asked.settings, asked.own
    shape = shape_of(own.command, config, make_mesh(config.mesh, devices_of(target)))
    axes = ", ".join(f"{name}={size}" for name in AXES if (size := getattr(config.mesh, name)) != 1)
    yield (
        f"{own.command} of {number_of_weights(shape) / 1e9:.3g}B parameters on {own.target}"
        f" (mesh {axes or 'of one device'}), rows of {own.tokens:,} tokens, compiled in {found.seconds:.0f} s"
    )
    kept = config.lora.base_weights if config.lora.enabled else "same"
    frozen = "" if kept == "same" else f", frozen projections in {kept}"
    yield f"parameters in {shape.param_dtype}{frozen}, products in {shape.compute_dtype}, remat={shape.remat}"
    if target.kind == "cpu":
        yield "virtual CPU devices: an accelerator's bytes and collectives differ"
    yield ""
    yield "bytes of a device"
    yield f"  parameters, optimizer, frozen models, batch  {sized(found.arguments):>12s}"
    yield f"  temporaries                                  {sized(found.temporaries):>12s}"
    room = f" of {sized(target.memory)}" if target.memory else ""
    yield f"  total                                        {sized(found.total):>12s}{room}"
    if target.kind == "h100" and JAX_TAKES * target.memory < found.total <= target.memory:
        yield f"  JAX takes {JAX_TAKES:.0%} of a GPU's memory: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
    if target.memory and found.total > target.memory:
        yield "  does not fit: more devices along mesh.fsdp, more train.accumulation_steps, model.remat=full or"
        yield "  lora.enabled=true take less of each"
    yield ""
    yield from speed(found.flops / target.count, devices_of(target)[0].device_kind)
    if target.link and found.collectives:
        # An all-reduce sends everything twice.
        sent = sum(one.total_bytes * (1 + (one.kind == "all-reduce")) for one in found.collectives)
        yield f"  collectives at {target.link / 1e9:,.0f} GB/s: {sent / target.link:,.3g} s, in part meanwhile"
    yield ""
    yield "collectives of a step, bytes of a device"
    count, total = Counter[str](), Counter[str]()
    for one in found.collectives:
        count[one.kind] += one.count
        total[one.kind] += one.total_bytes
    for kind, size in total.most_common():
        yield f"  {kind:20s} {count[kind]:6d}  {sized(size):>12s}"
    if not total:
        yield "  none"
    for one in found.collectives[: own.collectives]:
        yield f"    {one.kind} {one.count} x {sized(one.bytes)} {one.operation}".rstrip()


def speed(flops: float, device_kind: str) -> Iterator[str]:
    """The lines about a step's operations.

    Args:
      flops: model FLOPs of a device.
      device_kind: as JAX names it.
    """
    yield f"model FLOPs of a step, of a device: {flops:.3g}"
    if (peak := peak_of(device_kind)) is not None:
        seconds = flops / (MFU * peak.flops)
        yield f"  at {MFU:.0%} MFU of {peak.flops / 1e12:,.0f} TFLOP/s: {seconds:,.3g} s (an estimate, not measured)"
