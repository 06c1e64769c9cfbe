"""What fits a device is found by few compilations, and ends in a command that can be run."""

import math
import shlex
from types import SimpleNamespace

import pytest

from jaxalign.cli.main import COMMANDS, main, read_settings
from jaxalign.plan import fit, targets
from jaxalign.plan.fit import Choice, first_that_fits, fitting, line_to_run
from jaxalign.plan.targets import Target
from jaxalign.training.sft import SFTConfig


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_the_first_that_fits_is_found_in_few_steps(size):
    for first in range(size + 1):
        for least in range(min(first, size - 1) + 1):
            asked = []

            def fits(place, first=first, asked=asked):
                asked.append(place)
                return place >= first

            found = first_that_fits(range(size), fits, least)
            assert found == (first if first < size else None)
            assert len(asked) <= 2 + math.ceil(math.log2(size))
    assert first_that_fits([], lambda n: True) is None


def searched(monkeypatch, config, memory, need, *, sampling=0):
    """The choices for a device of so many bytes, where a step needs `need(level, rows)`; and what was compiled."""
    asked = []

    def step_figures(command, config, target, tokens):
        rows = fit.rows_of_step(config) // config.train.accumulation_steps
        asked.append((config.model.remat, rows))
        return SimpleNamespace(total=need(config.model.remat, rows), seconds=1.0)

    monkeypatch.setattr(fit, "step_figures", step_figures)
    monkeypatch.setitem(targets.MEMORY, "cpu", memory)
    found = SimpleNamespace(
        while_learning=need("none", 16),
        while_sampling=sampling,
        patient=0,
        beside={"reference model": 5},
        own=2,
    )
    return fitting("sft", config, Target("cpu", 1), 16, found, lambda line: None), asked


KEPT = {"none": 10, "minimal": 4, "full": 1, "offload": 0}


def test_each_level_has_the_largest_micro_batch_that_fits(monkeypatch):
    config = read_settings(COMMANDS["sft"], ["--train.batch_size=16"])
    choices, asked = searched(monkeypatch, config, 100, lambda level, rows: 20 + KEPT[level] * rows)
    # 95 bytes, of which 20 + 7 are taken.
    assert choices == [Choice("none", 4, 4, 67), Choice("minimal", 1, 16, 91), Choice("full", 1, 16, 43)]
    assert len(asked) == len(set(asked)) == 5


def test_a_level_that_does_not_fit_is_left_out_and_so_is_all_where_the_rollout_does_not(monkeypatch):
    config = read_settings(COMMANDS["sft"], ["--train.batch_size=16"])
    choices, _ = searched(monkeypatch, config, 100, lambda level, rows: 66 + 5 * KEPT[level] * rows)
    assert choices == [Choice("minimal", 16, 1, 93), Choice("full", 4, 4, 93)]
    assert searched(monkeypatch, config, 100, lambda level, rows: 1, sampling=96)[0] == []


def test_the_hosts_memory_is_the_last_resort(monkeypatch):
    config = read_settings(COMMANDS["sft"], ["--train.batch_size=16"])

    def need(level, rows):
        return 60 + 30 * KEPT[level] + rows

    choices, _ = searched(monkeypatch, config, 100, need)
    assert choices == [Choice("offload", 1, 16, 83)]
    found = SimpleNamespace(while_sampling=0)
    told = list(fit.report("sft", config, Target("cpu", 1), choices, found, file=None, typed=[]))
    assert told[3] == "  remat=full: nothing" and told[4].startswith("  remat=offload: micro-batches of 16 ")
    # Not where it cannot help.
    sampling = searched(monkeypatch, config, 100, need, sampling=96)
    assert sampling[0] == [] and "offload" not in {level for level, _ in sampling[1]}


def test_the_line_to_run_has_what_was_typed_and_what_fits():
    settings = {"model.remat": "minimal", "train.accumulation_steps": 4}
    typed = [("model", "a b"), ("train.accumulation_steps", "2"), ("mesh.fsdp", "8")]
    line = line_to_run("sft", SFTConfig, settings, file=None, typed=typed)
    assert line == (
        "jaxalign sft '--model=a b' --mesh.fsdp=8 --model.remat=minimal --train.accumulation_steps=4"
    )
    words = shlex.split(line)
    config = read_settings(COMMANDS["sft"], words[2:])
    assert (config.model.remat, config.train.accumulation_steps, config.model.path) == ("minimal", 4, "a b")


def test_a_default_is_written_only_where_something_else_was_asked_for():
    settings = {"model.remat": "none", "train.accumulation_steps": 1}
    assert line_to_run("sft", SFTConfig, settings, file=None, typed=[]) == "jaxalign sft"
    typed = [("model.remat", "full")]
    assert (
        line_to_run("sft", SFTConfig, settings, file=None, typed=typed) == "jaxalign sft --model.remat=none"
    )
    group = [("train", "{accumulation_steps: 2}")]
    words = shlex.split(line_to_run("sft", SFTConfig, settings, file=None, typed=group))
    assert read_settings(COMMANDS["sft"], words[2:]).train.accumulation_steps == 1
    assert line_to_run("sft", SFTConfig, settings, file="x.yaml", typed=[]) == (
        "jaxalign sft --config=x.yaml --model.remat=none --train.accumulation_steps=1"
    )


@pytest.mark.long
def test_the_command_finds_what_fits_by_compiling(tiny_model_folder, monkeypatch, capsys):
    monkeypatch.setitem(targets.MEMORY, "cpu", 1 << 40)
    arguments = ["plan", "sft", f"--model.path={tiny_model_folder}", "--target=cpux1", "--tokens=16"]
    assert main([*arguments, "--train.batch_size=1", "--model.remat=full", "--fit=true"]) == 0
    out, err = capsys.readouterr()
    assert "remat=none: micro-batches of 1 (train.accumulation_steps=1)" in out
    assert f"  jaxalign sft --model.path={tiny_model_folder} --train.batch_size=1 --model.remat=none\n" in out
    assert out.rstrip().endswith("(data.train is not set yet)")
    assert "fit: remat=minimal, 1 rows a micro-batch: " in err and "fit: remat=full" not in err


def test_what_to_do_is_said_where_nothing_fits(monkeypatch):
    monkeypatch.setitem(targets.MEMORY, "cpu", 1 << 30)
    config = read_settings(COMMANDS["sft"], [])

    def last(sampling):
        found = SimpleNamespace(while_sampling=sampling)
        return list(fit.report("sft", config, Target("cpu", 1), [], found, file=None, typed=[]))[-2]

    assert last(0).startswith("nothing fits: more devices along mesh.fsdp")
    assert last(1 << 30).startswith("the rollout does not fit")


def test_devices_without_a_memory_of_their_own_are_refused(tiny_model_folder, capsys):
    assert main(["plan", "sft", f"--model.path={tiny_model_folder}", "--target=cpux1", "--fit=true"]) == 2
    assert "fit=true: cpux1 has no memory of its own to fit" in capsys.readouterr().err
