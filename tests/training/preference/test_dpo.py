"""Preference losses start at the reference and learn to prefer what was chosen."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.models.lora import LoraConfig
from jaxalign.runs import records
from jaxalign.training.core.batch import valid_count
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from jaxalign.training.preference.dpo import DPOLossConfig, train_dpo
from jaxalign.training.preference.objectives import make_preference_loss, whole_batch_statistics
from tests.training.cases import KEY, dpo_case, preference_parts


def first_metrics(folder):
    return next(row for row in records.read(folder / "metrics.jsonl") if "train/loss" in row)


@pytest.mark.long
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DPOLossConfig(), np.log(2)),
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


@pytest.mark.long
def test_held_out_pairs_are_preferred_as_labelled_afterwards(configs, tmp_path):
    result = train_dpo(configs.dpo(tmp_path / "run", train=TrainConfig(batch_size=8, steps=24)))
    assert result.metrics["eval/accuracy"] == 1.0
    assert result.metrics["eval/margin"] > 0.5


@pytest.mark.long
def test_a_reference_of_its_own_is_read_and_not_the_policys_start(configs, tmp_path, byte_tokenizer):
    start = models.load_pretrained(configs.model.path)
    other = models.create(start.config, key=jax.random.key(9))
    models.save_pretrained(other, tmp_path / "reference", tokenizer=byte_tokenizer)
    source = ModelSource(path=str(tmp_path / "reference"))
    train_dpo(
        configs.dpo(tmp_path / "run", reference=source, train=TrainConfig(batch_size=4, steps=1)),
    )
    assert first_metrics(tmp_path / "run")["train/margin"] != pytest.approx(0.0, abs=1e-3)


@pytest.mark.long
def test_a_run_in_packed_micro_batches_couples_the_rows_of_the_whole_batch(configs, tmp_path):
    start = models.load_pretrained(configs.model.path)
    other = models.create(start.config, key=jax.random.key(9))
    found = []
    for name, changes in {"whole": {}, "parts": {"accumulation_steps": 2, "packing": True}}.items():
        train = TrainConfig(batch_size=8, steps=1, **changes)
        loss = DPOLossConfig(name="aot", beta=20.0)
        train_dpo(configs.dpo(tmp_path / name, loss=loss, train=train), reference=other)
        found.append(first_metrics(tmp_path / name))
    for name in ("train/loss", "train/margin", "train/grad_norm"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4)


@pytest.mark.long
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
    mesh = make_mesh(MeshConfig(), devices[:1])
    loss, counts, trained, frozen, batch = dpo_case(mesh, DPOLossConfig(**changes))
    value, sums = loss(trained, frozen, shard_batch(batch, mesh), None, counts(batch))
    return float(value), {name: float(a / b) for name, (a, b) in sums.items()}, batch


@pytest.mark.long
def test_the_supervised_term_is_the_chosen_completions_mean_loss_a_token(devices):
    plain, metrics, batch = first_loss(devices)
    more, _, _ = first_loss(devices, sft_weight=0.5)
    # A random model of 64 tokens: about log 64 = 4.2 nats a token.
    assert more - plain == pytest.approx(0.5 * np.log(64), rel=0.2)
    tokens = batch.mask[:, 0][batch.valid].sum(1).mean()
    assert -metrics["logps_chosen"] / tokens == pytest.approx((more - plain) / 0.5, rel=0.1)


@pytest.mark.long
def test_length_normalised_margins_are_those_a_token(devices):
    summed, _, batch = first_loss(devices, beta=1.0)
    normalised, _, _ = first_loss(devices, beta=1.0, length_normalize=True)
    # Margins shrink by the number of tokens, so the loss comes nearer to log 2.
    assert batch.mask.sum(2).min() > 2
    assert abs(normalised - np.log(2)) < 0.5 * abs(summed - np.log(2))


@pytest.mark.long
@pytest.mark.parametrize("name", ["aot", pytest.param("kto", marks=pytest.mark.slow)])
def test_micro_batches_share_the_whole_batchs_statistics(name, devices):
    config, mesh = DPOLossConfig(name=name, beta=1.0), make_mesh(MeshConfig(), devices[:1])
    policy, definition, trained, frozen, batch = preference_parts(mesh, config)
    placed = shard_batch(batch, mesh)
    optimizer, _ = make_optimizer(OptimizerConfig(schedule="constant"), 1)
    loss = make_preference_loss(policy, definition, config)

    def metrics_of(batch, parts):
        update = make_update(loss, valid_count, optimizer, accumulation_steps=parts)
        start = jax.tree.map(jnp.copy, trained)  # the update donates its state
        return update(create_state(start, optimizer), frozen, batch, KEY)[1]

    whole, alone = metrics_of(placed, 1), metrics_of(placed, 4)
    given = whole_batch_statistics(policy, definition, config, 4)(trained, frozen, placed)
    parts = metrics_of(given, 4)
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-5)
    np.testing.assert_allclose(parts["grad_norm"], whole["grad_norm"], rtol=1e-5)
    assert abs(alone["loss"] / whole["loss"] - 1) > 1e-4  # by themselves they are another loss


@pytest.mark.long
def test_likely_pairs_weigh_more(devices):
    plain, _, _ = first_loss(devices)
    weighted, _, _ = first_loss(devices, weighted=True)
    # A random model spreads its mass, so that both weights are somewhat under 1.
    assert 0 < weighted < plain


def test_tokens_beyond_the_shorter_completion_can_be_left_out(devices):
    _, metrics, batch = first_loss(devices)
    _, shared, _ = first_loss(devices, length_alpha=0.0)
    chosen, rejected = batch.mask.sum(2).T
    assert (chosen != rejected).any()
    assert shared["logps_chosen"] > metrics["logps_chosen"]
    assert shared["logps_rejected"] > metrics["logps_rejected"]


@pytest.mark.long
def test_precomputed_reference_logps_give_the_same_run_and_are_kept(configs, tmp_path):
    live = train_dpo(configs.dpo(tmp_path / "live"))
    settings = {"reference_logps": "precomputed", "reference_cache": str(tmp_path / "cache")}
    first = train_dpo(configs.dpo(tmp_path / "first", **settings))
    assert first.metrics["eval/loss"] == pytest.approx(live.metrics["eval/loss"], rel=1e-5)
    ours, theirs = (load_file(run.folder / "export" / "model.safetensors") for run in (first, live))
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=1e-4, err_msg=name)
    (table,) = (tmp_path / "cache").iterdir()
    written = table.stat().st_mtime_ns
    train_dpo(configs.dpo(tmp_path / "second", **settings))
    assert [(p.name, p.stat().st_mtime_ns) for p in (tmp_path / "cache").iterdir()] == [(table.name, written)]
    table.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=f"{table.name}.*delete the file"):
        train_dpo(configs.dpo(tmp_path / "fourth", **settings))


@pytest.mark.long
def test_labelled_completions_are_learned_by_kto(configs, tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": f"question {i}", "completion": "aeio" if i % 2 else "xyzw", "label": bool(i % 2)}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kto, train = DPOLossConfig(name="kto"), TrainConfig(batch_size=8, steps=16)
    config = configs.dpo(tmp_path / "run", loss=kto, train=train)
    result = train_dpo(replace(config, data=replace(config.data, train=(str(path),))))
    assert result.metrics["eval/accuracy"] > 0.9
    assert result.metrics["eval/reward_desirable"] > result.metrics["eval/reward_undesirable"]


@pytest.mark.parametrize("name", ["kto", "bco", "aot"])
def test_losses_that_set_examples_against_each_other_ask_for_two(name, configs, tmp_path):
    settings = {"loss": DPOLossConfig(name=name), "train": TrainConfig(batch_size=1)}
    with pytest.raises(
        ValueError, match=rf"train.batch_size must be 2 or more with loss.name={name}, .* got 1"
    ):
        configs.dpo(tmp_path, **settings)
    settings["train"] = TrainConfig(eval_batch_size=1)
    with pytest.raises(ValueError, match=r"train.eval_batch_size must be 2 or more"):
        configs.dpo(tmp_path, **settings)
    by_tokens = TrainConfig(batch_size=1, batch_tokens=4096, eval_batch_size=8)  # where it is not read
    configs.dpo(tmp_path, loss=DPOLossConfig(name=name), train=by_tokens)
    configs.dpo(tmp_path, train=TrainConfig(batch_size=1))  # DPO does not
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    data = replace(configs.data, train=(str(path),), validation_fraction=0.0)
    with pytest.raises(
        ConfigError, match=rf"loss.name={name} compares .* 2 or more, got 1 for training and 0 held"
    ):
        train_dpo(configs.dpo(tmp_path / "run", loss=settings["loss"], data=data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "loss.beta must be positive"),
        ({"label_smoothing": 0.5}, "loss.label_smoothing must lie in"),
        ({"name": "hinge", "label_smoothing": 0.1}, "is not used by loss.name=hinge"),
    ],
)
def test_numbers_without_meaning_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        DPOLossConfig(**changes)
