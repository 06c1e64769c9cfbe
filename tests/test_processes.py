"""Several processes: what a single one does, and two; `training/test_processes` trains in two."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign import processes
from jaxalign.cli.failures import exit_status, one_line
from jaxalign.errors import ConfigError, DeviceError
from jaxalign.mesh import MeshConfig, make_mesh

PAIR = Path(__file__).with_name("processes_pair.py")


def test_a_mesh_that_leaves_a_process_without_a_device_is_refused():
    devices = [SimpleNamespace(platform="cpu", process_index=index // 2) for index in range(4)]
    with pytest.raises(DeviceError, match=r"has 2 of 4 devices, and none of process 1; .*mesh.data=-1"):
        make_mesh(MeshConfig(data=2), devices)


def test_a_launcher_of_several_tasks_is_seen_and_one_of_one_is_not(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes.join("auto")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    processes.join("auto")
    processes.join("false")
    assert asked == []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    processes.join("auto")
    processes.join("host:1,4,3")
    assert [given.get("process_id") for given in asked] == [None, 3]


@pytest.mark.parametrize("setting", ["yes", "host:1,2", "host,2,1", "host:1,2,2"])
def test_a_setting_that_names_no_job_is_refused(setting):
    with pytest.raises(ConfigError, match="--distributed="):
        processes.join(setting)


def test_a_job_that_cannot_be_joined_is_one_line(monkeypatch):
    def fails(**_):
        raise RuntimeError("no such host\nand a long story")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(DeviceError, match=r"--distributed=true: no such host$"):
        processes.join("true")


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
def test_a_process_that_is_gone_is_one_line_of_whatever_class_jaxlib_raises(kind):
    error = kind("UNKNOWN: Gloo all-reduce failed: [external/gloo/pair.cc:547] Connection closed by peer")
    assert "another process of the job ended" in (one_line(error) or "") and exit_status(error) == 2
    assert one_line(ValueError("a value of Gloo")) is None


def test_alone_a_process_decides_for_itself():
    assert processes.by_first(lambda: {"a": 1}) == {"a": 1}
    assert processes.largest(7) == processes.LateLargest()(7) == 7
    assert processes.fetch({"x": jax.numpy.arange(3)})["x"].tolist() == [0, 1, 2]


def test_what_is_placed_lies_as_asked_and_comes_back(devices):
    rows = jax.NamedSharding(jax.make_mesh((4,), ("rows",), devices=devices[:4]), jax.P("rows"))
    placed = processes.place({"x": np.arange(8)}, rows)["x"]
    assert placed.sharding == rows
    assert processes.fetch(placed).tolist() == list(range(8))


def test_two_processes_hear_what_the_first_says_and_raises_and_what_either_asks():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(PAIR.parents[1])}
    children = [
        subprocess.Popen(
            [sys.executable, str(PAIR), f"127.0.0.1:{port},2,{rank}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for rank, text in enumerate(said):
        assert f"process {rank} saw all" in text, text
