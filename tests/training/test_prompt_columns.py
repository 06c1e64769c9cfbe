"""What a file of prompts holds beside them reaches the reward functions of every trainer on its own samples."""

import json
from dataclasses import replace

import pytest

from jaxalign.data import DataConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOTrainConfig
from jaxalign.training.rl.on_policy_config import RolloutTrainConfig
from jaxalign.training.rl.online_dpo import train_online_dpo
from jaxalign.training.rl.online_dpo_config import OnlineDPOConfig
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import PPOTrainConfig

SIZE = {"updates": 1, "prompts": 4, "score_batch_size": 8}
TRAINERS = {
    "grpo": (GRPOConfig, GRPOTrainConfig, train_grpo),
    "ppo": (None, PPOTrainConfig, train_ppo),
    "online_dpo": (OnlineDPOConfig, RolloutTrainConfig, train_online_dpo),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "columns", [{}, {"prompt": "question", "completion": "answer"}], ids=["as_it_is", "mapped"]
)
@pytest.mark.parametrize("name", TRAINERS)
def test_exact_answer_reads_the_answers_of_gsm8ks_layout(name, columns, configs, tmp_path):
    rows = [{"question": f"{i} and {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(12)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config_class, train_class, train = TRAINERS[name]
    config = configs.ppo(tmp_path / "run")
    parts = {
        "data": replace(config.data, train=(str(tmp_path / "gsm8k.jsonl"),), columns=columns),
        "reward": RewardSource(functions=("jaxalign.rewards.verifiable:exact_answer",)),
        "train": train_class(**SIZE),
    }
    if config_class is not None:
        shared = ("run", "model", "optimizer", "sampling")
        config = config_class(**{part: getattr(config, part) for part in shared}, **parts)
    else:
        config = replace(config, **parts)
    assert train(config).metrics["rollout/valid_rows"] == 1


def test_a_function_reads_any_column_but_the_prompts_own(configs, tmp_path):
    rows = [
        {"prompt": f"q {i}", "chosen": f"a {i}", "rejected": "b", "level": i, "problem": f"q {i}"}
        for i in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reward(prompts, completions, chosen, level, problem, **others):
        assert sorted(others["columns"]) == ["chosen", "level", "problem", "rejected"]
        assert chosen == [f"a {i}" for i in level]
        assert problem == prompts
        return [float(len(c)) for c in completions]

    ppo = configs.ppo(tmp_path / "run")
    data = DataConfig(train=(str(tmp_path / "pairs.jsonl"),), template="plain", max_length=32)
    parts = {
        "data": data,
        "train": GRPOTrainConfig(**SIZE),
        "sampling": ppo.sampling,
        "optimizer": ppo.optimizer,
    }
    train_grpo(GRPOConfig(run=ppo.run, model=ppo.model, **parts), reward=reward)
