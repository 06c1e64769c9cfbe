"""`jaxalign plan`: what it prints of a step, and what it refuses."""

import math
import re

import jax
import pytest

from jaxalign.cli.main import main
from jaxalign.errors import ConfigError
from jaxalign.mesh import MeshConfig, make_mesh, replicated
from jaxalign.models import load_config
from jaxalign.models.flops import training_pass
from jaxalign.plan.plan import repeated_bytes, speed
from jaxalign.plan.targets import TPUS, Target, parse_target


def test_a_plan_tells_bytes_and_collectives_of_virtual_devices(tiny_model_folder, capsys):
    status = main(
        ["plan", "sft", f"--model.path={tiny_model_folder}", "--mesh.fsdp=8", "--target=cpux8", "--tokens=16",
         "--train.batch_size=8", "--collectives=1"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "sft of" in printed and "(mesh fsdp=8)" in printed and "virtual CPU devices" in printed
    state, rest, total = (
        float(re.search(rf"{name} +([\d.,]+) (?:KiB|MiB)", printed)[1])
        for name in ("batch", "temporaries", "total")
    )
    assert 0 < state < total and 0 < rest <= total
    assert re.search(r"all-gather +\d+", printed)
    shape = load_config(tiny_model_folder)
    # A device has one row of 16 tokens, of which all but the first count.
    flops = training_pass(shape, None).of_rows([16], 15)
    assert f"model FLOPs of a step, of a device: {flops:.3g}\n" in printed
    # A virtual device has no peak.
    assert "an estimate" not in printed


def test_a_steps_time_is_estimated_at_four_tenths_of_the_peak():
    assert list(speed(989e12, "NVIDIA H100 80GB HBM3"))[1].startswith(
        "  at 40% MFU of 989 TFLOP/s: 2.5 s (an estimate"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["sft"], "model.path: expected a folder with a config.json"),
        (["sft", "--model.path=nowhere"], "nowhere"),
        (["tfpo", "--patient.path=x"], "plan tfpo: expected one of sft, reward, dpo, grpo, online-dpo, ppo"),
        (["generate"], "plan generate: expected a command that trains"),
        (
            ["sft", "--target=h100"],
            "target: expected GPUs (h100x8), a TPU slice (v5p-8, v5e-8, v6e-8) or virtual",
        ),
        (
            ["sft", "--target=v5p-12"],
            "target: expected v5p-N with N one of 8, 16, 32, 64, 128, 256, 512, got 'v5p-12'",
        ),
        (["sft", "--tokens=1"], "tokens must be 2 or more"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(arguments, problem, capsys):
    assert main(["plan", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and problem in lines[0]


def test_devices_of_the_mesh_and_of_the_target_are_as_many(tiny_model_folder, capsys):
    assert main(["plan", "sft", f"--model.path={tiny_model_folder}", "--mesh.fsdp=2", "--target=cpux8"]) == 2
    assert "set mesh.data=-1, or --target=cpux2" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TPUS)
def test_a_slice_has_as_many_chips_as_its_grid(kind):
    for chips, grid in TPUS[kind][1].items():
        assert math.prod(map(int, grid.split("x"))) == chips


def test_targets_are_read_by_kind_and_number():
    assert parse_target("h100x256") == Target("h100", 256)
    # Two TensorCores of a v5p are a chip, and a chip is a device.
    assert parse_target("v5p-16") == Target("v5p", 8)
    assert parse_target("v5e-64") == Target("v5e", 64)
    for text in ("h100x256", "v5p-16", "v5e-64", "v6e-8", "cpux3"):
        assert str(parse_target(text)) == text
    for text in ("", "h100x0", "a100x8", "8", "h100x-1", "v5p", "v5p-7", "v5px8", "v5e-x"):
        with pytest.raises(ConfigError, match="target: expected"):
            parse_target(text)


def test_what_stands_in_two_places_counts_once(devices):
    whole = replicated(make_mesh(MeshConfig(fsdp=2), devices[:2]))
    one, other = (jax.ShapeDtypeStruct((4, 8), "bfloat16", sharding=whole) for _ in range(2))
    assert repeated_bytes({"base": {"w": one}, "reference": {"w": one}, "more": other}) == 64
