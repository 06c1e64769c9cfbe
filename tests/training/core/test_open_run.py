"""An open run: a key for each of its parts, and live models on its mesh."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.lora import LoraConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.open_run import OpenRun
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.sft import train_sft
from tests.training.cases import shape


def test_a_fresh_adapter_is_drawn_from_the_first_of_the_runs_keys(devices):
    key, lora = jax.random.key(7), LoraConfig(enabled=True, rank=2)
    model, mesh = models.create(shape(), key=jax.random.key(0)), make_mesh(MeshConfig(), devices[:1])
    run = OpenRun(SimpleNamespace(lora=lora), SimpleNamespace(), mesh, key)
    _, adapter, _ = run.trained_parts(model)
    expected, other = (models.create_adapter(shape(), lora, key=jax.random.fold_in(key, n)) for n in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, adapter, expected)
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (adapter, other)), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_live_models_are_laid_out_on_the_mesh(name, configs, tmp_path):
    config = getattr(configs, name)(tmp_path / "run", train=TrainConfig(batch_size=8, steps=1))
    config = replace(
        config,
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        run=replace(config.run, sample_every=0, sample_rows=0),
        data=replace(config.data, validation_fraction=0.0),
    )
    tokenizer = models.load_tokenizer(config.model.path)
    live, other = (models.load_pretrained(config.model.path) for _ in range(2))
    if name == "sft":
        result = train_sft(config, model=live, tokenizer=tokenizer)
    else:
        result = train_dpo(config, policy=live, reference=other, tokenizer=tokenizer)
    trained = result.model.params["layers"]["up_proj"]
    assert tuple(trained.sharding.spec) == (None, "fsdp", "tensor")
    assert len(live.params["layers"]["up_proj"].sharding.device_set) == 1


@pytest.mark.long
def test_a_live_model_that_is_policy_and_reference_is_laid_out_once(configs, tmp_path, monkeypatch):
    config = configs.dpo(tmp_path / "run", train=TrainConfig(batch_size=8, steps=1))
    live, placed = models.load_pretrained(config.model.path), []
    monkeypatch.setattr(OpenRun, "placed", lambda self, model: placed.append(model) or model)
    tokenizer = models.load_tokenizer(config.model.path)
    train_dpo(config, policy=live, reference=live, tokenizer=tokenizer)
    assert placed == [live]
