"""What `benchmarks/run.py` keeps, what it measures again, and what does not stop it; nothing is measured."""

import argparse
import dataclasses
import json
import subprocess

import pytest


@pytest.fixture
def bench(benchmark, monkeypatch, tmp_path):
    """Runs cases by a measurement that only notes their names (or raises); returns (measured, failed)."""
    run, cases = benchmark("run"), benchmark("cases")
    monkeypatch.setattr(run, "headline", lambda case, found: f"{case.name}: measured")
    there = {"cpu": "A CPU", "commit": "abc1234"}
    monkeypatch.setattr(run, "machine", lambda: dict(there))

    def go(*chosen, errors=None, pairs=7, seconds=3.0, again=False):
        names = []

        def measured(case, folder, sides, arguments):
            if error := (errors or {}).get(case.name):
                raise error
            folder.mkdir(parents=True, exist_ok=True)
            names.append(case.name)
            return {"case": case.name}

        monkeypatch.setattr(run, "measured", measured)
        arguments = argparse.Namespace(
            output=tmp_path,
            peer_python="python",
            peer_releases=tmp_path,
            again=again,
            pairs=pairs,
            seconds=seconds,
        )
        asked = [cases.BY_NAME[case] if isinstance(case, str) else case for case in chosen]
        return names, run.run(asked, arguments)

    go.there, go.cases, go.result = there, cases, lambda name: tmp_path / name / "result.json"
    return go


def test_what_was_measured_is_not_measured_again(bench, capsys):
    assert bench("sft-s", "start-s") == (["sft-s", "start-s"], [])
    assert bench("sft-s", "start-s") == ([], [])
    assert "sft-s: there already (" in capsys.readouterr().out
    assert bench("sft-s", again=True) == (["sft-s"], [])
    kept = json.loads(bench.result("sft-s").read_text())
    assert kept["about"] == "sft, model S, batch 8, float32" and kept["machine"] == bench.there


def test_other_settings_are_measured_again_and_said(bench, capsys):
    bench("sft-s", "start-s", "memory-128k")
    assert bench("sft-s", "start-s", "memory-128k", pairs=3)[0] == ["sft-s", "start-s"]
    assert "sft-s: measured again, its pairs changed since" in capsys.readouterr().out
    assert bench("sft-s", "start-s", pairs=3, seconds=1.0)[0] == ["sft-s"]
    packed = dataclasses.replace(bench.cases.BY_NAME["sft-s"], ours=bench.cases.PACKED)
    assert bench(packed, pairs=3, seconds=1.0)[0] == ["sft-s"]
    assert "its case changed" in capsys.readouterr().out
    # Why and how long are no settings.
    aimed = dataclasses.replace(packed, target=9.0, default=False, minutes=99, rival_of="sft-m")
    assert bench(aimed, pairs=3, seconds=1.0)[0] == []


def test_a_model_of_another_shape_is_measured_again(bench, monkeypatch):
    bench("sft-s")
    monkeypatch.setitem(bench.cases.MODELS, "S", {**bench.cases.MODELS["S"], "layers": 7})
    assert bench("sft-s")[0] == ["sft-s"]


@pytest.mark.parametrize("old", ['{"case": "sft-s"}', '{"case": ', ""])
def test_a_result_without_its_settings_is_measured_again(bench, capsys, old):
    bench.result("sft-s").parent.mkdir()
    bench.result("sft-s").write_text(old)
    assert bench("sft-s")[0] == ["sft-s"]
    assert "its settings were not kept" in capsys.readouterr().out


def test_a_result_of_another_commit_stays_and_says_so(bench, capsys):
    bench("sft-s")
    bench.there["commit"] = "def5678"
    assert bench("sft-s")[0] == []
    assert "sft-s: there already, of commit abc1234, now def5678" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (
            subprocess.TimeoutExpired("peer", 300),
            "TimeoutExpired: Command 'peer' timed out after 300 seconds",
        ),
        (ValueError("two\nlines"), "ValueError: two lines"),
    ],
)
def test_a_case_that_fails_costs_one_line_and_no_other_case(bench, capsys, error, line):
    assert bench("sft-s", "start-s", errors={"sft-s": error}) == (["start-s"], ["sft-s"])
    assert capsys.readouterr().err == f"sft-s: {line}\n"
    assert not bench.result("sft-s").exists() and bench.result("start-s").exists()


def test_a_case_that_fails_now_has_no_result_but_what_it_was_is_kept(bench):
    bench("sft-s")
    assert bench("sft-s", errors={"sft-s": ValueError("no")}, again=True) == ([], ["sft-s"])
    assert not bench.result("sft-s").exists()
    assert bench.result("sft-s").with_name("before.json").exists()


@pytest.mark.parametrize(("name", "value"), [("cpu", "Another CPU"), ("cores", 99)])
def test_results_of_another_machine_are_measured_again(bench, capsys, name, value):
    bench("sft-s")
    bench.there[name] = value
    assert bench("sft-s")[0] == ["sft-s"]
    assert "on another machine" in capsys.readouterr().out


def test_who_stops_it_keeps_what_was_measured(bench):
    with pytest.raises(KeyboardInterrupt):
        bench("sft-s", "start-s", "dpo-s", errors={"start-s": KeyboardInterrupt()})
    assert bench.result("sft-s").exists() and not bench.result("dpo-s").exists()


def test_other_systems_are_refused_in_one_line(benchmark, monkeypatch, capsys):
    run = benchmark("run")
    monkeypatch.setattr("sys.argv", ["run.py"])
    monkeypatch.setattr(run.sys, "platform", "darwin")
    assert run.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
