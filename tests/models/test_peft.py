"""PEFT folders: what PEFT wrote gives PEFT's logits here, fused families included; what is written is read again."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models import LoraConfig

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["llama-dora", "phi3-dora", "gpt2-lora", "gpt_neox-rslora"]


def golden_model(case):
    return models.load_pretrained(GOLDEN / "models" / case.partition("-")[0])


def drawn(model, settings):
    """An adapter that changes all that it can."""
    layers = model.params["layers"]
    adapter = models.create_adapter(model.config, settings, key=jax.random.key(0), layers=layers)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), adapter)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_peft_wrote_gives_the_logits_of_peft(case):
    model, folder = golden_model(case), GOLDEN / "adapters" / case
    leaves, settings = models.load_adapter(folder, model.config)
    told = np.load(folder / "logits.npz")
    beside = jax.jit(model)(told["tokens"], adapter=models.attach(leaves, settings))
    np.testing.assert_allclose(beside, told["logits"], atol=2e-4)
    assert np.abs(jax.jit(model)(told["tokens"]) - told["logits"]).max() > 0.05
    merged = models.merge_adapter(model, models.attach(leaves, settings))
    np.testing.assert_allclose(jax.jit(merged)(told["tokens"]), told["logits"], atol=5e-4)


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", [{}, {"rslora": True}, {"dora": True}])
def test_a_folder_round_trips_to_the_same_leaves_and_settings(tmp_path, family, method):
    model = golden_model(family)
    settings = LoraConfig(enabled=True, rank=3, alpha=5.0, targets=("all",), **method)
    adapter = drawn(model, settings)
    models.save_adapter(adapter, tmp_path / "adapter", settings, model.config)
    loaded, read = models.load_adapter(tmp_path / "adapter", model.config)
    assert (read.rank, read.alpha, read.scale, read.dora) == (3, 5.0, settings.scale, settings.dora)
    assert set(read.targets) == set(adapter)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)


def test_of_a_fused_module_peft_sees_block_factors_of_a_larger_rank_with_the_same_scale(tmp_path):
    model = golden_model("phi3")
    settings = LoraConfig(enabled=True, rank=3, alpha=5.0)
    adapter = drawn(model, settings)
    models.save_adapter(adapter, tmp_path / "adapter", settings, model.config)
    body = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert body["target_modules"] == ["o_proj", "qkv_proj"]
    assert (body["rank_pattern"], body["alpha_pattern"]) == ({"qkv_proj": 9}, {"qkv_proj": 15.0})
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.qkv_proj.lora_{}.weight"
    change = np.float64(tensors[name.format("B")]) @ tensors[name.format("A")]
    own = [np.float64(adapter[n]["a"][1]) @ adapter[n]["b"][1] for n in ("q_proj", "k_proj", "v_proj")]
    np.testing.assert_allclose(change, np.concatenate(own, axis=1).T, atol=1e-6)


def test_a_projection_of_a_fused_module_may_have_no_adapter_but_not_with_dora(tmp_path):
    model = golden_model("phi3")
    settings = LoraConfig(enabled=True, rank=2, targets=("q_proj", "v_proj"))
    adapter = drawn(model, settings)
    models.save_adapter(adapter, tmp_path / "adapter", settings, model.config)
    loaded, _ = models.load_adapter(tmp_path / "adapter", model.config)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)
    with_norms = LoraConfig(enabled=True, rank=2, targets=("q_proj", "v_proj"), dora=True)
    with pytest.raises(ModelError, match="there is none on k_proj; use the merged export"):
        models.save_adapter(drawn(model, with_norms), tmp_path / "dora", with_norms, model.config)
    assert not (tmp_path / "dora").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"bias": "all"}, "bias=all"),
        ({"use_qalora": True}, "use_qalora: not supported"),
        ({"rank_pattern": {"layers.1.self_attn.qkv_proj": 4}}, "qkv_proj differ between layers"),
        ({"use_dora": False}, "unexpected tensors"),
        ({"r": 4}, r"expected \[4, 32\]"),
    ],
)
def test_what_a_folder_holds_and_cannot_be_read_is_named(tmp_path, change, message):
    model, folder = golden_model("phi3"), tmp_path / "adapter"
    shutil.copytree(GOLDEN / "adapters" / "phi3-dora", folder)
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        models.load_adapter(folder, model.config)
    with pytest.raises(ModelError, match=r"nowhere.adapter_config\.json"):
        models.load_adapter(tmp_path / "nowhere", model.config)
