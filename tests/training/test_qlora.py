"""Adapters trained on quantized weights: what is trained on, what is exported, and what cannot be."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.export.checkpoint_export import export_checkpoint
from jaxalign.kernels.nf4 import NF4
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.runs import records
from jaxalign.training.core.offline import OfflineRun
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.reward_model.trainer import train_reward
from jaxalign.training.rl.ppo_config import CriticConfig, PPOConfig
from jaxalign.training.sft import train_sft

LORA = LoraConfig(enabled=True, rank=2, base_weights="nf4")


@pytest.mark.long
@pytest.mark.parametrize("live", [False, True])
def test_an_adapter_is_trained_on_the_quantized_weights_and_exported_with_them(
    live, configs, tmp_path, monkeypatch
):
    bases, whole = [], OfflineRun.trained_parts
    monkeypatch.setattr(
        OfflineRun, "trained_parts", lambda run, policy: bases.append(policy) or whole(run, policy)
    )
    config, given = configs.sft(tmp_path / "run", lora=LORA), {}
    if live:
        given = {"model": models.load_pretrained(config.model.path)}
        given["tokenizer"] = models.load_tokenizer(config.model.path)
    result = train_sft(config, **given)
    (base,) = bases
    assert isinstance(base.params["layers"]["up_proj"], NF4)
    exported = models.load_pretrained(tmp_path / "run" / "export")
    adapter, settings = models.load_adapter(tmp_path / "run" / "adapter", exported.config)
    assert any(np.abs(part["b"]).max() > 0 for part in adapter.values())
    tokens = np.arange(12).reshape(2, 6)
    expected = models.load_pretrained(configs.model.path, weights="nf4")(
        tokens, adapter=models.attach(adapter, settings)
    )
    export_checkpoint(tmp_path / "run", output=tmp_path / "later", base=configs.model.path if live else "")
    for model in (exported, result.model, models.load_pretrained(tmp_path / "later")):
        np.testing.assert_allclose(model(tokens), expected, atol=1e-5)


@pytest.mark.long
def test_dpo_begins_where_policy_and_reference_are_one(configs, tmp_path):
    config = configs.dpo(tmp_path / "run", lora=LORA)
    train_dpo(replace(config, run=replace(config.run, log_every=1)))
    first = next(row for row in records.read(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row)
    assert first["train/loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.slow
def test_a_mesh_trains_the_same_adapter(configs, tmp_path):
    results = {}
    for name, mesh in (("one", MeshConfig()), ("four", MeshConfig(fsdp=2, tensor=2))):
        config = replace(configs.sft(tmp_path / name, lora=LORA), mesh=mesh)
        train_sft(config)
        results[name], _ = models.load_adapter(
            tmp_path / name / "adapter", models.load_config(configs.model.path)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), results["one"], results["four"])


def test_quantized_weights_without_an_adapter_are_refused():
    with pytest.raises(ValueError, match=r"lora\.base_weights=int8 needs lora\.enabled=true"):
        LoraConfig(base_weights="int8")


@pytest.mark.parametrize("train", [train_sft, train_reward])
def test_quantized_models_do_not_learn(train, configs, tmp_path):
    config = configs.sft(tmp_path / "run") if train is train_sft else configs.reward(tmp_path / "run")
    live = models.load_pretrained(configs.model.path, weights="nf4")
    with pytest.raises(ConfigError, match=r"quantized, which do not learn; set lora\.enabled=true"):
        train(config, model=live, tokenizer=models.load_tokenizer(configs.model.path))


def test_a_critic_that_begins_as_a_quantized_policy_is_refused():
    with pytest.raises(ValueError, match=r"lora\.base_weights=nf4 and critic\.init=policy"):
        PPOConfig(lora=LORA)
    PPOConfig(lora=LORA, critic=CriticConfig(init="reward"))
