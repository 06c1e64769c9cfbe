"""MFU: of devices whose peak is known; the others are named, CPUs log operations alone."""

from types import SimpleNamespace

import numpy as np

from jaxalign.models.config import ModelConfig
from jaxalign.models.flops import Pass
from jaxalign.rollout.traffic import DecodeTraffic
from jaxalign.training.core.speed import Speed

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=8, intermediate_size=20, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2,
    max_positions=32,
)  # fmt: skip


def speed(kind, platform="gpu", devices=4):
    said, passes = [], [Pass(config=CONFIG), Pass(config=CONFIG, learns="nothing")]
    flat = np.array([SimpleNamespace(device_kind=kind, platform=platform)] * devices)
    mesh = SimpleNamespace(devices=flat, size=devices)
    return Speed(SimpleNamespace(note=said.append), mesh, passes), said


def test_mfu_is_the_share_of_the_peak_of_all_devices():
    known, said = speed("NVIDIA H100 80GB HBM3")
    found = known.metrics(2 * 4 * 989e12, 4.0)
    assert found == {"time/model_flops_per_second": 2 * 989e12, "time/mfu": 0.5}
    assert not said


def test_an_unknown_kind_is_named_once_and_has_no_mfu():
    unknown, said = speed("NVIDIA B900")
    assert [unknown.metrics(8.0, 2.0) for _ in range(3)] == [{"time/model_flops_per_second": 4.0}] * 3
    assert said == ["devices: the peak of NVIDIA B900 is not known, so time/mfu and time/mbu are not logged"]


def test_a_cpu_has_no_mfu_and_is_not_named():
    cpu, said = speed("cpu", "cpu")
    assert cpu.metrics(8.0, 2.0) == {"time/model_flops_per_second": 4.0} and not said


def test_a_step_takes_the_sum_of_its_passes_and_none_is_not_a_speed_of_0():
    known, _ = speed("TPU v4")
    batch = {"lengths": np.array([5]), "mask": np.ones((1, 5), bool)}
    one, two = (each.flops(batch) for each in known.passes)
    assert known.flops(batch) == one + two > one > two > 0
    assert known.metrics(0.0, 1.0) == {}


def test_decoding_reads_a_share_of_the_bandwidth_of_one_device():
    found = speed("NVIDIA H100 80GB HBM3")[0].decode_metrics(DecodeTraffic(bytes=int(3.35e12), seconds=2.0))
    assert found == {"time/decode_bytes_per_second": 3.35e12 / 2, "time/mbu": 0.5}
    assert speed("cpu", "cpu")[0].decode_metrics(DecodeTraffic(bytes=8, seconds=2.0)) == {
        "time/decode_bytes_per_second": 4.0
    }
    assert speed("cpu", "cpu")[0].decode_metrics(DecodeTraffic()) == {}
