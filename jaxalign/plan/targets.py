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
from jax.experimental import topologies

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
# Google Cloud's names of slices, v5p-8: how many TensorCores (v5p, two a chip) or chips (v5e, v6e), and which grid of
# chips that is.
TPUS = {
    "v5p": (2, {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}),
    "v5e": (1, {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}),
    "v6e": (1, {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}),
}
# Bytes of a device's memory, by the data sheets of NVIDIA and Google Cloud.
MEMORY = {"h100": 84942979072, "v5p": 95 * GIB, "v5e": 16 * GIB, "v6e": 32 * GIB}

# Bytes a second that a device sends: NVLink to the 8 GPUs of a host, 400 Gbit/s a GPU between hosts; the ICI of a chip.
LINKS = {"h100": 450e9, "v5p": 600e9, "v5e": 200e9, "v6e": 400e9}
BETWEEN_HOSTS = 50e9
# Between slices, a chip's share of the data center's network: https://docs.cloud.google.com/tpu/docs/v5p (50 Gbit/s a
# chip), v5e and v6e (6.4 and 25.6 Tbit/s a Pod, of 256 chips).
BETWEEN_SLICES = {"v5p": 50e9 / 8, "v5e": 6.4e12 / 8 / 256, "v6e": 25.6e12 / 8 / 256}


@dataclass(frozen=True)
class Target:
    """A number of devices of one kind.

    Attributes:
      kind: `h100` (SXM, 80 GB), a TPU (`v5p`, `v5e`, `v6e`), or `cpu` for virtual devices of this machine.
      count: how many devices, of all slices; a TPU's is a chip.
      slices: of a TPU, into which the devices are split evenly.
    """

    kind: str
    count: int
    slices: int = 1

    def __str__(self) -> str:
        """The target as `parse_target` reads it."""
        if self.kind not in TPUS:
            return f"{self.kind}x{self.count}"
        each = f"{self.kind}-{self.count // self.slices * TPUS[self.kind][0]}"
        return each if self.slices == 1 else f"{each}x{self.slices}"

    @property
    def memory(self) -> int:
        """Bytes of a device's memory; 0 where that says nothing."""
        return MEMORY.get(self.kind, 0)

    @property
    def link(self) -> float:
        """Bytes a second that a device can send at most, to the farthest of the others; 0 where that says nothing."""
        return BETWEEN_HOSTS if self.kind == "h100" and self.count > 8 else LINKS.get(self.kind, 0.0)

    @property
    def link_between_slices(self) -> float:
        """Bytes a second that a device can send at most to other slices; 0 where there are none."""
        return BETWEEN_SLICES[self.kind] if self.slices > 1 else 0.0

    @property
    def compiler_options(self) -> dict[str, str]:
        """Options of XLA: it cannot try kernels out on a GPU that is not there."""
        return {"xla_gpu_autotune_level": "0"} if self.kind == "h100" else {}


def parse_target(text: str) -> Target:
    """`h100x8` -> 8 H100s; `v5p-8` -> the 4 chips of that slice; `v5e-16x2` -> 32 chips in two slices.

    Raises:
      ConfigError: an unknown kind, no number, or a slice that there is not.
    """
    if match := re.fullmatch(r"(h100|cpu)x([1-9]\d*)", text):
        return Target(match[1], int(match[2]))
    kind, _, rest = text.partition("-")
    if kind not in TPUS:
        raise ConfigError(
            "target: expected GPUs (h100x8), a TPU slice (v5p-8, v5e-8, v6e-8), several (v5e-16x2) or virtual "
            f"devices (cpux8), got {text!r}"
        )
    cores, grids = TPUS[kind]
    sizes = [cores * chips for chips in grids]
    match = re.fullmatch(r"(\d+)(?:x([2-9]|[1-9]\d+))?", rest)
    if not match or int(match[1]) not in sizes:
        raise ConfigError(
            f"target: expected {kind}-N with N one of {', '.join(map(str, sizes))}, or {kind}-Nx2 for two slices, got "
            f"{text!r}"
        )
    slices = int(match[2] or 1)
    return Target(kind, int(match[1]) // cores * slices, slices)


def devices_of(target: Target) -> list[Any]:
    """Devices that programs can be compiled for. Call it before JAX starts its backends.

    Raises:
      ConfigError: the compiler is not installed, or JAX has begun with fewer virtual devices.
    """
    jax.config.update("jax_platforms", "cpu")
    if target.kind == "cpu":
        with suppress(RuntimeError):  # JAX has begun
            asked = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
            jax.config.update("jax_num_cpu_devices", max(target.count, asked))
        if len(jax.devices()) < target.count:
            raise ConfigError(
                f"target: JAX has begun with {len(jax.devices())} devices, {target.count} are needed"
            )
        return jax.devices()[: target.count]
    return _tpus(target) if target.kind in TPUS else _gpus(target)


def _tpus(target: Target) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(_missing(target, "TPUs", "tpu"))
    # Else libtpu asks the network which TPU this machine belongs to.
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
        os.environ.setdefault(name, value)
    grid = TPUS[target.kind][1][target.count // target.slices]
    name, slices = f"{target.kind}:{grid}", target.slices
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices)


def _gpus(target: Target) -> list[Any]:
    tools = importlib.util.find_spec("nvidia.cuda_nvcc") if importlib.util.find_spec("nvidia") else None
    if tools is None or importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise ConfigError(_missing(target, "NVIDIA GPUs", "cuda"))
    # Where XLA looks for ptxas.
    folder = Path(next(iter(tools.submodule_search_locations or [""]))) / "bin"
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{folder}"
    return list(
        topologies.get_topology_desc(
            platform="cuda", target_config=H100, topology=f"1x1x{target.count}"
        ).devices
    )


def _missing(target: Target, of: str, extra: str) -> str:
    return (
        f"target: {target} needs the compiler for {of}, though none of them: pip install 'jaxalign[{extra}]'; "
        f"cpux{target.count} compiles for virtual devices, whose bytes and collectives differ"
    )


@contextmanager
def cudnn_of(target: Target) -> Iterator[None]:
    """Within it JAX traces cuDNN's attention for the target, not for the GPU of this machine, which it looks for."""
    if target.kind != "h100":
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
