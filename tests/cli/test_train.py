"""Training through the command line: what a user sees of a run, a signal, and a mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def arguments(tiny_model_folder, tmp_path):
    """A tiny SFT run that never ends by itself."""
    rows = [{"prompt": f"say {i}", "completion": f" {i * 7}"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "sft",
        f"--model.path={tiny_model_folder}",
        f"--data.train={tmp_path / 'rows.jsonl'}",
        "--data.template=plain",
        "--data.max_length=32",
        "--train.batch_size=4",
        "--train.steps=1000000",
        "--optimizer.schedule=constant",
        "--run.log_every=1",
        "--run.progress=false",
        "--sampling.max_new_tokens=4",
        f"--output={tmp_path / 'run'}",
    ]


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxalign", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_in(folder):
    """Steps in the log, without a line that is being written."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return [row["step"] for row in map(json.loads, lines) if "train/loss" in row]


def stop_after(process, folder, step, number):
    """Sends a signal once the log has a step; gives (status, standard error)."""
    limit = time.monotonic() + 300  # a loaded machine compiles slowly
    while not any(s >= step for s in steps_in(folder)) and process.poll() is None:
        assert time.monotonic() < limit, "the run does not get on"
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


@pytest.mark.long
def test_signal_saves_and_the_same_command_with_resume_goes_on(arguments, tmp_path):
    folder = tmp_path / "run"
    status, errors = stop_after(start(arguments), folder, 3, signal.SIGTERM)
    assert status == 143, errors
    assert "Traceback" not in errors
    assert "--resume" in errors
    done = steps_in(folder)
    assert any((folder / "checkpoints").iterdir())

    status, errors = stop_after(start([*arguments, "--resume"]), folder, done[-1] + 3, signal.SIGINT)
    assert status == 130, errors
    assert "Traceback" not in errors
    later = steps_in(folder)
    assert later == list(range(1, later[-1] + 1))
    assert later[-1] >= done[-1] + 3


def test_folder_of_another_run_is_refused_in_one_line(arguments, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metadata.json").write_text("{}")
    process = start(arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert str(tmp_path / "run") in errors
    assert errors.count("\n") == 1
