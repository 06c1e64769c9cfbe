"""What `jaxalign plan` prints of a command's figures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from jaxalign.mesh import AXES, make_mesh
from jaxalign.models.memory import number_of_weights, sized
from jaxalign.peaks import peak_of
from jaxalign.plan.collectives import Collective
from jaxalign.plan.figures import Figures
from jaxalign.plan.rollout import Sampled
from jaxalign.plan.steps import shape_of
from jaxalign.plan.targets import Target, devices_of

# Model FLOPs utilization at which a step's time is estimated.
MFU = 0.4
# Of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
JAX_TAKES = 0.75


def report(
    command: str, config: Any, target: Target, tokens: int, listed: int, found: Figures
) -> Iterator[str]:
    """The lines.

    Args:
      command: the training command.
      config: its configuration.
      target: the devices.
      tokens: of a row.
      listed: collectives to list one by one.
      found: what it takes.
    """
    device_kind = devices_of(target)[0].device_kind
    yield from _head(command, config, target, tokens, found)
    yield ""
    yield from memory(target, found, samples=hasattr(config, "rollout"))
    yield ""
    yield from speed(found.flops / target.count, device_kind)
    yield from sending(found.step.collectives, target)
    if found.rollout is not None:
        yield from decoding_speed(found.rollout, target, device_kind)
    yield ""
    yield "collectives of a step, bytes of a device"
    yield from totals(found.step.collectives, listed)
    if found.rollout is not None:
        yield ""
        yield "collectives of a rollout, bytes of a device"
        yield from totals(found.rollout.prompts, 0, " of reading prompts")
        yield from totals(found.rollout.token, listed, " of a token")


def _head(command: str, config: Any, target: Target, tokens: int, found: Figures) -> Iterator[str]:
    shape = shape_of(command, config, make_mesh(config.mesh, devices_of(target)))
    axes = ", ".join(f"{name}={size}" for name in AXES if (size := getattr(config.mesh, name)) != 1)
    seconds = found.step.seconds + (found.rollout.seconds if found.rollout else 0.0)
    yield (
        f"{command} of {number_of_weights(shape) / 1e9:.3g}B parameters on {target}"
        f" (mesh {axes or 'of one device'}), rows of {tokens:,} tokens, compiled in {seconds:.0f} s"
    )
    kept = config.lora.base_weights if config.lora.enabled else "same"
    frozen = "" if kept == "same" else f", frozen projections in {kept}"
    yield f"parameters in {shape.param_dtype}{frozen}, products in {shape.compute_dtype}, remat={shape.remat}"
    if target.kind == "cpu":
        yield "virtual CPU devices: an accelerator's bytes and collectives differ"
    if command == "tfpo":
        size = f", {sized(found.patient)} of weights a device" if found.patient else ""
        yield f"the patient{size}, scores tokens and leaves before the doctor comes: that pass is not planned"


def memory(target: Target, found: Figures, *, samples: bool) -> Iterator[str]:
    """The lines about bytes; of a command that `samples`, of its rollout too."""
    yield "bytes of a device" if not samples else "bytes of a device while it learns"
    yield _line("parameters, optimizer, frozen models, batch", found.step.arguments)
    yield _line("temporaries", found.step.temporaries)
    for name, size in found.beside.items():
        yield _line(name, size)
    if found.own:
        yield _line("parameters as the sampler keeps them", found.own)
    room = f" of {sized(target.memory)}" if target.memory else ""
    yield _line("total", found.while_learning) + ("" if samples else room)
    if found.step.host:
        yield _line("of its host's memory", found.step.host)
    if found.rollout is not None:
        yield from _rollout(found, found.rollout)
    if samples:
        yield ""
        which = "sampling" if found.while_sampling > found.while_learning else "learning"
        yield f"a device needs at most {sized(found.total)}{room}, while {which}"
        if found.rollout is None:
            yield "  rollouts are sampled by a server, whose memory is not planned"
    if target.kind == "h100" and JAX_TAKES * target.memory < found.total <= target.memory:
        yield f"  JAX takes {JAX_TAKES:.0%} of a GPU's memory: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
    if target.memory and found.total > target.memory:
        yield "  does not fit: more devices along mesh.fsdp, more train.accumulation_steps, model.remat=full or"
        yield "  offload, or lora.enabled=true take less of each"
        if found.while_sampling > target.memory:
            yield "  sampling: mesh.tensor, rollout.weights=int8 and rollout.cache=int8 take less of each"


def _rollout(found: Figures, sampled: Sampled) -> Iterator[str]:
    rollout = sampled.rollout
    yield ""
    yield (
        f"bytes of a device while it samples: {rollout.completions:,} completions, {rollout.slots:,} at once, of "
        f"{rollout.new_tokens:,} tokens after {rollout.prompt:,}"
    )
    yield _line("parameters, optimizer, frozen models, as kept", found.state)
    for name, size in found.beside.items():
        yield _line(f"{name}, as kept", size)
    stage = max(sampled.stages, key=lambda name: sampled.stages[name])
    if sampled.own:
        yield _line("parameters of the sampler", sampled.own)
    yield _line("weights laid out for decoding", sampled.weights)
    yield _line("keys and values", sampled.cache)
    for name, size in sampled.stages.items():
        if name not in ("taking the new weights", "placing prompts"):
            yield _line(f"at most, {name}", found.while_sampling - sampled.most + size)
    yield _line("total of a rollout", found.while_sampling) + f", {stage}"


def _line(name: str, size: int) -> str:
    return f"  {name:45s}{sized(size):>12s}"


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


def decoding_speed(sampled: Sampled, target: Target, device_kind: str) -> Iterator[str]:
    """The lines about the time of a token, from what a device must read of its memory for it.

    Args:
      sampled: the rollout.
      target: the devices.
      device_kind: as JAX names it.
    """
    rollout, read = sampled.rollout, sampled.read + sampled.cache
    yield (
        f"a token of {rollout.slots:,} rows reads {sized(sampled.read)} of weights and at most {sized(sampled.cache)} "
        "of keys and values, of a device"
    )
    peak = peak_of(device_kind)
    if peak is None:
        return
    seconds = read / peak.bandwidth
    yield f"  at {peak.bandwidth / 1e9:,.0f} GB/s: {1e3 * seconds:,.3g} ms (an estimate, not measured)"
    whole = seconds * rollout.new_tokens * rollout.rounds
    yield (
        f"  {rollout.completions:,} completions of {rollout.new_tokens:,} tokens: {whole:,.3g} s "
        "(an estimate, not measured, without reading prompts)"
    )
    if target.link and sampled.token:
        sent = _sent(sampled.token) / target.link
        yield f"  collectives of a token at {target.link / 1e9:,.0f} GB/s: {1e3 * sent:,.3g} ms, latency not counted"


def sending(collectives: Sequence[Collective], target: Target) -> Iterator[str]:
    """The lines about the time of a step's collectives, which those between slices have apart."""
    if target.link and (within := [one for one in collectives if not one.across]):
        seconds = _sent(within) / target.link
        yield f"  collectives at {target.link / 1e9:,.0f} GB/s: {seconds:,.3g} s, in part meanwhile"
    if across := [one for one in collectives if one.across]:
        link = target.link_between_slices
        seconds = _sent_to_slices(across, target.slices) / link
        yield f"  between slices at {link / 1e9:,.3g} GB/s: {seconds:,.3g} s, in part meanwhile"


def _sent(collectives: Sequence[Collective]) -> float:
    """Bytes that a device sends; of an all-reduce everything twice."""
    return sum(one.total_bytes * (1 + (one.kind == "all-reduce")) for one in collectives)


def _sent_to_slices(collectives: Sequence[Collective], slices: int) -> float:
    """Bytes that a device sends to others than its own at least, of what it hands over for collectives of slices."""
    share = (slices - 1) / slices
    times = {"all-reduce": 2 * share, "all-gather": slices - 1, "reduce-scatter": share, "all-to-all": share}
    return sum(one.total_bytes * times.get(one.kind, 1) for one in collectives)


def totals(found: Sequence[Collective], listed: int, what: str = "") -> Iterator[str]:
    """The lines about collectives by kind, and one for each of the first `listed`."""
    count, total = Counter[str](), Counter[str]()
    for one in found:
        kind = one.kind + " between slices" * one.across
        count[kind] += one.count
        total[kind] += one.total_bytes
    width = max([20, *map(len, total)])
    for kind, size in total.most_common():
        yield f"  {kind + what:{width}s} {count[kind]:6d}  {sized(size):>12s}"
    if not total:
        yield f"  none{what}"
    for one in found[:listed]:
        yield f"    {one.kind} {one.count} x {sized(one.bytes)} {one.operation}".rstrip()
