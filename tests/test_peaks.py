"""Peaks are found by the names that JAX gives devices."""

import pytest

from jaxalign.peaks import peak_of


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_a_device_has_the_peak_of_its_data_sheet(kind, teraflops):
    peak = peak_of(kind)
    assert peak.flops == teraflops * 1e12
    # A device reads 30 to 700 times fewer bytes than it has operations.
    assert 1 / 700 < peak.bandwidth / peak.flops < 1 / 30


@pytest.mark.parametrize("kind", ["cpu", "", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA L40", "TPU v9"])
def test_a_part_of_a_card_and_an_unknown_one_have_none(kind):
    assert peak_of(kind) is None
