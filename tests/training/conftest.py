"""Small data files and configurations for the trainers."""

import json
import random
from dataclasses import replace

import pytest

from jaxalign.data import DataConfig
from jaxalign.llmdoctor.tfpo_config import PatientSource, TFPOConfig
from jaxalign.llmdoctor.token_rewards import TokenRewardConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.preference.dpo import DPOConfig
from jaxalign.training.reward_model.trainer import RewardConfig, RewardLossConfig
from jaxalign.training.rl.ppo_config import CriticConfig, PPOConfig, PPOTrainConfig
from jaxalign.training.sft import SFTConfig

WORDS = "ab cd ef gh ij kl mn op".split()


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """40 comparisons; a good answer has vowels only."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {
            "prompt": f"{WORDS[i % 8]} {WORDS[i // 8]}",
            "chosen": "aei" + "o" * (i % 5),
            "rejected": "xyz" + "w" * (i % 3),
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def steps_file(tmp_path_factory):
    """80 solutions of one to four steps, in no order; a step is right where it begins with a vowel."""
    path, draw = tmp_path_factory.mktemp("data") / "steps.jsonl", random.Random(0)
    rows = []
    for i in range(80):
        labels = [draw.random() < 0.5 for _ in range(draw.randint(1, 4))]
        steps = [draw.choice("aeiou" if right else "bcdfg") + "x" * draw.randint(1, 2) for right in labels]
        rows.append({"prompt": f"q{i} ", "completions": steps, "labels": labels})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reward_vowels(prompts, completions, *, completion_ids, columns):
    """A fractional reward: the share of vowels."""
    del prompts, columns
    return [
        sum(c in "aeiou" for c in text) / max(len(ids), 1)
        for text, ids in zip(completions, completion_ids, strict=True)
    ]


class Configs:
    """Configurations of every trainer on the tiny model."""

    def __init__(self, model, data, steps):
        self.model = ModelSource(path=str(model))
        self.data = DataConfig(train=(str(data),), template="plain", max_length=32, validation_fraction=0.2)
        self.stepwise = replace(self.data, train=(str(steps),), separator=";")
        self.train = TrainConfig(batch_size=4, steps=4)
        self.optimizer = OptimizerConfig(learning_rate=1e-2, warmup_ratio=0.3)

    def run(self, output, **changes):
        return RunConfig(
            **(
                {"output": str(output), "log_every": 1, "save_every": 2, "eval_every": 2, "progress": False}
                | changes
            )
        )

    def sft(self, output, **changes):
        parts = {"model": self.model, "data": self.data, "train": self.train, "optimizer": self.optimizer}
        return SFTConfig(run=self.run(output), sampling=SamplingConfig(max_new_tokens=4), **(parts | changes))

    def reward(self, output, **changes):
        parts = {"model": self.model, "data": self.data, "train": self.train, "optimizer": self.optimizer}
        return RewardConfig(run=self.run(output), **(parts | changes))

    def steps(self, output, **changes):
        loss = RewardLossConfig(labels="steps")
        return self.reward(output, **({"data": self.stepwise, "loss": loss} | changes))

    def dpo(self, output, **changes):
        parts = {"model": self.model, "data": self.data, "train": self.train, "optimizer": self.optimizer}
        return DPOConfig(run=self.run(output), sampling=SamplingConfig(max_new_tokens=4), **(parts | changes))

    def tfpo(self, output, **changes):
        parts = {
            "patient": PatientSource(path=self.model.path),
            # The shipped instructions are longer than the tiny model's context.
            "rewards": TokenRewardConfig(positive="be good", negative="be bad"),
            "data": self.data,
            "train": self.train,
            "optimizer": self.optimizer,
        }
        return TFPOConfig(
            run=self.run(output), sampling=SamplingConfig(max_new_tokens=4), **(parts | changes)
        )

    def ppo(self, output, **changes):
        parts = {
            "model": self.model,
            "data": self.data,
            "train": PPOTrainConfig(
                updates=4, prompts=4, epochs=2, minibatches=2, score_batch_size=8, eval_prompts=0
            ),
            "optimizer": self.optimizer,
            "reward": RewardSource(functions=(f"{__file__}:reward_vowels",), missing_stop_penalty=0.1),
            "critic": CriticConfig(optimizer=self.optimizer),
            "sampling": SamplingConfig(max_new_tokens=6, num_samples=2),
        }
        # Of the held-out prompts: at the end alone.
        return PPOConfig(run=self.run(output, eval_every=0), **(parts | changes))


@pytest.fixture(scope="session")
def configs(tiny_model_folder, pairs_file, steps_file):
    return Configs(tiny_model_folder, pairs_file, steps_file)
