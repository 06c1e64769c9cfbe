"""The run folder: whose it is, what it logs, what resuming keeps."""

import json
import signal
import sys
from dataclasses import dataclass, field, replace

import pytest

from jaxalign.errors import ConfigError
from jaxalign.mesh import MeshConfig
from jaxalign.runs import Given, Run, RunConfig, StopFlag, records
from jaxalign.runs.report import metric_series, write_comparison_report, write_report


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration.

    Attributes:
      run: the run.
      rate: a number.
    """

    run: RunConfig = field(default_factory=RunConfig)
    rate: float = 1.0


def config(folder, **changes) -> Config:
    return Config(run=RunConfig(output=str(folder), progress=False, **changes))


def opened(settings: Config, command: str = "sft") -> Run:
    return Run.open(settings.run, settings, command)


@pytest.mark.parametrize("asked", [{"wandb": True}, {"tensorboard": True, "mlflow": True}])
def test_a_tracker_or_callback_that_is_refused_leaves_no_folder_in_the_way(tmp_path, monkeypatch, asked):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    settings = config(tmp_path / "run", **asked)
    with pytest.raises(ConfigError, match="install the extra first"):
        opened(settings)
    with pytest.raises(ConfigError, match="expected objects with one of on_step"):
        Run.open(config(tmp_path / "run").run, settings, "sft", Given(callbacks=[print]))
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_before_its_first_numbers_leaves_nothing_for_tensorboard_either(tmp_path):
    with pytest.raises(ZeroDivisionError), opened(config(tmp_path / "run", tensorboard=True)):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_run_is_refused(tmp_path):
    with opened(config(tmp_path / "run")):
        pass
    with pytest.raises(ConfigError, match=r"already holds a run of `sft`.*--resume"):
        opened(config(tmp_path / "run"))
    with pytest.raises(ConfigError, match="holds a run of `sft`, not of `dpo`"):
        opened(config(tmp_path / "run", resume=True), "dpo")


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        opened(config(tmp_path))
    with pytest.raises(ConfigError, match="is a file"):
        opened(config(tmp_path / "thesis.tex"))
    with pytest.raises(ConfigError, match="expected a folder"):
        opened(config(""))


def test_resuming_with_another_setting_names_it_and_a_free_one_is_allowed(tmp_path):
    with opened(config(tmp_path)):
        pass
    with pytest.raises(
        ConfigError, match=r"rate was 1\.0 and is now 2\.0; .* must keep its configuration: --rate=1\.0$"
    ):
        opened(replace(config(tmp_path, resume=True), rate=2.0))
    with opened(config(tmp_path, resume=True, log_every=3)) as run:
        assert run.resumed


def change_stored_settings(folder, change):
    """As if another version had begun the run."""
    meta = json.loads((folder / "metadata.json").read_text())
    change(meta["config"])
    (folder / "metadata.json").write_text(json.dumps(meta))


@dataclass(frozen=True, kw_only=True)
class Spread(Config):
    """A configuration with a mesh.

    Attributes:
      mesh: the mesh.
    """

    mesh: MeshConfig = field(default_factory=MeshConfig)


def test_a_mesh_is_another_one_only_where_an_axis_differs_also_from_runs_without_that_axis(tmp_path):
    spread = Spread(run=config(tmp_path).run, mesh=MeshConfig(fsdp=2))
    with opened(spread):
        pass
    change_stored_settings(tmp_path, lambda settings: settings["mesh"].pop("context"))
    for changed, told in ((MeshConfig(fsdp=2), False), (MeshConfig(fsdp=2, context=2), True)):
        with opened(replace(spread, run=replace(spread.run, resume=True), mesh=changed)):
            pass
        assert (
            "fsdp=2, expert=1, context=2, tensor=1 where it was" in (tmp_path / "run.log").read_text()
        ) == told


def test_a_key_that_the_run_did_not_have_is_its_default_and_one_that_is_gone_is_named(tmp_path):
    with opened(config(tmp_path)):
        pass
    change_stored_settings(tmp_path, lambda settings: settings.pop("rate"))
    with pytest.raises(ConfigError, match=r"rate was 1\.0 and is now 2\.0"):
        opened(replace(config(tmp_path, resume=True), rate=2.0))
    with opened(config(tmp_path, resume=True)) as run:
        assert run.resumed
    change_stored_settings(tmp_path, lambda settings: settings.update(momentum=0.9))
    with pytest.raises(ConfigError, match=r"momentum was 0\.9 and is now None"):
        opened(config(tmp_path, resume=True))


def test_rewinding_drops_what_came_after_and_a_torn_line(tmp_path):
    with opened(config(tmp_path)) as run:
        for step in (1, 2, 3):
            run.log_metrics(step, {"b": 1.0, "a": float("nan")})
            run.log_samples(step, [{"text": "<b>"}])
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "torn')
        run.rewind(2)
    rows = list(records.read(tmp_path / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0] == {"step": 1, "a": "nan", "b": 1.0}
    assert [row["step"] for row in records.read(tmp_path / "samples.jsonl")] == [1, 2]


def fails(settings: Config, steps: int) -> None:
    with opened(settings) as run:
        for step in range(1, steps + 1):
            run.log_metrics(step, {"loss": 1.0})
        raise ConfigError("the data are wrong")


def test_a_run_that_fails_before_it_began_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="the data"):
        fails(config(tmp_path / "run"), 0)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="the data"):
        fails(config(tmp_path / "run"), 1)
    assert (tmp_path / "run" / "metadata.json").is_file()


def test_metadata_says_what_ran(tmp_path):
    with opened(config(tmp_path, seed=7)) as run:
        run.add_metadata(data={"rows": 3})
    meta = json.loads((tmp_path / "metadata.json").read_text())
    assert (meta["command"], meta["seed"], meta["data"]) == ("sft", 7, {"rows": 3})
    assert {"jax", "optax"} <= set(meta["versions"])
    assert meta["devices"]


def test_a_finished_run_has_a_report_with_pictures_and_escaped_samples(tmp_path):
    with opened(config(tmp_path)) as run:
        for step in (1, 2):
            run.log_metrics(step, {"train/loss": 2.0 / step, "eval/loss": 3.0 / step, "objective/kl": 0.1})
        run.log_samples(2, [{"prompt": "p", "completion": "<script>alert(1)</script>"}])
        run.finish({"eval/loss": 1.5})
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "1.5" in page
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))
    write_report(tmp_path)


def test_series_leave_out_what_is_no_number():
    rows = [{"step": 1, "a": 1.0, "b": "nan"}, {"step": 2, "a": 3}]
    assert metric_series(rows) == {"a": ([1, 2], [1.0, 3.0])}


def test_a_comparison_has_a_row_for_each_method(tmp_path):
    path = write_comparison_report(
        tmp_path / "report.html",
        title="T",
        subtitle="S",
        rows=[{"method": "ppo", "reward": 1.25}],
        notes=["n & m"],
    )
    page = path.read_text()
    assert "ppo" in page
    assert "1.25" in page
    assert "n &amp; m" in page


def test_a_signal_sets_the_flag_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag() as flag:
        assert flag.signal_received is None
        signal.raise_signal(signal.SIGTERM)
        assert flag.signal_received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_tracker_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"jaxalign\[wandb\]"):
        opened(config(tmp_path, wandb=True))


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A model's settings.

    Attributes:
      remat: a level.
    """

    remat: str = "none"


@dataclass(frozen=True, kw_only=True)
class Modelled(Config):
    """A configuration with a model.

    Attributes:
      model: it.
    """

    model: Layers = field(default_factory=Layers)


@pytest.mark.parametrize(("written", "level"), [(False, "none"), (True, "full")])
def test_rematerialization_that_was_on_or_off_is_now_a_level(written, level, tmp_path):
    settings = Modelled(run=config(tmp_path).run, model=Layers(remat=level))
    with opened(settings):
        pass
    path = tmp_path / "metadata.json"
    stored = json.loads(path.read_text())
    stored["config"]["model"]["remat"] = written
    path.write_text(json.dumps(stored))
    again = replace(settings, run=replace(settings.run, resume=True))
    with opened(again) as run:
        assert run.resumed
    with pytest.raises(ConfigError, match=rf"model\.remat was '{level}' and is now 'minimal'"):
        opened(replace(again, model=Layers(remat="minimal")))


def test_the_interval_of_a_metric_is_a_band_and_no_curve_of_its_own():
    from jaxalign.runs.report import _panels

    line, low, high = ([1, 2], [0.5, 0.6]), ([1, 2], [0.4, 0.5]), ([1, 2], [0.6, 0.7])
    panels = _panels(
        {
            "eval/accuracy": line,
            "eval/accuracy_low": low,
            "eval/accuracy_high": high,
            "train/accuracy": line,
            # What has no other bound, or other steps, stays what it is.
            "policy/clip_low": low,
            "eval/margin": line,
            "eval/margin_low": ([1], [0.4]),
            "eval/margin_high": high,
        }
    )
    assert panels["accuracy"] == {"eval": (*line, low[1], high[1]), "train": line}
    assert set(panels) == {"accuracy", "policy/clip_low", "margin", "margin_low", "margin_high"}


def test_a_band_changes_the_picture():
    from jaxalign.runs import plots

    line, band = ([1, 2, 3], [0.5, 0.6, 0.7]), ([0.4, 0.5, 0.6], [0.6, 0.7, 0.8])
    assert plots.curve({"eval": (*line, *band)}, "x") != plots.curve({"eval": line}, "x")
    assert plots.curve({"eval": ([1], [0.5], [0.4], [0.6])}, "x") != plots.curve({"eval": ([1], [0.5])}, "x")


def test_completions_of_all_steps_are_in_the_report_with_long_ones_folded(tmp_path):
    with opened(config(tmp_path)) as run:
        for step in (2, 4, 6):
            run.log_samples(
                step,
                [{"prompt": f"asked {step}", "completion": "w" * 900 + f"end {step}", "score": step / 8}],
            )
        run.finish({})
    page = (tmp_path / "report.html").read_text()
    section = page[page.index("<h2>Samples during training</h2>") :]
    # The latest is open, the others are under their steps, the newest first.
    assert section.index("<p class=dim>step 6</p>") < section.index("asked 6") < section.index("asked 4")
    assert (
        section.index("<details><summary>step 4</summary>")
        < section.index("asked 4")
        < section.index("asked 2")
    )
    assert section.count("<th>prompt</th><th>completion</th><th class=number>score</th>") == 3
    assert "<td class=number>0.75</td>" in section
    assert f"<details><summary>{'w' * 400} …</summary>{'w' * 900}end 6</details>" in section


def test_a_tracker_gets_completions_where_it_takes_them(tmp_path):
    class Numbers:
        def log(self, step, values):
            pass

        def close(self):
            pass

    class Both(Numbers):
        def __init__(self):
            self.seen = []

        def log_samples(self, step, rows):
            self.seen.append((step, rows))

    with opened(config(tmp_path)) as run:
        both, rows = Both(), [{"prompt": "p", "completion": "c"}]
        run._trackers += [Numbers(), both]
        run.log_samples(3, rows)
        run.log_samples(4, [])
    assert both.seen == [(3, rows)]


def test_the_first_and_last_answers_to_a_prompt_stand_side_by_side(tmp_path):
    run = opened(config(tmp_path))
    for step, word in ((0, "before"), (5, "between"), (9, "<after>")):
        rows = [
            {
                "source": "eval.generate",
                "number": number,
                "sample": sample,
                "prompt": f"prompt {number}.",
                "completion": f"{word} {number}.{sample}",
                "score": step / 4 + number,
            }
            for number in range(18)
            for sample in (0, 1)
        ]
        run.log_samples(step, rows)
        run.log_samples(step, [{"prompt": "p", "completion": f"sample of {step}"}])
    run.finish({})
    page = (tmp_path / "report.html").read_text()
    answers, samples = page.split("Samples during training")
    answers = answers.split("Answers to held-out prompts")[1]
    line = "<td class=text>prompt 1.</td><td class=text>before 1.0</td><td class=number>1</td>"
    assert f"{line}<td class=text>&lt;after&gt; 1.0</td><td class=number>3.25</td>" in answers
    assert "the first 16 of 18 prompts" in answers
    assert not [word for word in ("between", "before 1.1", "prompt 16.", "sample of") if word in answers]
    assert [f"sample of {step}" in samples for step in (0, 5, 9)] == [True] * 3
    assert "before" not in samples


def test_answers_of_one_evaluation_have_one_column(tmp_path):
    run = opened(config(tmp_path))
    run.log_samples(3, [{"source": "eval.generate", "number": 0, "prompt": "p", "completion": "c"}])
    run.finish({})
    page = (tmp_path / "report.html").read_text()
    assert "<tr><th>prompt</th><th>step 3</th></tr>" in page
    assert "Samples during training" not in page


@pytest.mark.parametrize("shown", ["mfu", "model_flops_per_second"])
def test_the_report_shows_mfu_and_where_there_is_none_the_operations_a_second(shown, tmp_path):
    times = {"time/model_flops_per_second": 2e9, "time/seconds": 1.0} | {f"time/{shown}": 0.5}
    with opened(config(tmp_path)) as run:
        run.log_metrics(1, times)
        run.finish({})
    assert [path.name for path in (tmp_path / "plots").iterdir()] == [f"time_{shown}.png"]
