"""Whole comparisons on the tiny model: every method, going on after a stop, failures, and other settings."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from jaxalign.cli.main import main
from jaxalign.config import save_yaml
from jaxalign.errors import ConfigError, UserError
from jaxalign.models.lora import LoraConfig
from jaxalign.pipelines import compare_cells, compare_run
from jaxalign.pipelines.compare_cell import Cell
from jaxalign.pipelines.compare_cells import compare, identity, plan
from jaxalign.pipelines.compare_checks import checked
from jaxalign.training.core.reward_source import RewardSource
from tests.pipelines.compare_files import small, write_rows


def quiet(line):
    del line


def fake(config, cell):
    """A cell that needs no model: its gold rewards are higher the later its method comes."""
    rank = config.methods.index(cell.method) if not cell.beginning else 0
    count = 30
    scores = {"gold": [rank + (i % 3) / 9 for i in range(count)], "proxy": [1.0] * count}
    scores |= {"kl": [0.1 * rank] * count, "tokens": [4.0] * count}
    training = {"seconds": 1.0, "tokens": 9, "steps": 1, "trainable": 5, "metrics": {}, "curve": []}
    return {
        "method": cell.method,
        "seed": cell.seed,
        "training": training if cell.about.config else None,
        "scores": scores,
        "notes": [],
        "benchmarks": {},
    }


@pytest.fixture
def ran(monkeypatch):
    """Names of the cells that were run, with `fake` in the place of all training and measuring."""
    names = []

    def run(config, cell):
        names.append(cell.name)
        found = fake(config, cell)
        compare_cells.write_json(cell.folder(config) / "result.json", found)
        return found

    monkeypatch.setattr(compare_cells, "run_cell", run)
    return names


def test_cells_come_seed_by_seed_the_supervised_model_first(tmp_path):
    config = checked(small(tmp_path, methods=("dpo", "ppo"), proxy=RewardSource()))
    assert [cell.name for cell in plan(config)] == [
        "begin-sft", "begin-reward", "sft-0", "dpo-0", "ppo-0", "sft-1", "dpo-1", "ppo-1"
    ]  # fmt: skip
    assert plan(replace(config, sft="there"))[0].name == "begin-reward"


def test_a_method_more_changes_nothing_of_the_others(tmp_path):
    one = checked(
        small(tmp_path, methods=("dpo",), proxy=RewardSource(), settings={"reward": {"train.steps": 3}})
    )
    more = checked(replace(one, methods=("dpo", "ppo")))
    assert identity(one, Cell(method="dpo")) == identity(more, Cell(method="dpo"))


def test_cells_that_are_there_are_not_run_again_and_more_can_be_added(tmp_path, ran):
    config = small(tmp_path, methods=("dpo",), seeds=(0,))
    first = compare(config, say=quiet)
    assert ran == ["begin-sft", "sft-0", "dpo-0"]
    ran.clear()
    assert compare(config, say=quiet).results["methods"] == first.results["methods"]
    assert ran == []
    more = compare(replace(config, methods=("dpo", "kto"), seeds=(0, 1)), say=quiet)
    assert ran == ["kto-0", "sft-1", "dpo-1", "kto-1"]
    assert more.results["methods"]["dpo"]["seeds"] == [0, 1]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["methods"].keys() == {"sft", "dpo", "kto"}
    assert "kto" in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_with_a_cell_of_other_settings_is_refused_by_name(tmp_path, ran):
    config = small(tmp_path, methods=("dpo", "kto"), seeds=(0,))
    compare(config, say=quiet)
    ran.clear()
    changed = replace(config, settings={**config.settings, "kto": {"loss.beta": 0.5}})
    with pytest.raises(
        ConfigError, match=r"kto-0: was run with settings.kto.loss.beta=None, asked for now is 0.5"
    ):
        compare(changed, say=quiet)
    with open(config.data.pairs[0], "a") as file:
        file.write('{"prompt": "more", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(ConfigError, match=r"was run with data.pairs.0="):
        compare(config, say=quiet)
    assert ran == []


def test_a_cell_does_not_depend_on_the_settings_of_others(tmp_path):
    config = checked(small(tmp_path))
    other = checked(small(tmp_path, settings={**config.settings, "dpo": {"loss.beta": 0.5}}, seeds=(5,)))
    same = [
        name
        for name in config.methods
        if identity(config, Cell(method=name)) == identity(other, Cell(method=name))
    ]
    assert same == [name for name in config.methods if name != "dpo"]


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path, ran, monkeypatch, capsys):
    run = compare_cells.run_cell

    def failing(config, cell):
        if cell.name == "dpo-0":
            raise UserError("the file\nis bad")
        if cell.name == "kto-0":
            raise RuntimeError("a bug")
        return run(config, cell)

    monkeypatch.setattr(compare_cells, "run_cell", failing)
    config = small(tmp_path, methods=("dpo", "kto", "best_of_n"))
    result = compare(config, say=quiet)
    assert result.errors["dpo-0"] == "the file is bad"
    assert result.errors["kto-0"].startswith("RuntimeError: a bug")
    assert result.results["methods"]["dpo"]["seeds"] == [1]
    assert "the file is bad" in (tmp_path / "out" / "report.html").read_text()
    assert "dpo-0: the file is bad" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        compare_cells.run_compare(config)
    assert ended.value.code == 1
    # What failed is tried again, nothing else.
    ran.clear()
    monkeypatch.setattr(compare_cells, "run_cell", run)
    assert not compare(config, say=quiet).errors
    assert ran == ["dpo-0", "kto-0"]


def test_without_its_reward_model_no_method_that_needs_it_is_tried(tmp_path, ran, monkeypatch):
    run = compare_cells.run_cell

    def failing(config, cell):
        if cell.name == "begin-reward":
            raise UserError("no")
        return run(config, cell)

    monkeypatch.setattr(compare_cells, "run_cell", failing)
    result = compare(small(tmp_path, methods=("dpo", "ppo"), proxy=RewardSource(), seeds=(0,)), say=quiet)
    assert result.errors == {"begin-reward": "no", "ppo-0": "the reward model failed"}


def test_held_out_prompts_that_were_trained_on_are_warned_of(tmp_path, ran):
    said = []
    compare(small(tmp_path, methods=("dpo",), seeds=(0,)), say=said.append)
    assert said[0] == "warning: 1 of the 6 different held-out prompts are among the training prompts"


def test_the_command_reads_a_file_and_ends_with_a_line_for_what_is_wrong(tmp_path, capsys):
    config = small(tmp_path, methods=("dpo",), model="")
    save_yaml(config, tmp_path / "c.yaml")
    assert main(["compare", "--config", str(tmp_path / "c.yaml")]) == 2
    assert capsys.readouterr().err.startswith("jaxalign compare: error: --model: expected a base model")


def test_two_processes_do_not_work_on_one_cell(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    config, cell = small(tmp_path), Cell(method="dpo")
    folder = cell.folder(config)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="dpo-0: another process is at work on this cell"):
            compare_run.run_cell(config, cell)
    (folder / "result.json").write_text('{"method": "dpo"}')
    assert compare_run.run_cell(config, cell) == {"method": "dpo"}


@pytest.mark.parametrize("lost", [KeyboardInterrupt, SystemExit])
def test_a_comparison_that_is_stopped_stops_its_cell_and_waits_for_it(tmp_path, monkeypatch, lost):
    calls = []

    class Child:
        def __init__(self, command, **options):
            calls.append(command[-1])

        def wait(self, timeout=None):
            calls.append("wait" if timeout else "run")
            if not timeout:
                raise lost

        def terminate(self):
            calls.append("terminate")

        def kill(self):
            calls.append("kill")

    monkeypatch.setattr(compare_cells.subprocess, "Popen", Child)
    with pytest.raises(lost):
        compare(small(tmp_path, methods=("dpo",), isolated=True, sft="start"), say=quiet)
    assert calls == ["sft-0", "run", "terminate", "wait", "kill"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (-9, r"ended by signal 9 \(out of memory\?\); see .*log.txt"),
        (143, "ended by signal 15"),
        (3, "with status 3"),
    ],
)
def test_a_cell_that_was_killed_is_a_failure_of_its_own(tmp_path, monkeypatch, status, told):
    class Child:
        def __init__(self, command, **options):
            self.name = command[-1]

        def wait(self):
            if self.name == "sft-0":
                config = small(tmp_path)
                result = fake(checked(config), Cell(method="sft"))
                compare_cells.write_json(Cell(method="sft").folder(config) / "result.json", result)
                return 0
            return status

    monkeypatch.setattr(compare_cells.subprocess, "Popen", Child)
    config = small(tmp_path, methods=("dpo",), seeds=(0,), isolated=True, sft="start")
    (error,) = compare(config, say=quiet).errors.values()
    assert re.search(told, error)


@pytest.mark.long
def test_methods_of_every_kind_are_trained_measured_and_reported(tmp_path, tiny_model_folder):
    config = small(tmp_path, str(tiny_model_folder), methods=("kto", "grpo", "best_of_n"))
    learns = {"optimizer.learning_rate": 0.01}
    grpo = {"sampling.num_samples": 4, **learns}
    result = compare(replace(config, settings={**config.settings, "grpo": grpo, "kto": learns}), say=quiet)
    assert not result.errors
    methods = result.results["methods"]
    assert methods["sft"]["figures"]["kl"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert methods["kto"]["figures"]["kl"]["value"] > 0
    assert methods["best_of_n"]["figures"]["proxy"]["value"] >= methods["sft"]["figures"]["proxy"]["value"]
    curve, other = methods["grpo"]["curves"]
    assert curve[1] != other[1]
    assert [point["update"] for point in curve] == [0, 1]
    assert curve[0]["kl"] == pytest.approx(0.0, abs=1e-4) and {"proxy", "gold"} <= curve[0].keys()
    items = (tmp_path / "out" / "cells" / "kto-0" / "held_out" / "items" / "prompts.jsonl").read_text()
    answers = [json.loads(line)["answers"][0] for line in items.splitlines()]
    scores = json.loads((tmp_path / "out" / "cells" / "kto-0" / "result.json").read_text())["scores"]
    assert scores["proxy"] == [len(answer) for answer in answers]
    assert scores["gold"] == [sum(letter in "aeiou" for letter in answer) for answer in answers]
    assert methods["kto"]["trainable"] == methods["sft"]["trainable"] or methods["sft"]["trainable"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") >= 3


@pytest.mark.long
def test_a_guided_model_a_critic_and_rounds_are_measured_in_the_same_way(tmp_path, tiny_model_folder):
    config = small(
        tmp_path,
        str(tiny_model_folder),
        methods=("ppo", "tfpo", "feedback"),
        seeds=(0,),
        proxy=RewardSource(),
    )
    # The shipped instructions are longer than the tiny model's context.
    short = {"rewards.positive": "good", "rewards.negative": "bad"}
    result = compare(replace(config, settings={**config.settings, "tfpo": short}), say=quiet)
    assert not result.errors
    assert {"ppo", "tfpo", "feedback"} <= result.results["methods"].keys()
    assert result.results["beginnings"]["reward"]["trainable"] > 0
    assert len(result.results["tests"]) == 3


@pytest.mark.long
def test_adapters_are_trained_and_benchmarks_asked_in_every_cell(tmp_path, tiny_model_folder):
    rows = [
        {"question": f"Is {i} even?", "contexts": ["No one knows."], "final_decision": ("yes", "no")[i % 2]}
        for i in range(6)
    ]
    config = small(
        tmp_path,
        str(tiny_model_folder),
        methods=("dpo", "rloo", "tfpo", "best_of_n"),
        seeds=(0,),
        lora=LoraConfig(enabled=True, rank=2),
        tasks={"pubmedqa": write_rows(tmp_path / "pubmedqa.jsonl", rows)},
    )
    short = {"rewards.positive": "good", "rewards.negative": "bad"}
    result = compare(replace(config, settings={**config.settings, "tfpo": short}), say=quiet)
    assert not result.errors
    methods = result.results["methods"]
    for name in ("sft", "dpo", "rloo", "tfpo"):
        items = tmp_path / "out" / "cells" / f"{name}-0" / "benchmarks" / "items" / "pubmedqa.jsonl"
        right = [json.loads(line)["scores"]["accuracy"] for line in items.read_text().splitlines()]
        assert methods[name]["figures"]["pubmedqa accuracy"]["value"] == pytest.approx(sum(right) / 6)
    # Asked greedily, the best of n is the one answer.
    assert "pubmedqa accuracy" not in methods["best_of_n"]["figures"]
    assert 0 < methods["dpo"]["trainable"] < 8832
    # Three methods on two measures, and best-of-n on one.
    assert len(result.results["tests"]) == 7


@pytest.mark.long
def test_a_cell_in_a_process_goes_on_where_it_was_killed(tmp_path, tiny_model_folder):
    config = checked(small(tmp_path, str(tiny_model_folder), methods=("dpo",), seeds=(0,), isolated=True))
    config = replace(config, sft=str(tiny_model_folder), data=replace(config.data, held_out_pairs=()))
    budget = replace(config.budget, samples=400, rounds=1)
    config = replace(config, budget=budget, settings={**config.settings, "dpo": {"run.save_every": 5}})
    cell = Cell(method="dpo")
    folder = cell.folder(config)
    folder.mkdir(parents=True)
    save_yaml(config, tmp_path / "out" / "config.yaml")
    command = [sys.executable, "-m", "jaxalign.pipelines.compare_run", config.output, cell.name]
    with (tmp_path / "log.txt").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while not _saved(folder / "run" / "checkpoints") and time.monotonic() < deadline:
            assert child.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (folder / "result.json").exists()
    result = compare_run.run_cell(config, cell)
    log = (folder / "run" / "run.log").read_text()
    assert "resumed from step" in log and "resumed from step 0" not in log
    steps = [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and result["training"]["steps"] == 100
    assert result["training"]["host_bytes"] > 100 * 2**20


def _saved(checkpoints):
    """Whether there is a second checkpoint, so that the first one is whole."""
    return checkpoints.is_dir() and any(p.name.isdigit() and int(p.name) > 5 for p in checkpoints.iterdir())


@pytest.mark.long
def test_an_error_in_a_process_is_told_by_its_line_and_the_command_fails(tmp_path, tiny_model_folder, capsys):
    bad = {"kto": {"data.max_length": 2}, "all": {"data.template": "plain"}}
    config = small(
        tmp_path, str(tiny_model_folder), methods=("kto",), seeds=(0,), isolated=True, settings=bad
    )
    save_yaml(replace(config, sft=str(tiny_model_folder)), tmp_path / "c.yaml")
    assert main(["compare", "--config", str(tmp_path / "c.yaml")]) == 1
    said = capsys.readouterr()
    assert "kto-0: " in said.err and "too long" in said.err and "Traceback" not in said.err
    assert "report: " in said.out
    cells = tmp_path / "out" / "cells"
    assert (cells / "sft-0" / "result.json").is_file() and (cells / "sft-0" / "log.txt").stat().st_size > 0
