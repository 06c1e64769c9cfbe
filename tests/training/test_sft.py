"""Supervised fine-tuning learns its demonstrations, and reports the loss of held-out ones."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data import DataConfig, collate_demonstrations, load_dataset
from jaxalign.evaluation.policy import perplexity
from jaxalign.mesh import make_mesh
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import records
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.sft import train_sft
from tests.data.conftest import byte_tokenizer
from tests.training import cases


@pytest.fixture
def demonstrations(tmp_path):
    """48 prompts, answered with their first letter four times."""
    path = tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": f"{a}{b}", "completion": a * 4} for a in "abcdef" for b in "ghijklmn"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.long
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


@pytest.mark.long
def test_a_token_counts_by_its_weight_and_whole_weights_change_nothing():
    mesh = make_mesh(devices=jax.devices()[:1])
    loss, counts, params, frozen, batch = cases.sft_case(mesh)
    first = np.arange(12) < 6

    def value(**changes):
        weighed = jax.tree.map(jnp.asarray, replace(batch, **changes))
        return float(loss(params, frozen, weighed, cases.KEY, counts(weighed))[0]), float(counts(weighed))

    whole, number = value()
    assert value(weights=np.ones((8, 12), np.float32)) == (whole, number)
    # A mean: what all tokens share cancels.
    halves = 0.5 * batch.mask.astype(np.float32)
    assert value(weights=halves) == (pytest.approx(whole, rel=1e-6), number / 2)
    (early, n), (late, m) = (value(mask=batch.mask & part) for part in (first, ~first))
    uneven = (batch.mask * np.where(first, 1.0, 0.25)).astype(np.float32)
    expected = (early * n + 0.25 * late * m) / (n + 0.25 * m)
    assert value(weights=uneven)[0] == pytest.approx(expected, rel=1e-5)


def test_the_weights_of_turns_reach_the_batch(tmp_path):
    chat = [("user", "ab", 1), ("assistant", "cd", 0), ("user", "e", 1), ("assistant", "fgh", 0.5)]
    path = tmp_path / "chat.jsonl"
    turns = [{"role": role, "content": text, "weight": weight} for role, text, weight in chat]
    path.write_text(json.dumps({"messages": turns}))
    config = DataConfig(train=(str(path),), validation_fraction=0.0, template="markers")
    data = load_dataset(config, "demonstration", byte_tokenizer(), seed=0)
    batch = collate_demonstrations(data.train, [0])
    assert np.unique(batch["weights"][batch["mask"]]).tolist() == [0.5]
    assert batch["mask"].sum() == len(" fgh") + 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_samples_are_as_long_as_the_context_allows_and_a_run_ends_well(name, configs, tmp_path):
    config = getattr(configs, name)(tmp_path / "run")
    config = replace(config, sampling=SamplingConfig(max_new_tokens=10_000))
    result = {"sft": train_sft, "dpo": train_dpo}[name](config)
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    rows = records.read(tmp_path / "run" / "samples.jsonl")
    assert rows and all(row["completion"] for row in rows)
    positions = result.model.config.max_positions
    log = (tmp_path / "run" / "run.log").read_text()
    assert f"instead of sampling.max_new_tokens=10000: the model's context is {positions}" in log
