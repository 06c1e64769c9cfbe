"""Folders of models that read images too: their text part is loaded, and one line says what is left out."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import ModelError

GOLDEN = Path(__file__).parents[1] / "golden" / "multimodal" / "gemma3"
LINE = (
    "{}: only the text part is loaded; 34 tensors for images are left out: multi_modal_projector (2), "
    "vision_tower (32)"
)


@pytest.fixture
def folder(tmp_path):
    """A copy to be changed."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "model"))


def change_config(folder: Path, **changes) -> None:
    body = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in (body | changes).items() if v is not None})
    )


def test_the_text_part_gives_the_logits_of_transformers_and_a_line(caplog):
    golden = np.load(GOLDEN / "golden.npz")
    model = models.load_pretrained(GOLDEN)
    np.testing.assert_allclose(model(jnp.asarray(golden["tokens"])), golden["logits"], atol=1e-4)
    assert [record.getMessage() for record in caplog.records] == [LINE.format(GOLDEN)]
    assert model.config.eos_ids == (2, 3)  # of the whole model, not of its text_config


def test_names_of_newer_versions_read_alike(folder, caplog):
    expected = models.load_pretrained(GOLDEN)
    tensors = {
        ("model." + name).replace("model.language_model.model.", "model.language_model."): array
        for name, array in load_file(folder / "model.safetensors").items()
    }
    assert "model.language_model.norm.weight" in tensors
    assert "model.vision_tower.head.probe" in tensors
    save_file(tensors, folder / "model.safetensors")
    found = models.load_pretrained(folder)
    assert caplog.records[-1].getMessage() == LINE.format(folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_saved_folder_has_the_text_part_alone(tmp_path, caplog):
    golden = np.load(GOLDEN / "golden.npz")
    np.testing.assert_allclose(golden["saved_logits"], golden["logits"], atol=1e-4)
    model = models.load_pretrained(GOLDEN)
    saved = models.save_pretrained(model, tmp_path / "saved")
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]
    assert all(name.startswith("model.") for name in load_file(saved / "model.safetensors"))
    caplog.clear()
    again = models.load_pretrained(saved)
    assert again.config == model.config
    assert not caplog.records


def test_what_a_text_config_leaves_out_is_what_transformers_takes(folder):
    """As that of gemma-3-4b-it."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
    }
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    change_config(folder, text_config=text, rope_parameters=None)
    config = models.load_config(folder)
    assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim) == (262_208, 8, 4, 256)
    assert (config.max_positions, config.sliding_window, config.query_scale) == (131_072, 1024, 1 / 16)
    assert (config.rope_theta, config.rope_theta_local, config.rope_scaling.factor) == (1e6, 1e4, 8.0)
    assert config.layer_slides[:6] == (True,) * 5 + (False,)
    assert (config.tied_head, config.pad_id) == (True, 0)


def test_what_cannot_be_loaded_is_named(folder):
    change_config(folder, text_config=None)
    with pytest.raises(ModelError, match=r"config\.json: text_config: missing"):
        models.load_pretrained(folder)
    text = json.loads((GOLDEN / "config.json").read_text())["text_config"]
    change_config(folder, text_config=text | {"use_bidirectional_attention": True})
    with pytest.raises(ModelError, match="use_bidirectional_attention = true is not supported"):
        models.load_pretrained(folder)
    change_config(folder, text_config=text)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"audio_tower.weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"unexpected tensors .*: audio_tower\.weight"):
        models.load_pretrained(folder)
