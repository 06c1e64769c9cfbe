"""`jaxalign plan`: what it prints of a step, and what it refuses."""

import math
import re
from pathlib import Path

import jax
import pytest

from jaxalign.cli.main import main
from jaxalign.errors import ConfigError
from jaxalign.mesh import MeshConfig, make_mesh, replicated
from jaxalign.models import load_config
from jaxalign.models.flops import training_pass
from jaxalign.plan import plan
from jaxalign.plan.collectives import Collective
from jaxalign.plan.figures import Figures, smaller
from jaxalign.plan.program import DoesNotFit, Program, compiled, repeated_bytes
from jaxalign.plan.report import memory, sending, speed, totals
from jaxalign.plan.targets import TPUS, Target, parse_target

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


@pytest.mark.long
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


@pytest.mark.long
def test_a_plan_of_a_mixture_has_its_experts_on_their_axis(capsys):
    """A device has some experts whole instead of a part of each: tokens travel, and fewer weights are gathered."""
    folder, largest = GOLDEN / "mixtral", {}
    for axes in ("fsdp=4", "expert=4"):
        status = main(
            ["plan", "sft", f"--model.path={folder}", f"--mesh.{axes}", "--target=cpux4", "--tokens=16",
             "--train.batch_size=4", "--collectives=99"]
        )  # fmt: skip
        printed = capsys.readouterr().out
        assert status == 0 and f"(mesh {axes})" in printed
        largest[axes] = max(float(size) for size in re.findall(r"    all-gather .* x ([\d.]+) KiB", printed))
    shape = load_config(folder)
    experts = shape.mixture.experts * shape.hidden_size * shape.intermediate_size * 4 / 1024
    assert largest["expert=4"] < experts <= largest["fsdp=4"]


def test_a_steps_time_is_estimated_at_four_tenths_of_the_peak():
    assert list(speed(989e12, "NVIDIA H100 80GB HBM3"))[1].startswith(
        "  at 40% MFU of 989 TFLOP/s: 2.5 s (an estimate"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["sft"], "model.path: expected a folder with a config.json"),
        (["sft", "--model.path=nowhere"], "nowhere"),
        (
            [
                "sft",
                f"--model.path={GOLDEN / 'mixtral'}",
                "--target=cpux3",
                "--mesh.expert=3",
                "--train.batch_size=3",
            ],
            "mesh.expert=3: the 4 experts of model must be divisible by it; nearest that fits: mesh.expert=2 or "
            "mesh.expert=4",
        ),
        (["tfpo"], "model.path or patient.path: expected a folder with a config.json; got nothing"),
        (["generate"], "plan generate: expected a command that trains"),
        (
            ["sft", "--target=h100"],
            "target: expected GPUs (h100x8), a TPU slice (v5p-8, v5e-8, v6e-8), several (v5e-16x2) or",
        ),
        (
            ["sft", "--target=v5p-12"],
            "expected v5p-N with N one of 8, 16, 32, 64, 128, 256, 512, or v5p-Nx2 for two slices, got 'v5p-12'",
        ),
        (["sft", "--tokens=1"], "tokens must be 2 or more"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(arguments, problem, capsys):
    assert main(["plan", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and problem in lines[0]


@pytest.mark.long
def test_a_plan_of_grpo_tells_the_larger_of_step_and_rollout(tiny_model_folder, capsys):
    status = main(
        ["plan", "grpo", f"--model.path={tiny_model_folder}", "--mesh.fsdp=2", "--target=cpux2", "--tokens=32",
         "--train.prompts=2", "--sampling.num_samples=2", "--sampling.max_new_tokens=8", "--loss.beta=0.1"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "while it samples: 4 completions, 4 at once, of 8 tokens after 24" in printed

    def size(name):
        number, unit = re.search(rf"{name} +([\d.,]+) (KiB|MiB)", printed).groups()
        return float(number) * {"KiB": 1, "MiB": 1024}[unit]

    assert size("total") > size("reference model") > 0
    assert size("at most, decoding") >= size("keys and values")
    assert size("needs at most") == max(size("total"), size("total of a rollout"))
    assert "none of a token" in printed
    assert "a token of 4 rows reads" in printed


def test_a_server_that_samples_is_said_not_to_be_planned(tiny_model_folder, capsys):
    status = main(
        ["plan", "grpo", f"--model.path={tiny_model_folder}", "--target=cpux1", "--tokens=16", "--train.prompts=1",
         "--sampling.num_samples=2", "--sampling.max_new_tokens=8", "--loss.beta=0", "--rollout.engine.kind=vllm",
         "--rollout.engine.url=http://127.0.0.1:1"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "sampled by a server, whose memory is not planned" in printed and "keys and values" not in printed


def test_a_plan_of_tfpo_names_the_patient(tiny_model_folder, capsys):
    arguments = ["plan", "tfpo", f"--patient.path={tiny_model_folder}", "--target=cpux1", "--tokens=16"]
    assert main([*arguments, "--train.batch_size=1"]) == 0
    assert re.search(
        r"the patient, [\d.]+ [KM]iB of weights a device, scores tokens", capsys.readouterr().out
    )
    assert main([*arguments, "--lora.enabled=true", "--dimensions=[helpfulness, safety]"]) == 2
    assert "plan tfpo: dimensions: a single doctor alone is planned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["grpo", "--rollout.exact=true"], "plan grpo: rollout.exact=true is not planned"),
        (["ppo", "--critic.init=reward"], "plan ppo: critic.init=policy alone is planned, got reward"),
        (["sft", "--train.batch_tokens=64"], "plan sft: train.batch_tokens is not planned"),
    ],
)
def test_settings_that_are_not_planned_are_refused_by_name(arguments, problem, tiny_model_folder, capsys):
    assert main(["plan", *arguments, f"--model.path={tiny_model_folder}", "--target=cpux1"]) == 2
    assert problem in capsys.readouterr().err


def test_a_compiler_that_refuses_a_program_is_one_line():
    class Lowered:
        def compile(self, **options):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.1G of 15.75G hbm. Exceeded"
            )

    with pytest.raises(
        DoesNotFit, match=r"v5e-8: .* does not fit a device's memory: it needs 20.1G of 15.75G;"
    ):
        compiled(Lowered, (), Target("v5e", 8))
    assert plan.DoesNotFit is DoesNotFit


def test_devices_of_the_mesh_and_of_the_target_are_as_many(tiny_model_folder, capsys):
    assert main(["plan", "sft", f"--model.path={tiny_model_folder}", "--mesh.fsdp=2", "--target=cpux8"]) == 2
    assert "set mesh.data=-1, or --target=cpux2" in capsys.readouterr().err


def test_bytes_between_slices_have_lines_and_a_time_of_their_own():
    within = Collective("all-reduce", 2, 100_000_000_000, False, "")
    across = Collective("all-reduce", 1, 6_250_000_000, False, "", across=True)
    time = "  collectives at 200 GB/s: 2 s, in part meanwhile"
    assert list(sending([within], parse_target("v5e-16"))) == [time]
    # Of two slices each sends the other all it has, once; of four, one and a half times.
    both = [within, across]
    apart = "  between slices at 3.12 GB/s: 2 s, in part meanwhile"
    assert list(sending(both, parse_target("v5e-16x2"))) == [time, apart]
    assert list(sending(both, parse_target("v5e-16x4"))) == [time, apart.replace("2 s", "3 s")]
    assert [line.split()[:-2] for line in totals(both, 0)] == [
        ["all-reduce", "2"],
        ["all-reduce", "between", "slices", "1"],
    ]


def test_fewer_devices_are_advised_only_where_there_is_such_a_target():
    assert smaller(parse_target("v5e-16x2"), 16) == ", or --target=v5e-8x2"
    assert smaller(parse_target("v5e-16x2"), 17) == ""


def test_what_waits_in_the_hosts_memory_is_told():
    def lines(host):
        found = Figures(Program(3 << 30, 2 << 30, 0, [], 0.0, host), 0.0, 0, {}, None)
        return list(memory(parse_target("v5p-8"), found, samples=False))

    assert lines(8 << 30)[-1].split() == ["of", "its", "host's", "memory", "8.0", "GiB"]
    assert lines(8 << 30)[:-1] == lines(0)


@pytest.mark.parametrize("kind", TPUS)
def test_a_slice_has_as_many_chips_as_its_grid(kind):
    for chips, grid in TPUS[kind][1].items():
        assert math.prod(map(int, grid.split("x"))) == chips


def test_targets_are_read_by_kind_and_number():
    assert parse_target("h100x256") == Target("h100", 256)
    # Two TensorCores of a v5p are a chip, and a chip is a device.
    assert parse_target("v5p-16") == Target("v5p", 8)
    assert parse_target("v5e-64") == Target("v5e", 64)
    assert parse_target("v5p-16x2") == Target("v5p", 16, slices=2)
    for text in ("h100x256", "v5p-16", "v5e-64", "v6e-8", "cpux3", "v5p-16x2", "v5e-16x12"):
        assert str(parse_target(text)) == text
    for text in ("v5e-16x1", "v5e-16x", "v5e-16x02", "v5e-12x2", "v5e-x2", "v5e-16x2x2"):
        with pytest.raises(ConfigError, match="target: expected v5e-N"):
            parse_target(text)
    for text in ("", "h100x0", "a100x8", "8", "h100x-1", "v5p", "v5p-7", "v5px8", "v5e-x"):
        with pytest.raises(ConfigError, match="target: expected"):
            parse_target(text)


def test_what_stands_in_two_places_counts_once(devices):
    whole = replicated(make_mesh(MeshConfig(fsdp=2), devices[:2]))
    one, other = (jax.ShapeDtypeStruct((4, 8), "bfloat16", sharding=whole) for _ in range(2))
    assert repeated_bytes({"base": {"w": one}, "reference": {"w": one}, "more": other}) == 64
