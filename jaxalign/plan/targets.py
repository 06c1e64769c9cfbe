"""Devices to plan for, by name: they need not be there, but their compiler must be."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from jaxalign.errors import ConfigError

GIB = 2**30
# What XLA must know of a GPU that is not there, in its text format; NVIDIA's data sheet of the H100 SXM.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
KINDS = {"h100": H100, "cpu": ""}
# Bytes of a device's memory.
MEMORY = {"h100": 80 * GIB}


@dataclass(frozen=True)
class Target:
    """A number of devices of one kind.

    Attributes:
      kind: `h100` (SXM, 80 GB), or `cpu` for virtual devices of this machine.
      count: how many.
    """

    kind: str
    count: int

    @property
    def memory(self) -> int:
        """Bytes of a device's memory; 0 where that says nothing."""
        return MEMORY.get(self.kind, 0)

    @property
    def compiler_options(self) -> dict[str, str]:
        """Options of XLA: it cannot try kernels out on a device that is not there."""
        return {} if self.kind == "cpu" else {"xla_gpu_autotune_level": "0"}


def parse_target(text: str) -> Target:
    """`h100x8` -> 8 H100s.

    Raises:
      ConfigError: an unknown kind, or no number.
    """
    match = re.fullmatch(r"([a-z]+\d*[a-z]*)x(\d+)", text)
    if match is None or match[1] not in KINDS or not int(match[2]):
        raise ConfigError(
            f"target: expected a kind of device and a number of them, {' or '.join(f'{k}x8' for k in KINDS)}, got "
            f"{text!r}"
        )
    return Target(match[1], int(match[2]))


def devices_of(target: Target) -> list[Any]:
    """Devices that programs can be compiled for. Call it before JAX starts its backends.

    Raises:
      ConfigError: the compiler is not installed, or JAX has begun with fewer virtual devices.
    """
    jax.config.update("jax_platforms", "cpu")
    if target.kind == "cpu":
        with suppress(RuntimeError):  # JAX has begun
            jax.config.update("jax_num_cpu_devices", target.count)
        if len(jax.devices()) < target.count:
            raise ConfigError(
                f"target: JAX has begun with {len(jax.devices())} devices, {target.count} are needed"
            )
        return jax.devices()[: target.count]
    from jax.experimental import topologies

    tools = importlib.util.find_spec("nvidia.cuda_nvcc") if importlib.util.find_spec("nvidia") else None
    if tools is None or importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise ConfigError(
            f"target: {target.kind} needs the compiler for NVIDIA GPUs, though no GPU: pip install 'jaxalign[cuda]'; "
            f"cpux{target.count} compiles for virtual devices, whose bytes and collectives differ"
        )
    # Where XLA looks for ptxas.
    folder = Path(next(iter(tools.submodule_search_locations or [""]))) / "bin"
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{folder}"
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=KINDS[target.kind], topology=f"1x1x{target.count}"
    )
    return list(topology.devices)


@contextmanager
def cudnn_of(target: Target) -> Iterator[None]:
    """Within it JAX traces cuDNN's attention for the target, not for the GPU of this machine, which it looks for."""
    if target.kind == "cpu":
        yield
        return
    module = "jax._src.cudnn.fused_attention_stablehlo."
    answers = {
        "check_compute_capability": lambda least: tuple(map(int, least.split("."))) <= (9, 0),
        "is_cuda_compute_capability_equal": lambda one: one == "9.0",
        "check_cudnn_version": lambda: 91000,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(module + name, answer))
        yield
