"""A program compiled for devices that need not be there, and what it takes of one of them."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax

from jaxalign.errors import ConfigError
from jaxalign.plan.collectives import Collective, collectives
from jaxalign.plan.targets import Target


class DoesNotFit(ConfigError):
    """The compiler itself refuses a program, as TPUs' does, because a device has too little memory."""


@dataclass(frozen=True)
class Program:
    """What a compiled program takes of one device.

    Attributes:
      arguments: bytes of what it takes; what stands in several places of it once.
      temporaries: bytes beside them while it runs.
      unaliased: bytes of results that take no argument's place.
      collectives: what moves between devices.
      seconds: time to compile.
      host: bytes of the host's memory, see `model.remat=offload`.
    """

    arguments: int
    temporaries: int
    unaliased: int
    collectives: list[Collective]
    seconds: float
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes of a device at most."""
        return self.arguments + self.temporaries + self.unaliased

    @property
    def more(self) -> int:
        """Bytes beside its arguments."""
        return self.temporaries + self.unaliased


def compiled(lower: Callable[[], Any], shapes: Any, target: Target) -> Program:
    """A program and its figures; call it within `jaxalign.target.compiling_for`.

    Args:
      lower: gives the lowered program, `jax.stages.Lowered`.
      shapes: of its arguments, each with a sharding.
      target: the devices.

    Raises:
      DoesNotFit: the compiler refuses it.
    """
    begun = time.perf_counter()
    try:
        made = lower().compile(compiler_options=cast(Any, target.compiler_options or None))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm", str(error))
        told = f": it needs {used[1]} of {used[2]}" if used else ""
        raise DoesNotFit(
            f"{target}: the compiler says that the program does not fit a device's memory{told}; more devices along "
            "mesh.fsdp, more train.accumulation_steps, model.remat=full or offload, or lora.enabled=true take less of "
            "each"
        ) from None
    memory: Any = made.memory_analysis()
    return Program(
        arguments=memory.argument_size_in_bytes - repeated_bytes(shapes),
        temporaries=memory.temp_size_in_bytes,
        unaliased=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        collectives=collectives(made.as_text() or ""),
        seconds=time.perf_counter() - begun,
        host=memory.host_temp_size_in_bytes,
    )


def held(shapes: Any) -> int:
    """Bytes that one device holds of a tree of shapes with shardings; what stands in several places once."""
    return sum({id(leaf): _bytes(leaf) for leaf in jax.tree.leaves(shapes)}.values())


def repeated_bytes(shapes: Any) -> int:
    """Bytes of a device that the compiler counts again for leaves that stand in several places of a tree."""
    return sum(map(_bytes, jax.tree.leaves(shapes))) - held(shapes)


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
