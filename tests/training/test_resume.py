"""Stopped and resumed equals never stopped, bit for bit."""

import json
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.models.lora import LoraConfig
from jaxalign.runs import records
from jaxalign.training.core import exports, loss_scale
from jaxalign.training.core.loop import Interrupted
from jaxalign.training.core.step import Update
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.reward_model.trainer import train_reward
from jaxalign.training.rl.kl_controller import KLConfig
from jaxalign.training.rl.ppo import Trainer, train_ppo
from jaxalign.training.sft import train_sft

TRAINERS = {
    "sft": train_sft,
    "sft, float16": train_sft,
    "reward": train_reward,
    "steps": train_reward,
    "dpo": train_dpo,
    "tfpo": train_tfpo,
    "ppo": train_ppo,
    "ppo, one step": train_ppo,
}


def numbers(folder):
    """All metrics but wall-clock ones."""
    rows = records.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def terminate():
    """As an operator would."""
    signal.raise_signal(signal.SIGTERM)


class Killed(Exception):
    """Stands for what leaves no time to save."""


def kill():
    raise Killed


def at_step(monkeypatch, name: str, step: int, happens):
    """Calls `happens` in the given step (or update)."""
    if name.startswith("ppo"):
        plain = Trainer.update

        def update(self, number):
            if number == step:
                happens()
            return plain(self, number)

        monkeypatch.setattr(Trainer, "update", update)
        return
    plain_call, seen = Update.__call__, []

    def call(self, *arguments):
        seen.append(1)
        if len(seen) == step:
            happens()
        return plain_call(self, *arguments)

    monkeypatch.setattr(Update, "__call__", call)


def at_read(monkeypatch, number, happens):
    """Calls `happens` before the given read of a batch, those before the first step and of all members counted."""
    from jaxalign.data import BatchIterator

    plain_next, seen = BatchIterator.next, []

    def following(self):
        seen.append(1)
        if len(seen) == number:
            happens()
        return plain_next(self)

    monkeypatch.setattr(BatchIterator, "next", following)


def assert_same_run(ours, theirs):
    """The same parameters, bit for bit, and the same metrics."""
    ours_model, theirs_model = (load_file(run / "export" / "model.safetensors") for run in (ours, theirs))
    assert ours_model.keys() == theirs_model.keys()
    for tensor in ours_model:
        np.testing.assert_array_equal(ours_model[tensor], theirs_model[tensor], err_msg=tensor)
    assert numbers(ours) == numbers(theirs)


def settings_with_memory(configs, name):
    """Makes configurations whose next step depends on all that a checkpoint must hold."""
    if name == "sft, float16":  # a loss scale
        return lambda output: replace(
            configs.sft(output), model=replace(configs.sft(output).model, compute_dtype="float16")
        )
    if not name.startswith("ppo"):
        return getattr(configs, name)

    def make(output):
        config = configs.ppo(output)
        config = replace(config, train=replace(config.train, eval_prompts=4))
        return replace(
            config,
            reward=replace(config.reward, normalize=True),
            kl=KLConfig(controller="adaptive", coefficient=0.1, target=0.1, horizon=40),
            train=replace(config.train, epochs=1, minibatches=1) if name == "ppo, one step" else config.train,
        )

    return make


# In `make test` SFT and PPO are killed below, and the command line stops SFT by a signal.
@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_an_interrupted_and_resumed_run_gives_the_same_bits(name, configs, tmp_path, monkeypatch):
    train, make = TRAINERS[name], settings_with_memory(configs, name)
    whole = train(make(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        at_step(patch, name, 3, terminate)
        with pytest.raises(Interrupted) as stopped:
            train(make(tmp_path / "parts"))
    assert stopped.value.signal == signal.SIGTERM
    assert not (tmp_path / "parts" / "export").exists()
    config = make(tmp_path / "parts")
    train(replace(config, run=replace(config.run, resume=True)))
    assert_same_run(tmp_path / "parts", whole.folder)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["sft, float16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sft", "dpo", "tfpo")), "ppo"],
)
def test_a_killed_and_resumed_run_gives_the_same_bits(name, configs, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**20)  # the steps before the kill overflow
    train, make = TRAINERS[name], settings_with_memory(configs, name)
    whole = train(make(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        # The newest checkpoint is that of step 2; step 3 has been logged.
        at_step(patch, name, 4, kill)
        with pytest.raises(Killed):
            train(make(tmp_path / "parts"))
    config = make(tmp_path / "parts")
    train(replace(config, run=replace(config.run, resume=True)))
    assert_same_run(tmp_path / "parts", whole.folder)
    steps = [row for row in records.read(whole.folder / "metrics.jsonl") if "time/tokens_per_second" in row]
    assert len(steps) == 4 and all(row["time/model_flops_per_second"] > 0 for row in steps)


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_signal_at_a_step_that_evaluates_and_samples_loses_neither(name, configs, tmp_path, monkeypatch):
    train, plain = TRAINERS[name], settings_with_memory(configs, name)

    def make(output, **changes):
        config = plain(output)
        often = {"eval_every": 2, "sample_every": 2, "sample_rows": 2}
        return replace(config, run=replace(config.run, **often, **changes))

    whole = train(make(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        at_step(patch, name, 2, terminate)
        with pytest.raises(Interrupted):
            train(make(tmp_path / "parts"))
    train(make(tmp_path / "parts", resume=True))
    assert_same_run(tmp_path / "parts", whole.folder)
    ours, theirs = (list(records.read(run / "samples.jsonl")) for run in (tmp_path / "parts", whole.folder))
    assert ours == theirs and {row["step"] for row in ours} == {2, 4}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("sft", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("sft", False), ("ppo", False), ("ppo", True)]
        ),
    ],
)
def test_a_run_killed_at_its_export_ends_the_same_also_without_its_last_checkpoint(
    name, damaged, configs, tmp_path, monkeypatch
):
    train, config = TRAINERS[name], settings_with_memory(configs, name)(tmp_path / "parts")
    whole = train(settings_with_memory(configs, name)(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(exports, "write_folder", lambda *_: kill())
        with pytest.raises(Killed):
            train(config)
    last = tmp_path / "parts" / "checkpoints" / "4"
    if damaged:
        (last / "arrays" / "manifest.ocdbt").write_bytes(b"")
    result = train(replace(config, run=replace(config.run, resume=True)))
    assert_same_run(tmp_path / "parts", whole.folder)
    ours, theirs = (
        {key: value for key, value in run.metrics.items() if not key.startswith("time/")}
        for run in (result, whole)
    )
    assert ours == theirs and {name.partition("/")[0] for name in ours} > {"eval"}
    log = (tmp_path / "parts" / "run.log").read_text()
    assert ("4: the checkpoint is damaged (arrays/manifest.ocdbt has 0 bytes" in log) == damaged
    assert ("it is now 4.damaged, and the run goes on from step 2" in log) == damaged and last.is_dir()


# What earlier versions did not have.
LATER = {
    "sft": ("train.batch_tokens", "train.packing"),
    "ppo": (
        "kl.monitor",
        "rollout",
        "loss.importance_cap",
        "train.packing",
        "train.offload",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_run_without_the_keys_of_later_versions_goes_on(name, configs, tmp_path, monkeypatch):
    train, make = TRAINERS[name], getattr(configs, name)
    with monkeypatch.context() as patch:
        at_step(patch, name, 2, terminate)
        with pytest.raises(Interrupted):
            train(make(tmp_path / "run"))
    path = tmp_path / "run" / "metadata.json"
    meta = json.loads(path.read_text())
    for key in LATER[name]:
        *groups, last = key.split(".")
        section = meta["config"]
        for group in groups:
            section = section[group]
        del section[last]
    forms = meta.pop("implementations")
    path.write_text(json.dumps(meta))
    config = make(tmp_path / "run")
    train(replace(config, run=replace(config.run, resume=True)))
    assert json.loads(path.read_text())["implementations"] == forms
    assert [row["step"] for row in numbers(tmp_path / "run") if "loss" in row or "train/loss" in row] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_resuming_a_finished_run_changes_nothing(name, configs, tmp_path):
    train, config = TRAINERS[name], settings_with_memory(configs, name)(tmp_path / "run")
    first = train(config)
    before = (tmp_path / "run" / "export" / "model.safetensors").read_bytes()
    result = train(replace(config, run=replace(config.run, resume=True)))
    assert (tmp_path / "run" / "export" / "model.safetensors").read_bytes() == before
    assert result.metrics == first.metrics
    final = json.loads((tmp_path / "run" / "metadata.json").read_text())["final_metrics"]
    assert final == first.metrics and any(name.startswith(("train/", "objective/")) for name in final)


@pytest.mark.long
@pytest.mark.parametrize(("name", "key"), [("sft", "steps"), ("ppo", "updates")])
def test_a_finished_run_goes_on_where_it_is_resumed_with_more_steps(name, key, configs, tmp_path):
    train, config = TRAINERS[name], getattr(configs, name)(tmp_path / "run")
    first = train(config)
    length = getattr(config.train, key)

    def resumed(number):
        longer = replace(config.train, **{key: number})
        return train(replace(config, train=longer, run=replace(config.run, resume=True)))

    with pytest.raises(UserError, match=rf"train\.{key} was {length} and is now 1 \(it may be raised only\)"):
        resumed(1)
    result = resumed(length + 2)
    assert max(row["step"] for row in numbers(tmp_path / "run")) == length + 2
    assert result.metrics != first.metrics
    meta = json.loads((tmp_path / "run" / "metadata.json").read_text())
    assert meta["config"]["train"][key] == length + 2
    assert meta["raised"] == [f"train.{key} is {length + 2} where it was {length}"]
    # It is that long now.
    with pytest.raises(UserError, match=rf"train\.{key} was {length + 2} and is now {length}"):
        resumed(length)


@pytest.mark.long
def test_a_lora_run_resumes_and_exports_both_forms(configs, tmp_path):
    lora = LoraConfig(enabled=True, rank=2, dropout=0.1)
    result = train_sft(configs.sft(tmp_path / "run", lora=lora))
    merged = models.load_pretrained(tmp_path / "run" / "export")
    adapter, settings = models.load_adapter(tmp_path / "run" / "adapter", merged.config)
    base = models.load_pretrained(configs.model.path)
    beside = models.merge_adapter(base, models.attach(adapter, settings))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), beside.params, merged.params)
    assert any(np.abs(p["b"]).max() > 0 for p in adapter.values())
    assert result.folder == tmp_path / "run"


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(configs, tmp_path):
    config = configs.sft(
        tmp_path / "run", optimizer=replace(configs.optimizer, learning_rate=1e30, warmup_ratio=0.0)
    )
    with pytest.raises(UserError, match=r"step \d: the loss .* not finite; rows \[.*last good checkpoint"):
        train_sft(config)


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_a_row_longer_than_the_context_is_named_before_any_training(name, configs, tmp_path):
    config = getattr(configs, name)(tmp_path / "run")
    if name == "ppo":
        config = replace(config, sampling=replace(config.sampling, max_new_tokens=60))
    else:
        long = tmp_path / "long.jsonl"
        long.write_text('{"prompt": "a", "completion": "' + "b" * 70 + '"}\n')
        config = replace(
            config, data=replace(config.data, train=(str(long),), max_length=90, validation_fraction=0.0)
        )
    with pytest.raises(UserError, match=r"jsonl:\d+: the row has \d+ tokens.* context is 64; set data\.max_"):
        TRAINERS[name](config)
