"""The data of a run: recorded, warned of, the same when it resumes; on the disk, in a list or as a stream."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.data import DataConfig, load_dataset
from jaxalign.errors import ConfigError, UserError
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.runs import Run
from jaxalign.training.core import loading as run_data
from jaxalign.training.core.loading import dated, load_data
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.reward_model.ensemble import EnsembleConfig
from jaxalign.training.reward_model.trainer import train_reward
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.sft import train_sft


def written(path, count=24, **columns):
    rows = [{"prompt": f"q{i}", "completion": "aeiou"[i % 5] * (i % 4 + 1), **columns} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def metadata(folder):
    return json.loads((Path(folder) / "metadata.json").read_text())


def losses(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]


def resumed(config, **changes):
    return replace(config, run=replace(config.run, resume=True), **changes)


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_a_file_that_changed_since_the_run_began_is_named(name, configs, tmp_path):
    train = {"sft": train_sft, "ppo": train_ppo}[name]
    path = written(tmp_path / "rows.jsonl")
    held = written(tmp_path / "held.jsonl", 3)
    config = getattr(configs, name)(
        tmp_path / "run", data=replace(configs.data, train=(path,), validation=(held,))
    )
    train(config)
    assert set(metadata(tmp_path / "run")["data"]["files"]) == {path, held}
    train(resumed(config))
    body = Path(path).read_text()
    Path(path).write_text(body.replace('"q7"', '"p7"'))
    assert len(Path(path).read_text()) == len(body)
    with pytest.raises(
        ConfigError, match=r"^--resume: .*/rows\.jsonl or the tokenizer has changed since the run started"
    ) as caught:
        train(resumed(config))
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_a_streamed_file_that_changed_since_the_run_began_is_named(configs, tmp_path):
    path = written(tmp_path / "rows.jsonl")
    config = configs.sft(tmp_path / "run", data=streamed(configs, path))
    train_sft(config)
    assert set(metadata(tmp_path / "run")["data"]["files"]) == {path}
    train_sft(resumed(config))
    body = Path(path).read_text()
    Path(path).write_text(body.replace('"q7"', '"p7"'))
    with pytest.raises(
        ConfigError, match=r"^--resume: .*/rows\.jsonl or the tokenizer has changed since the run started"
    ):
        train_sft(resumed(config))


def test_a_run_of_an_earlier_version_goes_on(configs, tmp_path):
    config = configs.sft(tmp_path / "run", data=replace(configs.data, train=(written(tmp_path / "a.jsonl"),)))
    train_sft(config)
    about = metadata(tmp_path / "run")
    del about["data"]["files"], about["date"]
    (tmp_path / "run" / "metadata.json").write_text(json.dumps(about))
    train_sft(resumed(config))


def test_where_rows_are_kept_and_who_tokenizes_may_differ_between_a_run_and_its_resumption(configs, tmp_path):
    config = configs.sft(tmp_path / "run", data=replace(configs.data, train=(written(tmp_path / "a.jsonl"),)))
    train_sft(config)
    free = replace(config.data, cache=str(tmp_path / "cache"), workers=1, max_bytes=10**9)
    train_sft(resumed(config, data=free))
    with pytest.raises(ConfigError, match=r"data\.max_length was 32 and is now 31"):
        train_sft(resumed(config, data=replace(free, max_length=31)))


class Day:
    """A clock that says what it is told."""

    def __init__(self, day):
        self._day = day

    @property
    def date(self):
        return self

    def today(self):
        return self

    def isoformat(self):
        return self._day


def test_a_resumed_run_prints_the_day_on_which_it_began(configs, tmp_path, monkeypatch):
    config = configs.sft(tmp_path / "run").run
    monkeypatch.setattr(run_data, "datetime", Day("2024-02-29"))
    with Run.open(config, configs.sft(tmp_path / "run"), "sft") as run:
        assert dated(run, DataConfig()).date == "2024-02-29"
        monkeypatch.setattr(run_data, "datetime", Day("2024-03-01"))
        assert dated(run, DataConfig()).date == "2024-02-29"
        assert dated(run, DataConfig(date="2020-01-01")).date == "2020-01-01"
    assert metadata(tmp_path / "run")["date"] == "2020-01-01"


def test_what_training_does_not_use_is_warned_of_with_a_count(
    configs, tmp_path, byte_tokenizer, tiny_model_folder
):
    path, held = written(tmp_path / "a.jsonl", colour="red"), written(tmp_path / "held.jsonl", 4)
    settings = replace(configs.data, train=(path,), validation=(held,), deduplicate=False)
    shape = models.load_config(tiny_model_folder)
    with Run.open(configs.run(tmp_path / "run"), configs.sft(tmp_path / "run"), "sft") as run:
        load_data(run, settings, "demonstration", byte_tokenizer, shape, seed=0)
    log = (tmp_path / "run" / "run.log").read_text()
    assert "WARNING data: unused columns: colour (24 rows)" in log
    assert "WARNING data: 4 training rows share a prompt with data.validation" in log
    found = metadata(tmp_path / "run")["data"]
    assert (found["unread_columns"], found["shared_prompts"]) == ({"colour": 24}, 4)


@pytest.mark.long
def test_training_on_rows_from_the_disk_is_training_on_a_list_of_them(configs, tmp_path, monkeypatch):
    train_dpo(configs.dpo(tmp_path / "disk"))
    load = load_dataset

    def listed(*arguments, **options):
        data = load(*arguments, **options)
        return replace(data, train=list(data.train), validation=list(data.validation))

    monkeypatch.setattr(run_data, "load_dataset", listed)
    train_dpo(configs.dpo(tmp_path / "list"))
    assert losses(tmp_path / "disk") == losses(tmp_path / "list")
    assert len(losses(tmp_path / "disk")) == 4


def streamed(configs, path, **changes):
    return replace(configs.data, train=(path,), validation_fraction=0.0, streaming=True, workers=1, **changes)


@pytest.mark.long
@pytest.mark.parametrize("packing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_on_a_stream_resumes_to_the_same_numbers(configs, tmp_path, monkeypatch, packing):
    monkeypatch.setattr("jaxalign.data.files.CHUNK_BYTES", 256)
    path = written(tmp_path / "a.jsonl", 40)
    train = replace(configs.train, steps=12, packing=packing)
    settings = {"data": streamed(configs, path, window=10), "train": train}
    whole = train_sft(configs.sft(tmp_path / "whole", **settings))
    began = configs.sft(tmp_path / "run", **settings)

    from jaxalign.training.core import loop

    update = loop.Loop._save

    def stopping(self, step, state):
        update(self, step, state)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_save", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_sft(began)
    found = train_sft(resumed(began))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    ours, theirs = (jax.tree.leaves(models.split(result.model)[1]) for result in (found, whole))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.long
def test_reward_dpo_and_ppo_take_a_stream(configs, tmp_path, pairs_file):
    data = streamed(configs, str(pairs_file))
    for train, config in (
        (train_reward, configs.reward(tmp_path / "reward", data=data)),
        (train_dpo, configs.dpo(tmp_path / "dpo", data=data)),
        (train_ppo, configs.ppo(tmp_path / "ppo", data=data)),
    ):
        assert np.isfinite(list(train(config).metrics.values())).all()
        assert metadata(config.run.output)["data"]["streaming"] is True


def test_what_must_know_all_rows_refuses_a_stream_by_name(configs, tmp_path, pairs_file):
    data = streamed(configs, str(pairs_file))
    train = replace(configs.train, steps=0, epochs=1.0)
    tokens = replace(configs.train, batch_tokens=512)
    wrong = [
        (train_sft, configs.sft, {"train": train}, "^train.steps: data.streaming=true needs it"),
        (train_sft, configs.sft, {"train": tokens}, "^train.batch_tokens: the lengths of a stream's rows"),
        (
            train_dpo,
            configs.dpo,
            {"reference_logps": "precomputed"},
            "^reference_logps=precomputed needs all",
        ),
        (
            train_reward,
            configs.reward,
            {"ensemble": EnsembleConfig(size=2)},
            "^ensemble.size needs all rows",
        ),
        (train_tfpo, configs.tfpo, {}, "^tfpo needs all rows"),
    ]
    for number, (run, make, changes, message) in enumerate(wrong):
        with pytest.raises(ConfigError, match=message):
            run(make(tmp_path / str(number), data=data, **changes))


def test_a_streamed_row_that_does_not_fit_the_model_is_named(configs, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "' + "b" * 70 + '"}\n')
    data = streamed(configs, str(path), max_length=90)
    with pytest.raises(UserError, match=r"a\.jsonl:1: the row has \d+ tokens.* context is 64"):
        train_sft(configs.sft(tmp_path / "run", data=data))
