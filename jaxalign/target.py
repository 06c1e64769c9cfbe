"""The device that a program is compiled for, by which kernels and products choose their implementations."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh

_COMPILING_FOR: ContextVar[Any] = ContextVar("compiling_for", default=None)


def target_device(mesh: Mesh | None = None) -> Any:
    """One of the devices that what is traced now will run on.

    Of the mesh where there is one; else that of `compiling_for`, else JAX's default device.
    """
    if mesh is not None:
        return mesh.devices.flat[0]
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    chosen = _COMPILING_FOR.get() or default
    return chosen if hasattr(chosen, "platform") else jax.devices(chosen)[0]


def platform(mesh: Mesh | None = None) -> str:
    """`cpu`, `gpu` or `tpu`: the platform of `target_device`."""
    return target_device(mesh).platform


def memory_of(device: Any) -> int:
    """Bytes that programs may use on a device; 0 where it does not say."""
    try:
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    except jax.errors.JaxRuntimeError:  # of a device that can only be compiled for
        return 0


def is_nvidia(device: Any) -> bool:
    """Whether a device is an NVIDIA GPU, also one that can only be compiled for."""
    if device.platform != "gpu":
        return False
    version = device.client.platform_version
    # What can only be compiled for has a client that does not say.
    return "cuda" in version or ("rocm" not in version and device.device_kind.startswith("NVIDIA"))


@contextmanager
def compiling_for(device: Any) -> Iterator[None]:
    """Within it programs are traced for a device that JAX does not run on by default, or that is not there at all.

    What was traced before or is traced within is forgotten, as JAX's caches do not know of it.
    """
    jax.clear_caches()
    token = _COMPILING_FOR.set(device)
    try:
        yield
    finally:
        _COMPILING_FOR.reset(token)
        jax.clear_caches()
