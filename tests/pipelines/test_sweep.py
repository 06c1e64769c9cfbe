"""A sweep: every point of a grid checked first, trained one after another, ranked, and gone on with."""

import json
from pathlib import Path

import pytest

from jaxalign.cli.main import main
from jaxalign.errors import ConfigError, UserError
from jaxalign.llmdoctor import tfpo
from jaxalign.llmdoctor.tfpo_config import PatientSource, TFPOConfig
from jaxalign.pipelines.sweep import sweep
from jaxalign.runs import Run, RunConfig, report
from jaxalign.training import sft
from jaxalign.training.core.loop import Interrupted, TrainConfig
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.sft import SFTConfig

RATE = "optimizer.learning_rate"


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """A report has tests of its own."""
    monkeypatch.setattr(report, "write_report", lambda folder: None)


class Trainer:
    """Trains nothing: a run ends with `numbers(config)`, and what that raises is raised in the run."""

    def __init__(self, numbers):
        self.numbers, self.seen = numbers, []

    def __call__(self, config):
        self.seen.append(config)
        with Run.open(config.run, config, "sft") as run:
            metrics = self.numbers(config)
            run.finish(metrics)
        return TrainResult(run.folder, metrics, None, None)


def loss_of(config):
    return {"eval/loss": abs(config.optimizer.learning_rate - 0.01) + 1, "eval/accuracy": 0.5}


def swept(trainer, folder, grid, metric="eval/loss", *, steps=1, **options):
    config = SFTConfig(run=RunConfig(progress=False), train=TrainConfig(steps=steps))
    options.setdefault("say", lambda line: None)
    return sweep(trainer, config, grid, metric=metric, output=folder, **options)


def ranked(result):
    return [point.values[RATE] for point in result.points]


def test_every_combination_is_a_run_in_a_folder_of_its_own_and_the_best_comes_first(tmp_path):
    trainer, said = Trainer(loss_of), []
    grid = {RATE: [0.5, 0.01, 0.1], "run.seed": [0, 1]}
    result = swept(trainer, tmp_path / "s", grid, say=said.append)
    names = [Path(config.run.output).name for config in trainer.seen]
    assert names[:2] == [f"{RATE}=0.5,run.seed=0", f"{RATE}=0.5,run.seed=1"]
    assert len(set(names)) == 6 and all((tmp_path / "s" / name / "metadata.json").is_file() for name in names)
    assert ranked(result) == [0.01, 0.01, 0.1, 0.1, 0.5, 0.5]
    assert [(c.optimizer.learning_rate, c.run.seed) for c in trainer.seen[2:4]] == [(0.01, 0), (0.01, 1)]
    written = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert (written["mode"], written["best"]["metric"], len(written["points"])) == ("min", 1.0, 6)
    assert said[-1].endswith(f"best: {RATE}=0.01, run.seed=0 (eval/loss 1)")
    assert "| 0.01 | 0 | 1 | - |" in (tmp_path / "s" / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("metric", "mode", "best"),
    [
        ("eval/loss", "auto", 0.1),
        ("eval/balance", "auto", 0.1),
        ("eval/perplexity", "auto", 0.1),
        ("eval/accuracy", "auto", 0.3),
        ("eval/accuracy", "min", 0.1),
        ("eval/loss", "max", 0.3),
    ],
)
def test_losses_are_best_where_small_and_all_else_where_large(metric, mode, best, tmp_path):
    trainer = Trainer(lambda config: {metric: config.optimizer.learning_rate})
    result = swept(trainer, tmp_path / "s", {RATE: [0.2, 0.3, 0.1]}, metric, mode=mode)
    assert result.best.values == {RATE: best}


def test_intervals_stand_beside_the_metric_and_what_is_no_number_is_last(tmp_path):
    def numbers(config):
        rate = config.optimizer.learning_rate
        value = {0.1: float("nan"), 0.2: 0.7}.get(rate, 0.9)
        return {"eval/accuracy": value, "eval/accuracy_low": value - 0.15, "eval/accuracy_high": value + 0.15}

    said = []
    result = swept(
        Trainer(numbers), tmp_path / "s", {RATE: [0.1, 0.2, 0.3]}, "eval/accuracy", say=said.append
    )
    assert ranked(result) == [0.3, 0.2, 0.1]
    assert "[0.75, 1.05]" in result.table
    assert said[-1].endswith("(eval/accuracy 0.9 [0.75, 1.05]); overlapping intervals: 1 of the other 2")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({RATE: [0.1, "fast"]}, r"^--grid: optimizer.learning_rate: expected float, got 'fast'"),
        ({"learning_rate": [0.1]}, r"^--grid: learning_rate: unknown key; did you mean optimizer.learning_rate"),
        ({"optimizer": [{"name": "adamw"}]}, r"^--grid: optimizer: expected a single key, such as optimizer\.NAME"),
        ({RATE: 0.1}, r"^--grid: optimizer.learning_rate: expected a list of values, got 0.1"),
        ({RATE: []}, r"expected a list of values"),
        ({RATE: [0.1, -1.0]}, r"^--grid: .*learning_rate must"),
        ({RATE: [0.1, 0.1]}, r"^--grid: optimizer.learning_rate=0.1: same run as optimizer.learning_rate=0.1"),
        ({RATE: [1, 1.0]}, r"same run as"),
        ({"run.output": ["a", "b"]}, r"^--grid: run.output: set by the sweep"),
        ({}, r"^--grid: expected keys with lists"),
        ({"data.train": [["nowhere.jsonl"]]}, r"nowhere\.jsonl"),
    ],
)  # fmt: skip
def test_all_points_are_checked_before_the_first_is_trained(grid, message, tmp_path):
    trainer = Trainer(loss_of)
    with pytest.raises(UserError, match=message) as caught:
        swept(trainer, tmp_path / "s", grid)
    assert "\n" not in str(caught.value)
    assert trainer.seen == [] and list(tmp_path.iterdir()) == []


def test_a_point_that_fails_by_the_users_mistake_is_noted_and_the_sweep_goes_on(tmp_path, capsys):
    def numbers(config):
        if config.optimizer.learning_rate > 1:
            raise UserError("step 3: the loss is not finite")
        return loss_of(config)

    result = swept(Trainer(numbers), tmp_path / "s", {RATE: [2.0, 0.01]})
    assert ranked(result) == [0.01, 2.0]
    assert result.points[1].error == "step 3: the loss is not finite"
    assert "failed" in result.table and "step 3: the loss" in (tmp_path / "s" / "sweep.md").read_text()
    assert capsys.readouterr().err == f"{RATE}=2.0: step 3: the loss is not finite\n"
    with pytest.raises(UserError, match=r"^every run of the sweep failed; the first with: step 3"):
        swept(Trainer(numbers), tmp_path / "t", {RATE: [2.0, 3.0]})
    assert not (tmp_path / "t").exists()


def test_a_metric_that_no_run_reports_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^--metric: the runs report no 'eval/los'; did you mean eval/loss"
    ):
        swept(Trainer(loss_of), tmp_path / "s", {RATE: [0.1]}, "eval/los")


def test_resume_reads_what_has_ended_and_trains_the_rest(tmp_path):
    folder = tmp_path / "s"

    def stops(config):
        if config.optimizer.learning_rate == 0.1:
            raise Interrupted(2)
        return loss_of(config)

    with pytest.raises(Interrupted):
        swept(Trainer(stops), folder, {RATE: [0.5, 0.1, 0.01]})
    assert len(json.loads((folder / "sweep.json").read_text())["points"]) == 1
    with pytest.raises(ConfigError, match=r"^--output: .* is not empty; .*--resume"):
        swept(Trainer(loss_of), folder, {RATE: [0.5]})
    later = Trainer(loss_of)
    result = swept(later, folder, {RATE: [0.5, 0.1, 0.01]}, resume=True)
    assert [config.optimizer.learning_rate for config in later.seen] == [0.1, 0.01]
    assert ranked(result) == [0.01, 0.1, 0.5]
    # More steps: all of them go on; other settings are refused before any does.
    longer = Trainer(loss_of)
    swept(longer, folder, {RATE: [0.5, 0.01]}, resume=True, steps=2)
    assert [config.run.resume for config in longer.seen] == [True, True]
    with pytest.raises(ConfigError, match=r"train.steps was 2 and is now 1 \(it may be raised only\)"):
        swept(longer, folder, {RATE: [0.5, 0.01]}, resume=True)
    assert len(longer.seen) == 2


def test_a_run_that_is_made_longer_has_not_ended_until_it_ends(tmp_path):
    folder = tmp_path / "s"
    swept(Trainer(loss_of), folder, {RATE: [0.1]})

    def stops(config):
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        swept(Trainer(stops), folder, {RATE: [0.1]}, resume=True, steps=5)
    last = Trainer(loss_of)
    swept(last, folder, {RATE: [0.1]}, resume=True, steps=5)
    assert len(last.seen) == 1


def test_doctors_share_one_folder_of_token_rewards(tmp_path):
    seen = []

    def train(config):
        seen.append(config.rewards.folder)
        return TrainResult(Path(config.run.output), {"eval/accuracy": 0.5}, None, None)

    base = TFPOConfig(patient=PatientSource(path="p"))
    for grid, folders in (
        ({"loss.reward_scale": ["auto", 5]}, [str(tmp_path / "token_rewards")] * 2),
        ({"rewards.folder": ["a", "b"]}, ["a", "b"]),
    ):
        seen.clear()
        sweep(train, base, grid, metric="eval/accuracy", output=tmp_path, resume=True, say=seen.append)
        assert [item for item in seen if item in folders] == folders


def test_a_folder_can_hold_any_value(tmp_path):
    trainer = Trainer(loss_of)
    swept(trainer, tmp_path / "s", {"model.path": ["a/b", "a_b", "x" * 300]})
    names = [Path(config.run.output).name for config in trainer.seen]
    assert names[1] == "model.path=a_b"
    assert names[0].startswith("model.path=a_b-") and len(names[2]) < 160
    assert [config.model.path for config in trainer.seen] == ["a/b", "a_b", "x" * 300]


def command(folder, *flags, grid='{"optimizer.learning_rate": [0.1, 0.01]}'):
    return ["sweep", "sft", f"--grid={grid}", "--metric=eval/loss", f"--output={folder}", *flags]


def test_the_command_takes_the_flags_of_the_command_that_trains(tmp_path, monkeypatch, capsys):
    trainer = Trainer(loss_of)
    monkeypatch.setattr(sft, "train_sft", trainer)
    flags = ["--steps=3", "--seed", "7", "--run.progress=false", "--config=sft"]
    assert main(command(tmp_path / "s", *flags)) == 0
    assert [(c.train.steps, c.run.seed) for c in trainer.seen] == [(3, 7)] * 2
    printed = capsys.readouterr().out
    assert f"best: {RATE}=0.01 (eval/loss 1)" in printed
    assert printed.splitlines()[-1] == f"results: {tmp_path / 's'}"
    assert main(command(tmp_path / "s", *flags, "--resume")) == 0
    assert len(trainer.seen) == 2
    assert "[1/2] optimizer.learning_rate=0.1 (already finished)" in capsys.readouterr().out


def test_a_signal_ends_the_sweep_with_its_status(tmp_path, monkeypatch):
    def stops(config):
        raise Interrupted(2)

    trainer = Trainer(stops)
    monkeypatch.setattr(sft, "train_sft", trainer)
    assert main(command(tmp_path / "s")) == 130
    assert len(trainer.seen) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "command is required"),
        (
            ["sweep", "generate", "--grid={a: [1]}", "--metric=m", "--output=s"],
            "a command that trains: sft, ",
        ),
        (["sweep", "tfpoo", "--grid={a: [1]}", "--metric=m", "--output=s"], "did you mean tfpo?"),
        (command("s", "--run.output=x"), "--run.output: the sweep sets it"),
        (command("s", "--beta=1"), "--beta: unknown key"),
        (command("s", grid="{a: [1]}"), "--grid: a: unknown key"),
        (command("s", "--mode=best"), "--mode: expected auto | min | max"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfpo, "train_tfpo", None)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_explains(capsys):
    assert main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: jaxalign sweep [COMMAND]" in text and "every combination is one run" in " ".join(
        text.split()
    )
