"""The inputs of a case in `benchmarks/inputs.py`: made once for what they depend on."""

import dataclasses

import pytest

TINY = {"vocab": 64, "width": 16, "mlp": 32, "layers": 1, "heads": 2, "kv_heads": 2, "length": 32}


@pytest.fixture
def inputs(benchmark, monkeypatch):
    monkeypatch.setitem(benchmark("cases").MODELS, "S", TINY)
    return benchmark("inputs")


@pytest.fixture
def case(benchmark, inputs):
    return benchmark("cases").BY_NAME["sft-s"]


def made(folder):
    """When each file was made."""
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_inputs_are_made_once(inputs, case, tmp_path):
    inputs.write_inputs(case, tmp_path)
    before = made(tmp_path)
    # What the two sides do with them is no matter of theirs.
    inputs.write_inputs(dataclasses.replace(case, bf16=True, ours=("--train.packing=true",)), tmp_path)
    assert made(tmp_path) == before


@pytest.mark.parametrize("change", [{"chat": True}, {"task": "reward"}])
def test_inputs_of_another_case_are_made_again(inputs, case, tmp_path, change):
    inputs.write_inputs(case, tmp_path)
    rows = (tmp_path / "rows.json").read_text()
    inputs.write_inputs(dataclasses.replace(case, **change), tmp_path)
    assert (tmp_path / "rows.json").read_text() != rows


def test_inputs_that_are_half_there_are_made_again(inputs, case, tmp_path, monkeypatch):
    inputs.write_inputs(case, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(inputs, "make_rows", lambda case: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            inputs.write_inputs(dataclasses.replace(case, chat=True), tmp_path)
    (tmp_path / "rows.json").unlink()
    inputs.write_inputs(case, tmp_path)
    assert (tmp_path / "rows.json").is_file()
