"""Preference losses start at the reference and learn to prefer what was chosen."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.lora import LoraConfig
from jaxalign.runs import records
from jaxalign.training.loop import TrainConfig
from jaxalign.training.preference import DPOLossConfig, train_dpo
from jaxalign.training.setup import ModelSource
from tests.training.cases import dpo_case


def first_metrics(folder):
    return next(row for row in records.read(folder / "metrics.jsonl") if "train/loss" in row)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DPOLossConfig(), np.log(2)),
        (DPOLossConfig(label_smoothing=0.2), np.log(2)),
        (DPOLossConfig(name="robust", label_smoothing=0.2), np.log(2)),
        (DPOLossConfig(name="hinge"), 1.0),
        # (0 - 1 / (2 beta))^2
        (DPOLossConfig(name="ipo", beta=0.25), 4.0),
    ],
    ids=lambda value: value.name if isinstance(value, DPOLossConfig) else "",
)
def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference(loss, expected, configs, tmp_path):
    config = configs.dpo(tmp_path / "run", loss=loss, train=TrainConfig(batch_size=4, steps=1))
    train_dpo(config)
    first = first_metrics(tmp_path / "run")
    assert first["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert first["train/margin"] == pytest.approx(0.0, abs=1e-5)


def test_held_out_pairs_are_preferred_as_labelled_afterwards(configs, tmp_path):
    result = train_dpo(configs.dpo(tmp_path / "run", train=TrainConfig(batch_size=8, steps=24)))
    assert result.metrics["eval/accuracy"] == 1.0
    assert result.metrics["eval/margin"] > 0.5


def test_a_reference_of_its_own_is_read_and_not_the_policys_start(configs, tmp_path, byte_tokenizer):
    start = models.load_pretrained(configs.model.path)
    other = models.create(start.config, key=jax.random.key(9))
    models.save_pretrained(other, tmp_path / "reference", tokenizer=byte_tokenizer)
    source = ModelSource(path=str(tmp_path / "reference"))
    train_dpo(
        configs.dpo(tmp_path / "run", reference=source, train=TrainConfig(batch_size=4, steps=1)),
    )
    assert first_metrics(tmp_path / "run")["train/margin"] != pytest.approx(0.0, abs=1e-3)


def test_with_an_adapter_the_reference_is_the_base_and_stays_as_it_was(configs, tmp_path):
    before = load_file(f"{configs.model.path}/model.safetensors")
    lora = LoraConfig(enabled=True, rank=2)
    config = configs.dpo(tmp_path / "run", lora=lora, train=TrainConfig(batch_size=8, steps=12))
    result = train_dpo(replace(config, optimizer=replace(config.optimizer, learning_rate=3e-2)))
    assert first_metrics(tmp_path / "run")["train/loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert result.metrics["eval/margin"] > 0
    after = load_file(f"{configs.model.path}/model.safetensors")
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])


def first_loss(devices, **changes):
    """(loss, metrics as means) on the tiny model, whose reference is another."""
    loss, counts, trained, frozen, batch = dpo_case(
        make_mesh(MeshConfig(), devices[:1]), DPOLossConfig(**changes)
    )
    value, sums = loss(trained, frozen, {k: np.asarray(v) for k, v in batch.items()}, None, counts(batch))
    return float(value), {name: float(a / b) for name, (a, b) in sums.items()}, batch


def test_the_supervised_term_is_the_chosen_completions_mean_loss_a_token(devices):
    plain, metrics, batch = first_loss(devices)
    more, _, _ = first_loss(devices, sft_weight=0.5)
    # A random model of 64 tokens: about log 64 = 4.2 nats a token.
    assert more - plain == pytest.approx(0.5 * np.log(64), rel=0.2)
    tokens = batch["mask"][:, 0][batch["valid"]].sum(1).mean()
    assert -metrics["logps_chosen"] / tokens == pytest.approx((more - plain) / 0.5, rel=0.1)


def test_length_normalised_margins_are_those_a_token(devices):
    summed, _, batch = first_loss(devices, beta=1.0)
    normalised, _, _ = first_loss(devices, beta=1.0, length_normalize=True)
    # Margins shrink by the number of tokens, so the loss comes nearer to log 2.
    assert batch["mask"].sum(2).min() > 2
    assert abs(normalised - np.log(2)) < 0.5 * abs(summed - np.log(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "loss.beta must be positive"),
        ({"label_smoothing": 0.5}, "loss.label_smoothing must lie in"),
        ({"name": "hinge", "label_smoothing": 0.1}, "has no meaning for loss.name=hinge"),
    ],
)
def test_numbers_without_meaning_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        DPOLossConfig(**changes)
