"""Training in batches of about as many tokens each."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from jaxalign.data import TokenBatches
from jaxalign.errors import ConfigError
from jaxalign.runs import records
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.preference.dpo import DPOLossConfig, train_dpo
from jaxalign.training.reward_model.ensemble import EnsembleConfig
from jaxalign.training.reward_model.trainer import RewardConfig, train_reward
from jaxalign.training.sft import train_sft
from tests.training.test_resume import Killed, assert_same_run, kill


@pytest.fixture
def letters(tmp_path):
    """60 prompts of 1 to 12 letters, answered with as many of the first one."""
    draw, path = random.Random(0), tmp_path / "letters.jsonl"
    rows = []
    for i in range(60):
        first, count = "abcdef"[i % 6], draw.randint(1, 12)
        rows.append({"prompt": first + "z" * (count - 1), "completion": first * count})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def steps_of(folder):
    return [row["step"] for row in records.read(folder / "metrics.jsonl") if "train/loss" in row]


@pytest.mark.long
def test_a_run_takes_the_steps_its_lengths_say_learns_and_resumes_bit_for_bit(
    configs, letters, tmp_path, monkeypatch
):
    seen = []
    plain = TokenBatches.next

    def following(self):
        seen.append(plain(self))
        return seen[-1]

    monkeypatch.setattr(TokenBatches, "next", following)

    def config(name):
        made = configs.sft(
            tmp_path / name, train=TrainConfig(batch_tokens=128, accumulation_steps=2, epochs=6)
        )
        made = replace(made, data=replace(made.data, train=(letters,)))
        return replace(made, run=replace(made.run, save_every=10, eval_every=100))

    result = train_sft(config("whole"))
    rows = json.loads((tmp_path / "whole" / "metadata.json").read_text())["data"]["train_rows"]
    per_epoch, rest = divmod(len(seen), 6)
    assert rest == 0
    assert steps_of(tmp_path / "whole") == list(range(1, len(seen) + 1))
    for epoch in range(6):
        part = seen[epoch * per_epoch : (epoch + 1) * per_epoch]
        drawn = [row for batch in part for row in batch["row_ids"][batch["valid"]].tolist()]
        assert sorted(drawn) == list(range(rows))
    assert {batch["tokens"].shape[1] for batch in seen} == {16, 32}
    assert all(64 < batch["tokens"].size <= 128 for batch in seen)
    # A random model of 259 tokens starts near log 259 = 5.56.
    assert result.metrics["eval/loss"] < 0.6 * np.log(259)

    with monkeypatch.context() as patch:
        stopped = iter(range(1, 1000))
        patch.setattr(TokenBatches, "next", lambda self: kill() if next(stopped) == 15 else plain(self))
        with pytest.raises(Killed):
            train_sft(config("parts"))
    again = config("parts")
    train_sft(replace(again, run=replace(again.run, resume=True)))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


RUNS = {
    "reward": (train_reward, {}),
    "steps": (train_reward, {}),
    "dpo": (train_dpo, {"reference_logps": "precomputed"}),
    "kto": (train_dpo, {"loss": DPOLossConfig(name="kto")}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_other_trainers_take_every_example_once(name, configs, tmp_path, monkeypatch):
    seen, plain = [], TokenBatches.next
    monkeypatch.setattr(TokenBatches, "next", lambda self: seen.append(plain(self)) or seen[-1])
    train, more = RUNS[name]
    make = getattr(configs, "dpo" if name == "kto" else name)
    config = make(tmp_path / "run", train=TrainConfig(batch_tokens=256), **more)
    result = train(config)
    drawn = [row for batch in seen for row in batch["row_ids"][batch["valid"]].tolist()]
    rows = json.loads((tmp_path / "run" / "metadata.json").read_text())["data"]["train_rows"]
    assert sorted(drawn) == list(range(rows))
    assert all(sum(batch[n].size for n in ("tokens", "kl_tokens") if n in batch) <= 256 for batch in seen)
    if name == "kto":
        assert min(batch["valid"].sum() for batch in seen) >= 2
    assert steps_of(tmp_path / "run") == list(range(1, len(seen) + 1))
    assert np.isfinite(result.metrics["eval/loss"])


def test_what_does_not_go_together_is_refused_in_one_line(configs, tmp_path):
    with pytest.raises(ValueError, match=r"train\.batch_tokens and train\.packing: choose one"):
        TrainConfig(batch_tokens=128, packing=True)
    with pytest.raises(ValueError, match=r"train\.batch_tokens must not be negative, got -1"):
        TrainConfig(batch_tokens=-1)
    with pytest.raises(ValueError, match=r"train\.batch_tokens needs a single reward model: .* got 3"):
        RewardConfig(train=TrainConfig(batch_tokens=128), ensemble=EnsembleConfig(size=3))
    TrainConfig(batch_tokens=128, accumulation_steps=3)  # batch_size = 8 has no part in it
    config = configs.sft(tmp_path / "run", train=TrainConfig(batch_tokens=10))
    with pytest.raises(ConfigError, match=r"train\.batch_tokens must be at least 16, .* got 10"):
        train_sft(config)
