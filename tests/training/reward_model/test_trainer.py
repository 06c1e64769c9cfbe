"""Reward models learn what the labels say, from pairs and from best-of-n."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxalign import models
from jaxalign.data import load_dataset
from jaxalign.models.heads import HeadConfig
from jaxalign.rewards import ModelReward
from jaxalign.runs import records
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.reward_model.trainer import RewardLossConfig, train_reward

LONGER = TrainConfig(batch_size=8, steps=24)


def metrics_of(folder):
    return records.read(folder / "metrics.jsonl")


@pytest.fixture
def rankings_file(tmp_path):
    """40 questions of four samples, of which one has vowels only."""
    path = tmp_path / "rankings.jsonl"
    rows = []
    for i in range(40):
        best = (i * 7) % 4
        samples = {f"sample{k}": "aeio" if k == best else "xyzw"[k:] + "vv" for k in range(4)}
        rows.append({"query": f"question {i}", **samples, "best": best})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.long
@pytest.mark.parametrize("head", [HeadConfig(kind="mlp", hidden_size=8, dropout=0.1)])
def test_held_out_pairs_are_told_apart(head, configs, tmp_path):
    result = train_reward(configs.reward(tmp_path / "run", train=LONGER, head=head))
    first = next(row for row in metrics_of(tmp_path / "run") if "eval/accuracy" in row)
    assert result.metrics["eval/accuracy"] == 1.0
    assert result.metrics["eval/margin"] > first["eval/margin"]


@pytest.mark.long
def test_the_best_of_four_is_found(configs, rankings_file, tmp_path):
    config = configs.reward(tmp_path / "run", train=LONGER, loss=RewardLossConfig(labels="best_of_n"))
    result = train_reward(replace(config, data=replace(config.data, train=(str(rankings_file),))))
    first = next(row for row in metrics_of(tmp_path / "run") if "train/loss" in row)
    # Four samples that a fresh head cannot tell apart: about log 4.
    assert first["train/loss"] == pytest.approx(np.log(4), abs=0.7)
    assert result.metrics["eval/accuracy"] == 1.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (RewardLossConfig(use_margin=True, label_smoothing=0.25), np.log(1 + np.exp(1.5)) - 0.25 * 1.5),
    ],
)
def test_the_first_loss_of_a_head_at_zero_is_known(loss, expected, configs, pairs_file, tmp_path):
    rows = [json.loads(line) | {"margin": 1.5} for line in pairs_file.read_text().splitlines()]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.reward(
        tmp_path / "run", head=HeadConfig(init_std=0.0), loss=loss, train=TrainConfig(batch_size=4, steps=1)
    )
    train_reward(replace(config, data=replace(config.data, train=(str(path),))))
    first = next(row for row in metrics_of(tmp_path / "run") if "train/loss" in row)
    assert first["train/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("normalize", [True, False])
def test_the_exported_model_gives_held_out_scores_of_mean_zero_and_variance_one(normalize, configs, tmp_path):
    config = configs.reward(tmp_path / "run", normalize=normalize)
    result = train_reward(config)
    held_out = load_dataset(config.data, "comparison", result.tokenizer, seed=0).validation
    rows = [row for example in held_out for row in example.rows]
    scores = ModelReward(models.load_reward_model(result.folder / "export")).score_rows(rows)
    if normalize:
        assert abs(scores.mean()) < 1e-4
        assert scores.std() == pytest.approx(1.0, abs=1e-3)
    else:
        assert scores.std() != pytest.approx(1.0, abs=1e-2)
