"""A sign of life while a run trains, and the stacks of one that hangs."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxalign.runs import heartbeat
from jaxalign.runs.config import RunConfig
from jaxalign.runs.heartbeat import HUNG, Heartbeat


def run_in(folder, **config):
    said = []
    return SimpleNamespace(folder=folder, config=RunConfig(**config), warn=said.append, said=said)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)


def test_the_file_tells_the_step_while_the_run_goes_and_is_gone_when_it_ends(tmp_path):
    run, file = run_in(tmp_path), tmp_path / "heartbeat.json"

    def step():
        return file.is_file() and json.loads(file.read_text())["step"]

    with suppress(KeyError), Heartbeat(run, 100) as heart:  # type: ignore[arg-type]
        heart.beat(7)
        until(lambda: step() == 7)
        about = json.loads(file.read_text())
        assert (about["total"], about["process"]) == (100, os.getpid())
        heart.beat(8)
        until(lambda: step() == 8)
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    assert run.said == []


def test_a_hang_is_told_once_with_the_stacks_of_all_threads_and_again_after_a_step(tmp_path):
    run, release = run_in(tmp_path, hang_minutes=0.05 / 60), threading.Event()

    def waits_for_a_peer():
        release.wait()

    hanging = threading.Thread(target=waits_for_a_peer)
    hanging.start()
    try:
        with Heartbeat(run, 100) as heart:  # type: ignore[arg-type]
            heart.beat(3)
            until(lambda: run.said)
            time.sleep(0.2)
            assert len(run.said) == 1
            heart.beat(4)
            until(lambda: len(run.said) == 2)
    finally:
        release.set()
        hanging.join()
    assert "since step 3; stacks:" in run.said[0] and "since step 4" in run.said[1]
    text = (tmp_path / "stacks.txt").read_text()
    assert "after step 3" in text and "after step 4" in text
    assert "in waits_for_a_peer" in text and "test_heartbeat.py" in text


def test_a_process_that_hangs_ends_with_its_status_where_that_is_asked_for(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from types import SimpleNamespace\n"
        "from jaxalign.runs import heartbeat\n"
        "from jaxalign.runs.config import RunConfig\n"
        "heartbeat.EVERY = 0.01\n"
        "config = RunConfig(hang_minutes=0.001, hang_exit=True)\n"
        "run = SimpleNamespace(folder=pathlib.Path(sys.argv[1]), config=config, warn=print)\n"
        "with heartbeat.Heartbeat(run, 9):\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-u", "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == HUNG == 75, done.stderr
    assert "the process ends with status 75" in done.stdout
    assert (tmp_path / "stacks.txt").is_file()


def test_zero_minutes_never_tell(tmp_path):
    run = run_in(tmp_path, hang_minutes=0)
    with Heartbeat(run, 9):  # type: ignore[arg-type]
        until((tmp_path / "heartbeat.json").is_file)
    assert run.said == []
    with pytest.raises(ValueError, match=r"run.hang_exit needs run.hang_minutes above 0"):
        RunConfig(hang_minutes=0, hang_exit=True)
    with pytest.raises(ValueError, match=r"run.hang_minutes must be 0 or more, got -1"):
        RunConfig(hang_minutes=-1)
