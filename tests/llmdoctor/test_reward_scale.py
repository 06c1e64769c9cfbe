"""The reward scale: the gradient is affine in it, the rule by hand, and what a run says and keeps."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.reward_scale import RewardGradients, make_reward_gradients, reward_scale
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.llmdoctor.tfpo_config import TFPOLossConfig
from jaxalign.runs import report
from jaxalign.training.core.loop import TrainConfig


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda folder: None)


def test_the_rule_by_hand():
    found = RewardGradients(base_norm=6.0, label_norm=2.0, product=-12.0, gap=8.0)
    assert found.scale() == 12.0  # 6 / (2 / 4); ten nats would ask for 1.25
    assert found.ratio(12.0) == 0.25
    # Against the labels (product = -|G0| |G1|): at 12 they win, at 1 they lose.
    assert found.cosine(12.0) == pytest.approx(1.0)
    assert found.cosine(1.0) == pytest.approx(-1.0)
    assert replace(found, product=0.0).cosine(12.0) == pytest.approx(math.cos(math.atan(1 / 4)))
    # Nothing to be outweighed, where the target holds what the doctor begins as: ten nats.
    assert replace(found, base_norm=0.0).scale() == 1.25


@pytest.mark.parametrize("angle", np.linspace(0, math.pi, 7))
def test_at_the_rules_ratio_the_step_is_within_fifteen_degrees_of_the_labels(angle):
    found = RewardGradients(base_norm=3.0, label_norm=7.0, product=21.0 * math.cos(angle), gap=100.0)
    assert found.cosine(found.scale()) >= math.cos(math.asin(0.25)) - 1e-9


@pytest.mark.parametrize("wrong", [{"label_norm": 0.0}, {"gap": 0.0}, {"base_norm": math.inf}])
def test_rewards_without_a_gradient_ask_for_a_number(wrong):
    with pytest.raises(
        ConfigError,
        match=r"loss\.reward_scale=auto cannot be measured: .* set loss\.reward_scale to a number",
    ):
        replace(RewardGradients(base_norm=1.0, label_norm=1.0, product=0.0, gap=1.0), **wrong).scale()


@jax.tree_util.register_dataclass
@dataclass
class Batch:
    features: Any
    rewards: Any
    valid: Any


def test_gradients_are_the_parts_of_an_affine_function_over_micro_batches_too():
    """A loss of the form of balance: squares of residuals that are affine in eta."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 8, 2, 5)).astype(np.float32)
    rewards = rng.normal(size=(3, 8, 2, 5)).astype(np.float32)
    weights = rng.normal(size=5).astype(np.float32)
    valid = np.ones((3, 8), bool)
    valid[1, 2:] = False

    def loss_at(eta):
        def loss(params, frozen, batch, key, counts):
            residual = eta * batch.rewards.sum(2) + batch.features @ params["policy"] - frozen
            squares = jnp.where(batch.valid[:, None], residual**2, 0)
            return params["value"] * jnp.sum(squares) / counts, {}

        return loss

    batches = [Batch(features[i], rewards[i], valid[i]) for i in range(3)]
    parts = {"policy": jnp.asarray(weights), "value": jnp.float32(2.0)}
    found = [
        make_reward_gradients(loss_at, lambda batch: jnp.sum(batch.valid), accumulation_steps=steps)(
            parts, 1.5, [jax.tree.map(jnp.asarray, batch) for batch in batches]
        )
        for steps in (1, 2)
    ]

    def gradient(eta):
        total = np.zeros(5)
        for i in range(3):
            x, r = features[i][valid[i]].astype(np.float64), rewards[i][valid[i]].astype(np.float64)
            residual = eta * r.sum(2) + x @ weights - 1.5
            total += 2 * 2 * np.einsum("bg,bgd->d", residual, x) / valid[i].sum() / 3
        return total

    base, labels = gradient(0.0), gradient(1.0) - gradient(0.0)
    sums = np.concatenate([rewards[i][valid[i]] for i in range(3)]).sum(2)
    for facts in found:
        assert facts.base_norm == pytest.approx(np.linalg.norm(base), rel=1e-4)
        assert facts.label_norm == pytest.approx(np.linalg.norm(labels), rel=1e-4)
        assert facts.product == pytest.approx(base @ labels, rel=1e-3)
        assert facts.gap == pytest.approx(np.abs(sums[:, 0] - sums[:, 1]).mean(), rel=1e-5)
        whole = gradient(7.0)
        cosine = whole @ labels / np.linalg.norm(whole) / np.linalg.norm(labels)
        assert facts.cosine(7.0) == pytest.approx(cosine, rel=1e-4)


def metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


@pytest.mark.long
def test_a_run_measures_its_scale_writes_it_down_and_keeps_it_on_resume(configs, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    config = configs.tfpo(folder, train=TrainConfig(batch_size=8, steps=2))
    config = replace(config, run=replace(config.run, sample_rows=0, save_every=2, log_every=1))
    result = train_tfpo(config)
    noted = metadata(folder)["reward_scale"]
    assert noted["asked"] == "auto" and noted["value"] == noted["auto"] > 0
    assert noted["base_to_labels"] == pytest.approx(0.25) and noted["cosine_to_labels"] >= 0.968
    assert result.card.loss["reward_scale"] == metadata(folder)["loss"]["reward_scale"] == noted["value"]
    assert f"reward scale: {noted['value']:.4g} (auto)" in (folder / "run.log").read_text()
    monkeypatch.setattr(
        "jaxalign.llmdoctor.tfpo.make_reward_gradients",
        lambda *_, **__: lambda *_: pytest.fail("measured again"),
    )
    longer = replace(config, run=replace(config.run, resume=True), train=replace(config.train, steps=3))
    again = train_tfpo(longer)
    assert metadata(folder)["reward_scale"] == noted
    assert again.card.loss["reward_scale"] == noted["value"]


@pytest.mark.long
def test_a_fixed_scale_that_buries_the_labels_is_warned_of_with_what_auto_would_be(configs, tmp_path):
    folder = tmp_path / "run"
    config = configs.tfpo(
        folder, train=TrainConfig(batch_size=8, steps=1), loss=TFPOLossConfig(reward_scale=1e-3)
    )
    train_tfpo(replace(config, run=replace(config.run, sample_rows=0, eval_every=0)))
    noted = metadata(folder)["reward_scale"]
    assert (noted["value"], metadata(folder)["loss"]["reward_scale"]) == (1e-3, 1e-3)
    assert "loss.reward_scale=0.001 buries the labels" in (said := (folder / "run.log").read_text())
    assert f"auto would be {noted['auto']:.3g}" in said


@pytest.mark.parametrize("wrong", [{"label_norm": 0.0}, {"base_norm": math.inf}])
def test_a_fixed_scale_is_taken_where_none_could_be_read_off(wrong):
    found = replace(RewardGradients(base_norm=1.0, label_norm=1.0, product=0.0, gap=1.0), **wrong)
    said, noted = [], {}
    run: Any = SimpleNamespace(
        metadata=lambda: noted, add_metadata=noted.update, tell=lambda *_: None, warn=said.append
    )
    assert reward_scale(run, 2.0, lambda: found) == 2.0
    assert (noted["reward_scale"]["auto"], said) == (None, [])
