"""The examples run, and learn what they say."""

import importlib.util
import json
import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxalign.cli import main as cli
from jaxalign.runs import report

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CLUSTER = EXAMPLES / "cluster"
# Fields of JobSet's v1alpha2, and of the Jobs and pods in it, that an example may have.
JOBSET = {"replicatedJobs", "network", "successPolicy", "failurePolicy", "suspend", "coordinator"}
REPLICATED_JOB = {"name", "groupName", "template", "replicas", "dependsOn"}
JOB = {"parallelism", "completions", "completionMode", "backoffLimit", "template"}


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dpo_of_a_plain_jax_model():
    losses, accuracy = load("dpo_plain_jax").train()
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5)
    assert losses[-1] < 0.2
    assert accuracy == 1.0


@pytest.mark.long
def test_kto_of_a_linen_model():
    losses, desirable, undesirable = load("kto_linen").train()
    assert losses[0] == pytest.approx(0.5, abs=1e-5)
    assert losses[-1] < 0.4
    assert desirable > 1.0 > -1.0 > undesirable


def test_grpo_of_an_equinox_model():
    pytest.importorskip("equinox", reason="the Equinox example needs equinox")
    rewards = load("grpo_equinox").train()
    assert rewards[0] < 0.4
    assert rewards[-1] > 0.9


def test_the_chat_demos_pairs_show_the_taste_that_it_counts_and_its_questions_are_others():
    demo = load("demo_chat")
    rows = [json.loads(line) for line in demo.PAIRS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 40 and len({row["prompt"] for row in rows}) == len(rows)
    assert {demo.sentences(row["chosen"]) for row in rows} == {2}
    assert min(demo.sentences(row["rejected"]) for row in rows) > 4
    assert not {row["prompt"] for row in rows} & set(demo.QUESTIONS)
    assert demo.sentences("One. Two, cut o") == 2 and demo.sentences("Steps:\n1. Boil.\n2. Eat.") == 3


@pytest.mark.long
def test_the_chat_demo_answers_before_and_after_and_leaves_a_run_to_chat_with(
    tiny_model_folder, tmp_path, monkeypatch, capsys
):
    demo = load("demo_chat")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(f'{{"prompt": "{a}?", "chosen": "{a}. {a}.", "rejected": "no"}}\n' for a in "abcdefghijkl")
    )
    monkeypatch.setattr(demo, "PAIRS", pairs)
    monkeypatch.setattr(demo, "QUESTIONS", ("x?", "y?"))
    train = demo.train
    monkeypatch.setattr(demo, "train", lambda model, output: train(model, output, steps=2, new_tokens=4))
    demo.main(str(tiny_model_folder), str(tmp_path / "out"))
    shown = capsys.readouterr().out
    assert (
        "== x?" in shown
        and "answers of at most two sentences: " in shown
        and f"chat {tmp_path}/out/run" in shown
    )
    assert (tmp_path / "out" / "run" / "adapter").is_dir()
    assert len((tmp_path / "out" / "after.jsonl").read_text().splitlines()) == 2


@pytest.mark.long
def test_dpo_and_grpo_called_from_python(tiny_model_folder, tmp_path):
    margins, scores = load("train_from_python").train(str(tiny_model_folder), str(tmp_path), rate=5e-2)
    assert margins[0] == 0.0 and margins[-1] > 0.5
    # Its own callback ends the run.
    assert scores[0] < 0.2 and scores[-1] >= 0.95 and len(scores) < 60


@pytest.mark.long
def test_a_doctor_from_a_few_pairs_steers_by_a_weight_chosen_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    accuracy, shares = load("llmdoctor").train(str(tmp_path), weights=(0.0, 2.0))
    assert accuracy > 0.9
    assert 0.35 < shares[0.0] < 0.6
    assert shares[2.0] > shares[0.0] + 0.2


def cluster_commands():
    """File -> (the arguments of its `jaxalign` command, its processes or pods, the devices of each)."""
    script = (CLUSTER / "sft.slurm.sh").read_text()
    line = re.search(r"^srun .*?(jaxalign .*?) \|\|", script.replace("\\\n", " "), re.MULTILINE)[1]
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    nodes, tasks, gpus = (int(asked[name]) for name in ("nodes", "ntasks-per-node", "gpus-per-node"))
    found = {"sft.slurm.sh": (shlex.split(line)[1:], nodes * tasks, gpus // tasks)}
    for file in sorted(CLUSTER.glob("*.yaml")):
        job = jobset(file)["spec"]["replicatedJobs"][0]["template"]["spec"]
        container = job["template"]["spec"]["containers"][0]
        devices = next(iter(container["resources"]["limits"].values()))
        found[file.name] = (container["args"], job["completions"], devices)
    return found


def jobset(file):
    return next(part for part in yaml.safe_load_all(file.read_text()) if part["kind"] == "JobSet")


@pytest.mark.parametrize("name", ["sft.slurm.sh", "jobset-gpu.yaml", "jobset-tpu.yaml"])
def test_a_clusters_command_is_understood_and_its_mesh_has_the_devices_that_are_asked_for(name):
    (command, *arguments), processes, devices = cluster_commands()[name]
    settings = cli.read_settings(cli.find_command(command), arguments)
    mesh = settings.mesh
    assert math.prod(mesh.shape) == processes * devices
    assert settings.train.batch_size % (mesh.data * mesh.fsdp * mesh.expert) == 0
    # What is killed goes on from a checkpoint.
    assert settings.run.resume and settings.run.save_every


@pytest.mark.parametrize("name", ["jobset-gpu.yaml", "jobset-tpu.yaml"])
def test_a_jobset_has_fields_of_v1alpha2_and_indexed_pods_that_start_together(name):
    found = jobset(CLUSTER / name)
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and found["spec"].keys() <= JOBSET
    assert found["spec"]["failurePolicy"].keys() <= {"maxRestarts", "rules"}
    (workers,) = found["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert workers.keys() <= REPLICATED_JOB and job.keys() <= JOB
    # JAX counts its processes by `parallelism`, and tells them apart by their index.
    assert workers["replicas"] == 1 and job["parallelism"] == job["completions"]
    assert job["completionMode"] == "Indexed" and job["template"]["spec"]["restartPolicy"] == "Never"
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    mounts = {mount["name"] for mount in job["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts == volumes


def test_the_image_takes_files_and_extras_that_there_are():
    text, root = (CLUSTER / "Dockerfile").read_text(), EXAMPLES.parent
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        assert all((root / source).exists() for source in sources.split())
    extras = re.findall(r"EXTRA=(\w+)", text)
    assert set(extras) == {"cuda", "tpu"}
    assert all(
        re.search(rf"^{extra} = \[", (root / "pyproject.toml").read_text(), re.MULTILINE) for extra in extras
    )


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="ShellCheck is not installed")
def test_the_script_passes_shellcheck():
    subprocess.run(["shellcheck", str(CLUSTER / "sft.slurm.sh")], check=True)
