"""Supervised fine-tuning learns its demonstrations, and reports the loss of held-out ones."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxalign.data import load_dataset
from jaxalign.evaluation.policy import perplexity
from jaxalign.runs import records
from jaxalign.training.loop import TrainConfig
from jaxalign.training.sft import train_sft


@pytest.fixture
def demonstrations(tmp_path):
    """48 prompts, answered with their first letter four times."""
    path = tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": f"{a}{b}", "completion": a * 4} for a in "abcdef" for b in "ghijklmn"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_held_out_loss_falls_and_is_the_log_of_the_exported_models_perplexity(
    configs, demonstrations, tmp_path
):
    config = configs.sft(tmp_path / "run", train=TrainConfig(batch_size=8, steps=40))
    config = replace(config, data=replace(config.data, train=(str(demonstrations),)))
    result = train_sft(config)
    rows = [row for row in records.read(tmp_path / "run" / "metrics.jsonl") if "eval/loss" in row]
    # A random model of 259 tokens starts near log 259 = 5.56.
    assert rows[0]["eval/loss"] == pytest.approx(np.log(259), abs=0.3)
    assert result.metrics["eval/loss"] < 0.6 * rows[0]["eval/loss"]
    held_out = load_dataset(config.data, "demonstration", result.tokenizer, seed=0).validation
    assert perplexity(result.model, held_out) == pytest.approx(np.exp(result.metrics["eval/loss"]), rel=1e-4)
