"""Numbers reach the trackers that are asked for."""

import types

import pytest

from jaxalign.errors import ConfigError
from jaxalign.runs import RunConfig
from jaxalign.runs.trackers import make_trackers


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


@pytest.mark.parametrize(("package", "extra"), [("wandb", "wandb"), ("tensorboardX", "tensorboard")])
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
