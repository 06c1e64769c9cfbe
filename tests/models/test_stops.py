"""The stop set of a folder is the union of its files', grows by name, and is written back with what else they say."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import llmdoctor, models
from jaxalign.errors import ModelError


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A copy of the tiny model's config.json, to which the test gives the end tokens of both files."""

    def made(config=None, generation=None):
        fields = json.loads((tiny_model_folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(fields | (config or {})))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return tmp_path

    return made


@pytest.fixture
def tiny(tiny_model_folder):
    return models.load_pretrained(tiny_model_folder)


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        (257, None, (257,)),
        (257, {}, (257,)),
        (257, {"eos_token_id": None}, (257,)),
        (257, {"eos_token_id": 5}, (5, 257)),
        (257, {"eos_token_id": [5, 257, 6]}, (5, 257, 6)),
        ([257, 7], {"eos_token_id": [5]}, (5, 257, 7)),
        (None, {"eos_token_id": [5, 5]}, (5,)),
        ([], {"eos_token_id": -1}, ()),
        (None, None, ()),
    ],
)
def test_end_tokens_of_both_files_stop(folder, config, generation, stops):
    assert models.load_config(folder({"eos_token_id": config}, generation)).eos_ids == stops


@pytest.mark.parametrize(
    ("generation", "message"),
    [({"eos_token_id": "</s>"}, "eos_token_id: expected a token id"), ([1], "an object")],
)
def test_generation_config_that_cannot_be_read_is_named(folder, generation, message):
    with pytest.raises(ModelError, match=f"generation_config.json: .*{message}"):
        models.load_config(folder({}, generation))


def test_what_a_generation_config_says_beside_end_tokens_is_exported(folder, tmp_path):
    said = {
        "bos_token_id": 3,
        "pad_token_id": 4,
        "eos_token_id": [5],
        "temperature": 0.6,
        "suppress_tokens": [8],
        "use_cache": True,
        "max_length": None,
        "_from_model_config": True,
        "transformers_version": "4.0",
    }
    config = models.load_config(folder({"eos_token_id": 257, "pad_token_id": 258}, said))
    model = models.with_stops(models.create(config, key=jax.random.key(0)), [9])
    out = models.save_pretrained(model, tmp_path / "out")
    written = json.loads((out / "generation_config.json").read_text())
    assert written == {
        "bos_token_id": 3,
        "pad_token_id": 4,
        "eos_token_id": [5, 257, 9],
        "temperature": 0.6,
        "suppress_tokens": [8],
    }
    fields = json.loads((out / "config.json").read_text())
    assert (fields["eos_token_id"], fields["pad_token_id"]) == ([5, 257, 9], 258)
    assert models.load_config(out) == model.config


def test_more_stops_leave_the_rest_of_a_model_alone(tiny):
    more = models.with_stops(tiny, [5, 257, 5])
    assert (tiny.config.eos_ids, more.config.eos_ids) == ((257,), (257, 5))
    jax.tree.map(np.testing.assert_array_equal, more.params, tiny.params)
    assert models.with_stops(more, (257, 5)) is more
    assert models.with_stops(tiny, ()) is tiny


@pytest.mark.parametrize("token", [259, -1])
def test_a_stop_outside_the_vocabulary_is_refused(tiny, token):
    with pytest.raises(
        ModelError, match=f"stop token {token} is outside the model's vocabulary of 259 tokens"
    ):
        models.with_stops(tiny, [token])


def test_a_guided_model_stops_where_its_patient_does(tiny):
    patient = models.with_stops(tiny, [5])
    both = llmdoctor.guide(patient, [llmdoctor.Doctor(tiny)], betas=[1.0])
    assert both.config.eos_ids == (257, 5)
    more = models.with_stops(both, [6])
    assert (more.config.eos_ids, both.config.eos_ids) == ((257, 5, 6), (257, 5))
    tokens = jnp.asarray([[1, 2, 3]])
    np.testing.assert_array_equal(more(tokens), both(tokens))


def test_a_tokenizer_without_an_end_token_adds_none(byte_tokenizer):
    assert models.tokenizer_stops(byte_tokenizer) == (257,)
    assert models.tokenizer_stops(SimpleNamespace(eos_token_id=None)) == ()
    assert models.tokenizer_stops(None) == ()
