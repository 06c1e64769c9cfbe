"""A small comparison: files of a few rows, and settings that the tiny model can bear."""

import json
from dataclasses import replace
from pathlib import Path

from jaxalign.evaluation.evaluate_config import AnswerConfig
from jaxalign.pipelines.compare_config import CompareBudget, CompareConfig, CompareData
from jaxalign.training.core.reward_source import RewardSource

REWARDS = '''"""Rewards that code can check."""


def letters(prompts, completions, **columns):
    return [float(len(c)) for c in completions]


def vowels(prompts, completions, **columns):
    return [float(sum(letter in "aeiou" for letter in c)) for c in completions]
'''


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def small(folder: Path, model: str = "model", **changes) -> CompareConfig:
    """Files in a folder, and a configuration that reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    rewards = folder / "rewards.py"
    rewards.write_text(REWARDS)
    demonstrations = [{"prompt": f"say {i}", "completion": f" it is {i}"} for i in range(8)]
    pairs = [{"prompt": f"tell {i}", "chosen": f" aei {i}", "rejected": f" xyz {i}"} for i in range(8)]
    feedback = [{"prompt": f"ask {i}", "completion": f" {i}!", "label": i % 2 == 0} for i in range(8)]
    held_out = [{"prompt": f"held {i}"} for i in range(5)] + [{"prompt": "Tell  3"}]
    data = CompareData(
        demonstrations=(write_rows(folder / "demonstrations.jsonl", demonstrations),),
        pairs=(write_rows(folder / "pairs.jsonl", pairs),),
        feedback=(write_rows(folder / "feedback.jsonl", feedback),),
        held_out_prompts=write_rows(folder / "held_out.jsonl", held_out),
    )
    settings = {
        "model": model,
        "seeds": (0, 1),
        "data": data,
        "proxy": RewardSource(functions=(f"{rewards}:letters",)),
        "gold": RewardSource(functions=(f"{rewards}:vowels",)),
        "budget": CompareBudget(samples=8, batch_size=4, rollout=8, rounds=2, best_of=2),
        "sampling": AnswerConfig(max_new_tokens=4, temperature=1.0),
        "settings": {"all": {"data.template": "plain", "data.max_length": 24}},
        "output": str(folder / "out"),
        "isolated": False,
        "device": "cpu",
    }
    return replace(CompareConfig(), **settings | changes)
