"""Killing runs: aims are reachable, a difference is found, and a few real kills leave no trace."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"


def run_folder(folder, **changes):
    """What a finished run leaves, as far as it is compared."""
    (folder / "export").mkdir(parents=True)
    row = {"step": 1, "train/loss": 1.0, "time/seconds": 2.0} | changes
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "metadata.json").write_text(json.dumps({"final_metrics": row, "exported_step": 1}))
    (folder / "export" / "model.safetensors").write_bytes(b"weights")
    return folder


def test_only_the_wall_clock_may_differ(benchmark, tmp_path):
    soak = benchmark("soak")
    plain = soak.outcome(run_folder(tmp_path / "a"))
    assert soak.differences(soak.outcome(run_folder(tmp_path / "b", **{"time/seconds": 9.0})), plain) == []
    other = soak.outcome(run_folder(tmp_path / "c", **{"train/loss": 1.0000001}))
    assert soak.differences(other, plain) == ["metrics", "final"]
    (tmp_path / "b" / "export" / "model.safetensors").write_bytes(b"Weights")
    assert soak.differences(soak.outcome(tmp_path / "b"), plain) == ["weights"]
    (tmp_path / "b" / "export" / "model.safetensors").unlink()
    assert "no weights" in soak.differences(soak.outcome(tmp_path / "b"), soak.outcome(tmp_path / "b"))


def test_a_run_is_aimed_at_where_it_can_be_hit(benchmark):
    soak, rng = benchmark("soak"), random.Random(0)

    def aims(trainer, resumes):
        return {soak.draw(rng, trainer, resumes, lambda _: 1.0).phase for _ in range(300)}

    assert aims("sft", False) == {"import", "opening", "step", "save", "export"}
    assert aims("ppo", True) == set(soak.PHASES)


def test_marks_outlive_their_process(benchmark, tmp_path):
    soak = benchmark("soak")
    code = "import sys; sys.path.insert(0, sys.argv[2]); import soak, os; from pathlib import Path\n"
    code += "marks = soak.Marks(Path(sys.argv[1])); marks.enter('opening')\n"
    code += "with marks.within('save'): os.kill(os.getpid(), 9)"
    marks = soak.Marks(tmp_path / "marks")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "marks"), str(SCRIPT.parent)], check=False
    )
    assert done.returncode == -9 and marks.now == "save"
    assert [marks.entries(phase) for phase in ("opening", "save", "step")] == [1, 1, 0]


def test_any_of_several_processes_is_aimed_at(benchmark):
    soak, rng = benchmark("soak"), random.Random(0)
    assert {soak.draw(rng, "sft", False, lambda _: 1.0, 2).rank for _ in range(50)} == {0, 1}
    assert {soak.draw(rng, "sft", False, lambda _: 1.0).rank for _ in range(50)} == {0}


def test_a_process_that_outlives_the_one_that_was_hit_too_long_is_found(benchmark, tmp_path, monkeypatch):
    soak = benchmark("soak")
    monkeypatch.setattr(soak, "LEFT", 2.0)
    marks = soak.Marks(tmp_path / "marks")
    marks.enter("step")

    def ends(seconds):
        """The statuses of a process that is hit and of one that ends by itself after so many seconds."""
        code = "import time; time.sleep({}); raise SystemExit(2)"
        commands = [[sys.executable, "-S", "-c", code.format(wait)] for wait in (60, seconds)]
        pids = [os.posix_spawn(sys.executable, command, os.environ) for command in commands]
        return soak.wait_for(pids, marks, soak.Aim("step", 1, 0.0, signal.SIGKILL))

    assert ends(0) == ([-signal.SIGKILL, 2], "step")
    assert ends(60) == ([-signal.SIGKILL, soak.HUNG], "step")


def test_an_end_is_called_what_it_is(benchmark):
    soak = benchmark("soak")
    assert soak.ending(-signal.SIGABRT, "F0000 client.h") == "XLA's abort (134)"
    assert (
        soak.ending(1, "Traceback\njaxalign sft: this is a bug in jaxalign or a library") == "traceback (1)"
    )
    assert soak.ending(2, "jaxalign sft: error: another process ended") == "a line (2)"
    assert soak.ending(soak.HUNG, "") == "killed by us"


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "processes"), [("sft", 1), ("grpo", 1), ("grpo", 2)])
def test_a_run_that_is_killed_a_few_times_ends_the_same(trainer, processes, tmp_path):
    command = [sys.executable, str(SCRIPT), "--kills=4", f"--trainers={trainer}", "--seed=7"]
    command.append(f"--processes={processes}")
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'soak'}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills of" in done.stdout and "0 failures" in done.stdout
