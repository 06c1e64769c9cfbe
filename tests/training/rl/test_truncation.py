"""Truncated sampling is allowed, said to be biased, and measured; and it is said where it is corrected for."""

import json

import numpy as np
import pytest

from jaxalign.rollout import Completions, SamplingConfig
from jaxalign.runs import records
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.on_policy_config import RolloutTrainConfig
from jaxalign.training.rl.online_dpo import train_online_dpo
from jaxalign.training.rl.online_dpo_config import OnlineDPOConfig
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import PPOTrainConfig

SAMPLING = {"max_new_tokens": 6, "num_samples": 2}


def train(kind, configs, folder, sampling, **more):
    ppo = configs.ppo(folder, sampling=sampling)
    same = {name: getattr(ppo, name) for name in ("run", "model", "data", "reward", "sampling", "optimizer")}
    if kind == "ppo":
        train = PPOTrainConfig(
            updates=2, prompts=4, epochs=1, minibatches=2, score_batch_size=8, eval_prompts=0
        )
        return train_ppo(configs.ppo(folder, sampling=sampling, train=train, **more))
    if kind == "grpo":
        return train_grpo(
            GRPOConfig(**same, train=GRPOTrainConfig(updates=2, prompts=4, eval_prompts=0), **more)
        )
    return train_online_dpo(
        OnlineDPOConfig(**same, train=RolloutTrainConfig(updates=2, prompts=4, eval_prompts=0))
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ppo", "grpo", "online_dpo"])
def test_truncated_sampling_is_warned_of_once_and_measured(kind, configs, tmp_path):
    train(kind, configs, tmp_path / "run", SamplingConfig(**SAMPLING, top_p=0.9, top_k=20))
    log = (tmp_path / "run" / "run.log").read_text()
    assert (
        log.count("WARNING sampling.top_k=20, sampling.top_p=0.9: completions are drawn from a truncated")
        == 1
    )
    assert (
        "the update is biased"
        in json.loads((tmp_path / "run" / "metadata.json").read_text())["truncated_sampling"]
    )
    for row in records.read(tmp_path / "run" / "metrics.jsonl"):
        assert 0.3 < row["rollout/truncated_mass"] < 1


@pytest.mark.long
def test_a_correction_for_truncated_sampling_is_named(configs, tmp_path):
    loss = GRPOLossConfig(importance_cap=3.0)
    train("grpo", configs, tmp_path / "run", SamplingConfig(**SAMPLING, min_p=0.1), loss=loss)
    log = (tmp_path / "run" / "run.log").read_text()
    assert (
        "sampling.min_p=0.1" in log
        and "loss.importance_cap = 3 corrects for it" in log
        and "biased" not in log
    )


@pytest.mark.long
def test_whole_distributions_are_not_warned_of(configs, tmp_path):
    train("grpo", configs, tmp_path / "run", SamplingConfig(**SAMPLING))
    assert "truncated" not in (tmp_path / "run" / "run.log").read_text()
    assert all(
        "rollout/truncated_mass" not in row for row in records.read(tmp_path / "run" / "metrics.jsonl")
    )


def test_the_truncated_mass_is_what_the_kept_tokens_lack_to_one():
    from jaxalign.training.rl.truncation import truncated_mass

    mask = np.asarray([[True, True], [True, False]])
    # Drawn from 1/2, 1/4 and all of the distribution; what lies behind the end is anything.
    whole = np.log(np.asarray([[0.1, 0.2], [0.3, 1.0]], np.float32))
    drawn = np.log(np.asarray([[0.2, 0.8], [0.3, 0.001]], np.float32))
    found = Completions(np.zeros((2, 2), int), mask, np.asarray([2, 1]), whole, drawn, ["stop", "stop"])
    assert truncated_mass(found) == pytest.approx((0.5 + 0.75 + 0.0) / 3, rel=1e-5)
