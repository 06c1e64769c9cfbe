"""Numbers reach the trackers that are asked for."""

import types

import pytest

from jaxalign.errors import ConfigError
from jaxalign.runs import RunConfig
from jaxalign.runs.trackers import make_trackers, markdown_table


class FakeWandB(types.ModuleType):
    """Records what is called."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.started.append(settings)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1

    def Table(self, **parts):
        return parts


class FakeMLflow(types.ModuleType):
    """A store of runs, by the part of the client that is used."""

    def __init__(self):
        super().__init__("mlflow")
        self.experiments, self.runs = {}, {}
        self.MlflowClient = lambda: self
        self.entities = types.SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (step, key, value),
            Param=lambda key, value: (key, value),
        )

    def get_experiment_by_name(self, name):
        return (
            types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None
        )

    def create_experiment(self, name):
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def create_run(self, experiment, run_name):
        number = f"r{len(self.runs)}"
        self.runs[number] = {
            "experiment": experiment,
            "name": run_name,
            "params": [],
            "metrics": [],
            "tables": {},
        }
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=number))

    def update_run(self, number, status):
        self.runs[number]["status"] = status

    def log_batch(self, number, metrics=(), params=()):
        assert len(params) <= 100
        self.runs[number]["metrics"] += metrics
        self.runs[number]["params"] += params

    def log_table(self, number, data, artifact_file):
        self.runs[number]["tables"][artifact_file] = data

    def set_terminated(self, number):
        self.runs[number]["status"] = "FINISHED"


ROWS = [{"prompt": "a|b", "completion": "<b>\nand *c*", "score": 0.25}, {"prompt": "d", "completion": "e"}]


def test_without_being_asked_for_there_is_none(tmp_path):
    assert make_trackers(RunConfig(), tmp_path, {}) == []


def test_tensorboard_gets_every_number(tmp_path):
    (tracker,) = make_trackers(RunConfig(tensorboard=True), tmp_path, {})
    tracker.log(3, {"train/loss": 0.5, "eval/accuracy": 0.75})
    tracker.close()
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"train/loss" in events.read_bytes()
    assert b"eval/accuracy" in events.read_bytes()


def test_wandb_gets_every_number_and_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    for step in (1, 2):
        (tracker,) = make_trackers(RunConfig(wandb=True), tmp_path, {"seed": 7})
        tracker.log(step, {"loss": 0.5})
        tracker.close()
    first, second = fake.started
    assert first["config"] == {"seed": 7}
    assert first["dir"] == str(tmp_path)
    assert first["id"] == second["id"]
    assert fake.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5})]
    assert fake.finished == 2


@pytest.mark.parametrize(
    ("package", "extra"),
    [("wandb", "wandb"), ("tensorboardX", "tensorboard"), ("mlflow", "mlflow"), ("trackio", "trackio")],
)
def test_a_package_that_is_not_there_is_named_by_its_extra(package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match=rf"jaxalign\[{extra}\]"):
        make_trackers(RunConfig(**{extra: True}), tmp_path, {})


def test_wandb_is_opened_with_the_first_numbers_and_by_its_own_variables(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    (tracker,) = make_trackers(RunConfig(wandb=True), tmp_path, {})
    tracker.close()
    assert fake.started == [] and fake.finished == 0
    for name, value in (("PROJECT", "taste"), ("NAME", "third"), ("RUN_ID", "abc"), ("DIR", "elsewhere")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    (tracker,) = make_trackers(RunConfig(wandb=True), tmp_path, {})
    tracker.log(1, {"loss": 0.5})
    (started,) = fake.started
    assert (started["project"], started["name"], started["id"], started["dir"]) == (
        "taste",
        "third",
        "abc",
        "elsewhere",
    )


def test_completions_are_a_table_in_tensorboard(tmp_path):
    (tracker,) = make_trackers(RunConfig(tensorboard=True), tmp_path, {})
    tracker.log_samples(3, ROWS)
    tracker.close()
    (events,) = (tmp_path / "tensorboard").glob("events*")
    wanted = (
        "| prompt | completion | score |\n| --- | --- | --- |\n"
        "| a&#124;b | &lt;b&gt;<br>and &#42;c&#42; | 0.25 |\n| d | e |  |"
    )
    assert markdown_table(ROWS) == wanted
    assert wanted.encode() in events.read_bytes()


def test_completions_are_a_table_in_wandb_and_trackio(tmp_path, monkeypatch):
    for name in ("wandb", "trackio"):
        fake = FakeWandB()
        monkeypatch.setitem(__import__("sys").modules, name, fake)
        (tracker,) = make_trackers(RunConfig(**{name: True}), tmp_path, {})
        tracker.log_samples(3, ROWS)
        [(step, logged)] = fake.logged
        table = logged["completions"]
        assert step == 3
        if name == "wandb":
            assert table["columns"] == ["prompt", "completion", "score"]
            assert table["data"][1] == ["d", "e", None]
        else:
            assert list(table["dataframe"].columns) == ["prompt", "completion", "score"]
            assert list(table["dataframe"].prompt) == ["a|b", "d"]


def test_mlflow_gets_settings_numbers_and_completions_and_a_resumed_run_is_the_same_run(
    tmp_path, monkeypatch
):
    fake = FakeMLflow()
    monkeypatch.setitem(__import__("sys").modules, "mlflow", fake)
    for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_NAME", "RUN_ID"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    settings = {"seed": 7, "run": {"output": "here", "keep": {}}} | {f"more{i}": i for i in range(150)}
    (unused,) = make_trackers(RunConfig(mlflow=True), tmp_path / "unused", settings)
    unused.close()
    assert not fake.runs and not fake.experiments
    for step in (1, 2):
        (tracker,) = make_trackers(RunConfig(mlflow=True), tmp_path, settings)
        tracker.log(step, {"train/loss": 0.5, "reward/my@own": 1.0})
        tracker.log_samples(step, ROWS)
        assert fake.runs["r0"].get("status") == (None if step == 1 else "RUNNING")
        tracker.close()
    [run] = fake.runs.values()
    assert (run["experiment"], run["name"], run["status"]) == ("e0", tmp_path.name, "FINISHED")
    assert len(run["params"]) == 153 and run["params"][:2] == [("seed", "7"), ("run.output", "here")]
    assert run["metrics"] == [
        (step, name, value)
        for step in (1, 2)
        for name, value in (("train/loss", 0.5), ("reward/my_own", 1.0))
    ]
    assert run["tables"]["completions/step-2.json"]["score"] == [0.25, None]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "taste")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "third")
    (tmp_path / "other").mkdir()
    (tracker,) = make_trackers(RunConfig(mlflow=True), tmp_path / "other", {})
    tracker.log(1, {"loss": 0.5})
    assert list(fake.experiments) == ["jaxalign", "taste"]
    assert (fake.runs["r1"]["experiment"], fake.runs["r1"]["name"]) == ("e1", "third")


def test_trackio_is_opened_late_by_its_variables_and_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(__import__("sys").modules, "trackio", fake)
    monkeypatch.setenv("TRACKIO_PROJECT", "taste")
    for step in (1, 2):
        (tracker,) = make_trackers(RunConfig(trackio=True), tmp_path, {"seed": 7})
        assert len(fake.started) == step - 1
        tracker.log(step, {"loss": 0.5})
        tracker.close()
    first, second = fake.started
    assert (first["project"], first["config"], first["resume"]) == ("taste", {"seed": 7}, "allow")
    assert first["name"] == second["name"] and first["name"].startswith(f"{tmp_path.name}-")
    assert fake.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5})] and fake.finished == 2
