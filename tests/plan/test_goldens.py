"""What a step of 8B takes of each device is what it was when it was kept."""

import json

import jax
import pytest

from benchmarks.plan_goldens import CPU, GOLDENS, differences, model_folder, numbers
from jaxalign.cli.main import main


def test_bytes_and_collectives_of_8b_on_virtual_devices_are_those_that_were_kept(tmp_path, capsys):
    kept = json.loads(GOLDENS.read_text()).get(jax.__version__)
    if kept is None:
        pytest.skip(f"nothing is kept for jax {jax.__version__}")
    folder = model_folder(tmp_path / "8B", num_hidden_layers=2)
    assert main(["plan", *CPU, f"--model.path={folder}"]) == 0
    assert differences(kept["sft of two layers, cpux8"], numbers(capsys.readouterr().out)) == []


def test_a_difference_beyond_two_percent_is_told_and_so_is_a_new_collective():
    kept = {"total": [18.2], "all-gather": [609.0, 37.5]}
    assert differences(kept, {"total": [18.3], "all-gather": [609.0, 37.6]}) == []
    assert differences(kept, {"total": [18.2], "all-gather": [610.0, 37.5]}) != []
    assert differences(
        kept, {"total": [131.8], "all-gather": [609.0, 37.5], "all-reduce": [32.0, 140.0]}
    ) == [
        "all-reduce: nothing where it is [32.0, 140.0] now",
        "total: [18.2] where it is [131.8] now",
    ]


def test_numbers_are_read_from_what_is_printed():
    printed = """
  parameters, optimizer, frozen models, batch      11.2 GiB
  total                                        1,065.0 GiB of 80.0 GiB
  all-gather              609      37.5 GiB
    all-gather 32 x 112.0 MiB jit(update)
"""
    assert numbers(printed) == {
        "parameters, optimizer, frozen models, batch": [11.2],
        "total": [1065.0],
        "all-gather": [609.0, 37.5],
    }
