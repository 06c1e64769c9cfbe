"""What a training command takes of one device: its optimizer step, its rollouts, and the models beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import Mesh

from jaxalign.errors import ConfigError
from jaxalign.mesh import NAMES, make_mesh
from jaxalign.plan.beside import beside, patient_bytes
from jaxalign.plan.program import Program, compiled, held
from jaxalign.plan.rollout import Sampled, rollout_of, sampled
from jaxalign.plan.steps import planned, shape_of, step_of
from jaxalign.plan.targets import Target, cudnn_of, devices_of, parse_target
from jaxalign.target import compiling_for


@dataclass(frozen=True)
class Figures:
    """What a command takes of one device.

    Attributes:
      step: of its optimizer step.
      flops: model FLOPs of the step, of all devices, see `models.flops.Pass`.
      state: bytes of parameters, optimizer state and frozen models, without a batch.
      beside: bytes of the models that score rollouts, by name.
      rollout: of its rollouts; None where it has none, or a server samples.
      patient: bytes of the patient's weights, which TFPO holds before its doctor.
    """

    step: Program
    flops: float
    state: int
    beside: Mapping[str, int]
    rollout: Sampled | None
    patient: int = 0

    @property
    def own(self) -> int:
        """Bytes of parameters that the sampler keeps for itself."""
        return self.rollout.own if self.rollout else 0

    @property
    def while_learning(self) -> int:
        """Bytes at most during an optimizer step."""
        return self.step.total + sum(self.beside.values()) + self.own

    @property
    def while_sampling(self) -> int:
        """Bytes at most during a rollout; 0 where there is none."""
        return self.state + sum(self.beside.values()) + self.rollout.most if self.rollout else 0

    @property
    def total(self) -> int:
        """Bytes at most."""
        return max(self.while_learning, self.while_sampling, self.patient)


def figures(command: str, config: Any, target: Target, tokens: int) -> Figures:
    """What a command takes of a device of the target.

    Args:
      command: see `steps.planned`.
      config: the command's.
      target: the devices.
      tokens: of a row.

    Raises:
      ConfigError: a configuration that is not planned, or a mesh that leaves devices out.
      DoesNotFit: the compiler refuses a program.
    """
    with on_mesh(config, target) as mesh:
        shape, step = shape_of(command, config, mesh), step_of(command, config, mesh, tokens)
        update, shapes = planned(command, config, mesh, tokens)
        rollout = None
        if step.policy is not None and config.rollout.engine.kind == "local":
            own = (step.trained["policy"], step.frozen["policy"])
            rollout = rollout_of(config, step.policy, *own, mesh, tokens)
        return Figures(
            step=compiled(lambda: update.lower(*shapes), shapes, target),
            flops=step.flops,
            state=held(shapes[:2]),
            beside=beside(command, config, shape, mesh),
            rollout=sampled(rollout, target) if rollout else None,
            patient=patient_bytes(config, mesh) if command == "tfpo" else 0,
        )


def step_figures(command: str, config: Any, target: Target, tokens: int) -> Program:
    """The optimizer step alone; arguments and errors are those of `figures`."""
    with on_mesh(config, target) as mesh:
        update, shapes = planned(command, config, mesh, tokens)
        return compiled(lambda: update.lower(*shapes), shapes, target)


@contextmanager
def on_mesh(config: Any, target: Target) -> Iterator[Mesh]:
    """The mesh of a configuration on the target, for which programs are traced within."""
    devices = devices_of(target)
    with compiling_for(devices[0]), cudnn_of(target):
        mesh = make_mesh(config.mesh, devices)
        if mesh.size < target.count:
            raise ConfigError(
                f"mesh: {NAMES} = {mesh.size}, but the target has {target.count} devices; set "
                f"mesh.data=-1{smaller(target, mesh.size)}"
            )
        yield mesh


def smaller(target: Target, count: int) -> str:
    """`, or --target=...` with fewer devices, where there is such a target."""
    fewer = str(replace(target, count=count))
    try:
        there = parse_target(fewer).count == count
    except ConfigError:
        there = False
    return f", or --target={fewer}" if there else ""
