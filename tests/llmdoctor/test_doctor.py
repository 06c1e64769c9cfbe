"""A doctor's files: the card comes back as it was written, wrong ones are named, and the value head is float32."""

import json
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import llmdoctor, models
from jaxalign.errors import ModelError
from jaxalign.models.heads import HeadConfig

CONFIG = models.ModelConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=32,
)
CARD = llmdoctor.DoctorCard(
    patient="/models/large",
    dimension="safety",
    preset="tilted",
    guidance="ratio",
    alpha=0.5,
    beta=2.0,
    reference="../start",
    adapter="../adapter",
    base="owner/name",
    loss={"reference_weight": 1.0},
)


def head(kind="linear", key=0, **changes):
    config = HeadConfig(kind=kind, hidden_size=24 if kind == "mlp" else 0)
    sizes = {"ramp": 1.5, "horizon": 20.0} | changes
    return llmdoctor.create_value_head(CONFIG, config, key=jax.random.key(key), **sizes)


@pytest.fixture
def export(tmp_path):
    """The `export/` of a run folder."""
    folder = tmp_path / "run" / "export"
    models.save_pretrained(models.create(CONFIG, key=jax.random.key(0)), folder)
    return folder


@pytest.mark.parametrize("inner", ["", "export"])
def test_a_card_comes_back_from_a_run_folder_and_from_its_export(inner, export):
    llmdoctor.save_doctor(export, CARD, head())
    found = llmdoctor.load_doctor_card(export.parent / inner)
    # Names that begin with a dot are seen from the card; the adapter stays as it is written.
    full = {"reference": str(export.parent / "start"), "tokenizer": str(export)}
    assert found == replace(CARD, **full)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_value_head_comes_back_bit_for_bit_and_the_model_beside_it_loads(kind, export):
    params = head(kind)
    llmdoctor.save_doctor(export, CARD, params)
    found = llmdoctor.load_value_head(export.parent)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert models.load_pretrained(export).config.hidden_size == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card | {"colour": 1}, "unknown key colour"),
        (lambda card: {k: v for k, v in card.items() if k != "beta"}, "the key beta is missing"),
        (lambda card: card | {"alpha": "big"}, "alpha is 'big', expected float"),
        (lambda card: card | {"beta": -1.0}, "beta must be non-negative and finite, got -1.0"),
        (lambda card: card | {"guidance": "sum"}, r"guidance is 'sum', expected product \| ratio"),
        (lambda card: [card], "expected an object"),
        (lambda card: "{", "not valid JSON"),
    ],
)
def test_a_damaged_card_is_named_with_its_key_in_one_line(change, message, export):
    llmdoctor.save_doctor(export, CARD, head())
    path = export / "doctor.json"
    body = change(json.loads(path.read_text()))
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    with pytest.raises(ModelError, match=rf"doctor\.json: .*{message}") as caught:
        llmdoctor.load_doctor_card(export)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_doctor_are_refused(export, tmp_path):
    with pytest.raises(ModelError, match=r"no doctor\.json; expected the run folder of a doctor"):
        llmdoctor.load_doctor_card(export)
    with pytest.raises(ModelError, match=r"no value_head\.safetensors"):
        llmdoctor.load_value_head(export)
    with pytest.raises(ModelError, match=r"no config\.json; a doctor's card"):
        llmdoctor.save_doctor(tmp_path, CARD, head())
    llmdoctor.save_doctor(export, CARD, head())
    (export / "value_head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"value_head\.safetensors: not a log-value head"):
        llmdoctor.load_value_head(export)


def test_a_save_that_fails_leaves_the_old_files_and_nothing_else(export, monkeypatch):
    llmdoctor.save_doctor(export, CARD, head())
    before = {path.name: path.read_bytes() for path in export.iterdir()}

    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        llmdoctor.save_doctor(export, replace(CARD, beta=9.0), head(key=1))
    assert {path.name: path.read_bytes() for path in export.iterdir()} == before


def test_log_values_are_the_head_after_each_token_on_a_ramp_by_depth():
    params = head()
    hidden = jax.random.normal(jax.random.key(1), (2, 3, 16))
    depth = jnp.asarray([[0, 0, 1, 2], [0, 1, 2, 2]])
    found = llmdoctor.log_values_before(params, hidden, depth)
    score = np.asarray(params["head"]["score"], np.float64)
    expected = 1.5 * (20.0 - np.asarray(depth, np.float64))
    expected[:, 1:] += np.asarray(hidden, np.float64) @ score
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_head_that_starts_at_zero_is_the_ramp_alone():
    zero = llmdoctor.create_value_head(
        CONFIG, HeadConfig(init_std=0.0), key=jax.random.key(0), ramp=2.0, horizon=5.0
    )
    found = llmdoctor.log_values_before(zero, jnp.ones((1, 3, 16)), jnp.asarray([[0, 1, 2, 3]]))
    np.testing.assert_array_equal(found, [[10, 8, 6, 4]])


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_head_is_float32_on_a_bfloat16_model(kind):
    low = replace(CONFIG, param_dtype="bfloat16", compute_dtype="bfloat16")
    config = HeadConfig(kind=kind)
    params = llmdoctor.create_value_head(low, config, key=jax.random.key(0), ramp=0.0, horizon=0.0)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    hidden = jax.random.normal(jax.random.key(1), (2, 3, 16)).astype(jnp.bfloat16)
    depth = jnp.zeros((2, 4), jnp.int32)
    found = llmdoctor.log_values_before(params, hidden, depth, config)
    assert found.dtype == jnp.float32
    # bfloat16 products would be off by about 1e-2.
    full = llmdoctor.log_values_before(params, hidden.astype(jnp.float32), depth, config)
    np.testing.assert_allclose(found, full, atol=1e-6)
