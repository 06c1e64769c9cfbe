"""`flax_model.msgpack` as transformers 4 wrote it: logits equal its Flax classes', damage is one line."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models.flax_msgpack import FILE, INDEX

GOLDEN = Path(__file__).parents[1] / "golden" / "flax"
NAMES = sorted(p.name for p in GOLDEN.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_flax_classes(name):
    golden = np.load(GOLDEN / name / "golden.npz")
    logits = models.load_pretrained(GOLDEN / name)(jnp.asarray(golden["tokens"]))
    assert np.abs(golden["logits"]).max() > 1
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


def test_the_golden_folders_hold_what_they_are_there_for():
    assert NAMES == ["gemma", "gpt2", "gpt2_sharded", "llama", "mistral"]
    configs = {name: models.load_config(GOLDEN / name) for name in NAMES}
    heads = {name: (c.num_heads, c.num_kv_heads) for name, c in configs.items()}
    assert heads["llama"] == heads["mistral"] == (4, 2)
    assert heads["gemma"] == (4, 1)
    assert configs["llama"].qkv_bias and configs["gemma"].tied_head and not configs["gpt2_sharded"].tied_head
    assert configs["gemma"].head_dim * configs["gemma"].num_heads != configs["gemma"].hidden_size


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_saved_from_msgpack_loads_exactly(name, tmp_path):
    model = models.load_pretrained(GOLDEN / name)
    models.save_pretrained(model, tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.msgpack"))
    again = models.load_pretrained(tmp_path / "saved")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_safetensors_are_taken_before_msgpack(tmp_path):
    models.save_pretrained(models.load_pretrained(GOLDEN / "llama"), tmp_path / "model")
    (tmp_path / "model" / FILE).write_bytes(b"damaged")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    model = models.load_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(model.params["embed"]["tokens"], tensors["model.embed_tokens.weight"])


def truncate(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:1000])


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("gpt2", truncate, r"flax_model\.msgpack: not a readable Flax msgpack file"),
        ("gpt2", lambda f: (f / FILE).write_bytes(b"\x01"), "contains no parameter tree"),
        (
            "gpt2_sharded",
            lambda f: (f / "flax_model-00002-of-00002.msgpack").unlink(),
            r"00002-of-00002\.msgpack: named in flax_model\.msgpack\.index\.json, but the file does not exist",
        ),
        ("gpt2_sharded", lambda f: (f / INDEX).write_text("{}"), r"index\.json: not a readable index"),
        (
            "gpt2_sharded",
            lambda f: (f / INDEX).write_text(
                json.dumps({"weight_map": {"a": "flax_model-00001-of-00002.msgpack"}})
            ),
            r"missing tensor \S+",
        ),
    ],
)
def test_a_damaged_folder_is_one_line(name, damage, expected, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=expected) as error:
        models.load_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)
