"""Training in two processes equals training in one, and none waits for another that is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from jaxalign.cli.main import main
from jaxalign.runs import records

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("processes_child.py")
NAMES = ["sft", "reward", "dpo", "tfpo", "ppo", "grpo", "online-dpo"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(join: str, devices: int, *arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(CHILD), join, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_two(*arguments: object) -> list[subprocess.Popen]:
    port = free_port()
    return [start(f"127.0.0.1:{port},2,{rank}", 1, *arguments) for rank in range(2)]


@pytest.fixture(scope="module")
def runs(tiny_model_folder, pairs_file, tmp_path_factory):
    """Folders of all trainers' runs in one process of two devices and in two of one, and what the latter printed."""
    folder = tmp_path_factory.mktemp("processes")
    given = ["--mesh.fsdp=2", tiny_model_folder, pairs_file]
    children = [start("false", 2, *given, folder / "one", *NAMES), *start_two(*given, folder / "two", *NAMES)]
    said = [child.communicate(timeout=600)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], "\n---\n".join(said)
    return folder / "one", folder / "two", said[1:]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_to_the_bits_of_one(runs, name):
    one, two = (folder / name for folder in runs[:2])

    def numbers(folder):
        rows = records.read(folder / "metrics.jsonl")
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    assert numbers(two) == numbers(one)
    assert max(row["step"] for row in numbers(two)) == 3
    exported = [path.relative_to(one) for path in sorted((one / "export").rglob("*.safetensors"))]
    assert exported
    for path in exported:
        ours, theirs = load_file(two / path), load_file(one / path)
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours), path


def test_the_first_of_several_processes_alone_says_and_writes_what_all_did(runs):
    _, two, (first, second) = runs
    assert first.count("results:") == len(NAMES)
    assert "results:" not in second
    assert len((two / "grpo" / "run.log").read_text().split("started: grpo")) == 2


def test_a_run_of_two_processes_goes_on_in_one(runs, tiny_model_folder, pairs_file):
    from tests.training import processes_child

    _, two, _ = runs
    given = (str(tiny_model_folder), str(pairs_file), str(two), "--resume", "--train.steps=4")
    assert processes_child.train("sft", "false", "--mesh.data=1", *given) == 0
    said = (two / "sft" / "run.log").read_text()
    assert "resumed on another mesh (data=1, fsdp=1, tensor=1 where it was data=1, fsdp=2, tensor=1)" in said
    assert [row["step"] for row in records.read(two / "sft" / "metrics.jsonl") if "train/loss" in row] == [
        1,
        2,
        3,
        4,
    ]
    assert json.loads((two / "sft" / "metadata.json").read_text())["finished"]


def test_a_process_ends_with_a_line_when_another_was_killed(tiny_model_folder, pairs_file, tmp_path):
    more = ["--train.steps=100000", "--run.save_every=5"]
    children = start_two("--mesh.data=2", tiny_model_folder, pairs_file, tmp_path, "sft", *more)
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "sft" / "checkpoints" / "5").is_dir() and time.monotonic() < until:
            if children[0].poll() is not None:
                break
            time.sleep(0.2)
        children[1].send_signal(signal.SIGKILL)
        said, _ = children[0].communicate(timeout=60)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert children[0].returncode != 0
    assert "another process of the job ended" in said or "another task died" in said


def test_a_command_that_cannot_join_says_how(capsys, tmp_path):
    for wrong, said in (
        ("often", "expected auto, true, false or ADDRESS:PORT,NUMBER,RANK"),
        ("localhost:1,2,2", "the last of 2 processes is 1"),
    ):
        assert main(["sft", f"--distributed={wrong}", f"--output={tmp_path / 'run'}"]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
