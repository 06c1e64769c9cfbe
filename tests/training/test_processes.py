"""Training in two processes equals training in one, and none waits for another that is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.cli.main import main
from jaxalign.runs import records
from tests.rollout.stub_server import StubServer

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("processes_child.py")
NAMES = ["sft", "distill", "reward", "dpo", "tfpo", "ppo", "grpo", "online-dpo", "grpo-server"]
HEADS = {
    "linear": models.HeadConfig(),
    "other": models.HeadConfig(),
    "mlp": models.HeadConfig(kind="mlp", hidden_size=8),
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(join: str, devices: int, *arguments: object, **environment: object) -> subprocess.Popen:
    own = {"JAX_NUM_CPU_DEVICES": devices, "PYTHONPATH": ROOT, **environment}
    environment = os.environ | {name: str(value) for name, value in own.items()}
    command = [sys.executable, str(CHILD), join, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_two(*arguments: object, **environment: object) -> list[subprocess.Popen]:
    port = free_port()
    return [start(f"127.0.0.1:{port},2,{rank}", 1, *arguments, **environment) for rank in range(2)]


def make_models(policy: Path, folder: Path) -> Path:
    """Reward models on the policy's trunk, one of them of steps; and a teacher."""
    trunk, tokenizer = models.load_pretrained(policy), models.load_tokenizer(policy)
    for number, (name, head) in enumerate(HEADS.items()):
        model = models.create_scalar_model(trunk, head, key=jax.random.key(number))
        models.save_reward_model(model, folder / name, tokenizer=tokenizer)
    steps = models.create_scalar_model(trunk, key=jax.random.key(9), steps=models.StepConfig(separator="e"))
    models.save_reward_model(steps, folder / "steps", tokenizer=tokenizer)
    teacher = models.create(trunk.config, key=jax.random.key(1))
    models.save_pretrained(teacher, folder / "teacher", tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def runs(tiny_model_folder, pairs_file, tmp_path_factory):
    """Folders of all trainers' runs in one process of two devices and in two of one, and what all printed."""
    folder = tmp_path_factory.mktemp("processes")
    given = ["--mesh.fsdp=2", tiny_model_folder, pairs_file]
    others = {"MODELS": make_models(tiny_model_folder, folder / "models")}
    with StubServer(tiny_model_folder) as first, StubServer(tiny_model_folder) as second:
        children = [start("false", 2, *given, folder / "one", *NAMES, **others, SERVER=first.url)]
        children += start_two(*given, folder / "two", *NAMES, **others, SERVER=second.url)
        said = [child.communicate(timeout=600)[0] for child in children]
        asked = [server.requests for server in (first, second)]
    assert [child.returncode for child in children] == [0, 0, 0], "\n---\n".join(said)
    return SimpleNamespace(one=folder / "one", two=folder / "two", said=said, asked=asked)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_to_the_bits_of_one(runs, name):
    one, two = runs.one / name, runs.two / name

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


@pytest.mark.parametrize("name", ["sft", "online-dpo"])
def test_two_processes_give_the_answers_of_one(runs, name):
    one, two = (
        [row for row in records.read(folder / name / "samples.jsonl") if row.get("source") == "eval.generate"]
        for folder in (runs.one, runs.two)
    )
    assert one == two
    assert [row["step"] for row in one] == [0] * 6 + [2] * 6 + [3] * 6
    measured = [
        row for row in records.read(runs.two / name / "metrics.jsonl") if "eval/generate/reward" in row
    ]
    assert [row["step"] for row in measured] == [0, 2, 3]
    assert all(("eval/generate/win_rate" if name == "sft" else "eval/generate/kl") in row for row in measured)


def test_the_first_of_several_processes_alone_says_and_writes_what_all_did(runs):
    _, first, second = runs.said
    assert first.count("results:") == len(NAMES)
    assert "results:" not in second
    assert len((runs.two / "grpo" / "run.log").read_text().split("started: grpo")) == 2


def test_two_processes_of_one_cache_tokenize_what_one_does(runs):
    one, *two = (int(said.partition("written: ")[2]) for said in runs.said)
    assert one == sum(two) == len(list((runs.two / "cache" / "data").iterdir())) > 1


def test_a_server_is_asked_by_one_of_two_processes_alone(runs):
    one, two = (
        sorted(json.dumps(body) for path, body in asked if path == "/v1/completions") for asked in runs.asked
    )
    assert one == two and len(one) > 3
    assert [[path for path, _ in asked].count("/collective_rpc") for asked in runs.asked] == [4, 4]
    assert not (runs.two / "grpo-server" / "engine").exists()


def test_a_run_of_two_processes_goes_on_in_one(runs, tiny_model_folder, pairs_file):
    from tests.training import processes_child

    two = runs.two
    given = (str(tiny_model_folder), str(pairs_file), str(two), "--resume", "--train.steps=4")
    assert processes_child.train("sft", "false", "--mesh.data=1", *given) == 0
    said = (two / "sft" / "run.log").read_text()
    assert (
        "resumed on another mesh (data=1, fsdp=1, expert=1, context=1, tensor=1 where it was data=1, fsdp=2, "
        "expert=1, context=1, tensor=1)" in said
    )
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
