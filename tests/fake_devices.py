"""Devices that are not there, as far as the choice of implementations asks them."""

from types import SimpleNamespace

# As `jax.experimental.topologies` has it: its client says neither cuda nor rocm.
H100 = SimpleNamespace(
    platform="gpu",
    device_kind="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    client=SimpleNamespace(platform_version="PJRT C API"),
    memory_stats=dict,
)
AMD = SimpleNamespace(
    platform="gpu",
    device_kind="AMD Instinct MI300X",
    client=SimpleNamespace(platform_version="PJRT C API rocm 60300"),
    memory_stats=dict,
)
