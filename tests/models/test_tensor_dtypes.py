"""Folders are written in the dtype that is asked for, and say which."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models.tensor_dtypes import folder_dtype, in_dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_folder_has_the_dtype_that_its_config_says(dtype, tiny_model_folder, tmp_path):
    model = models.load_pretrained(tiny_model_folder)
    models.save_pretrained(model, tmp_path / "m", dtype=dtype)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype == folder_dtype(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert {x.dtype.name for x in tensors.values()} == {dtype}
    again = models.load_pretrained(tmp_path / "m")
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y.astype(dtype).astype(jnp.float32)),
        again.params,
        model.params,
    )


def test_gain_and_bias_of_a_reward_folder_keep_their_digits(tiny_model_folder, tmp_path):
    scalar = models.create_scalar_model(models.load_pretrained(tiny_model_folder), key=jax.random.key(0))
    scalar.weights["normalizer"]["gain"][...] = jnp.float32(1.2345678)
    models.save_reward_model(scalar, tmp_path / "r", dtype="bfloat16")
    assert folder_dtype(tmp_path / "r") == "bfloat16"
    again = models.load_reward_model(tmp_path / "r")
    assert float(again.params["normalizer"]["gain"]) == float(np.float32(1.2345678))


def test_the_dtype_of_most_weights_counts_and_config_json_where_there_are_none(tmp_path):
    from safetensors.numpy import save_file

    half = np.zeros((4, 4), ml_dtypes.bfloat16)
    save_file({"a": half, "norm": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    assert folder_dtype(tmp_path) == "bfloat16"
    (tmp_path / "model.safetensors").unlink()
    assert folder_dtype(tmp_path) is None
    (tmp_path / "config.json").write_text('{"torch_dtype": "float16"}')
    assert folder_dtype(tmp_path) == "float16"


def test_a_weight_beyond_float16_is_named():
    with pytest.raises(ModelError, match=r"layers\.q: a weight exceeds the largest float16"):
        in_dtype("layers.q", np.asarray([1.0, 7e4], np.float32), "float16")
    with pytest.raises(ModelError, match="dtype: expected float32, bfloat16, float16, got int8"):
        in_dtype("layers.q", np.zeros(1), "int8")
