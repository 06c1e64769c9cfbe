"""What devices can do at most, by the name that JAX gives their kind."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """The data sheet's figures of one device.

    Attributes:
      flops: floating-point operations a second of dense products in bfloat16; float16 where there is no bfloat16 (T4,
        V100).
      bandwidth: bytes a second between the device and its memory.
    """

    flops: float
    bandwidth: float


# Pattern of a whole `device_kind` -> peak. A part of a card (MIG) matches none: it is less than the card.
# Sources: NVIDIA's data sheets, without sparsity; Google Cloud's pages of TPU versions.
PEAKS = {
    r"NVIDIA H200": Peak(989e12, 4.8e12),
    r"NVIDIA H100 PCIe": Peak(756e12, 2.0e12),
    r"NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12),
    r"NVIDIA A100-SXM4-40GB|NVIDIA A100-PCIE-40GB": Peak(312e12, 1.555e12),
    r"NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12),
    r"NVIDIA A100 80GB PCIe": Peak(312e12, 1.935e12),
    r"NVIDIA L4": Peak(121e12, 0.3e12),
    r"NVIDIA L40S": Peak(362e12, 0.864e12),
    r"NVIDIA GeForce RTX 4090": Peak(165e12, 1.008e12),
    r"(NVIDIA )?Tesla T4|NVIDIA T4": Peak(65e12, 0.32e12),
    r"(NVIDIA )?Tesla V100-SXM[23].*": Peak(125e12, 0.9e12),
    r"TPU v4": Peak(275e12, 1.2e12),
    r"TPU v5 lite|TPU v5e": Peak(197e12, 0.82e12),
    r"TPU v5p?": Peak(459e12, 2.765e12),
    r"TPU v6 lite|TPU v6e": Peak(918e12, 1.64e12),
}


def peak_of(device_kind: str) -> Peak | None:
    """The peak of a `jax.Device.device_kind`; None of an unknown one."""
    return next((peak for kind, peak in PEAKS.items() if re.fullmatch(kind, device_kind)), None)
