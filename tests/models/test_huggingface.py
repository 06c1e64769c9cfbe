"""Folders in and out: logits equal transformers', every tensor is checked."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import ModelError

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
FAMILIES = sorted(p.name for p in GOLDEN.iterdir())
SHARED = Path(os.environ.get("JAXALIGN_SHARED", Path(__file__).parents[3] / "shared"))
STORIES = SHARED / "data" / "models" / "stories260K"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family):
    golden = np.load(GOLDEN / family / "golden.npz")
    logits = models.load_pretrained(GOLDEN / family)(jnp.asarray(golden["tokens"]))
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_loads_exactly(family, tmp_path):
    model = models.load_pretrained(GOLDEN / family)
    models.save_pretrained(model, tmp_path / "saved")
    again = models.load_pretrained(tmp_path / "saved")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def assert_folder(folder: Path, json_bodies: dict, tensors: dict[str, np.ndarray]) -> None:
    """The folder holds exactly these JSON files and, byte for byte, these tensors."""
    there = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert there == json_bodies
    assert {path.name for path in folder.iterdir()} == {*json_bodies, "model.safetensors"}
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (saved[name].dtype, saved[name].shape) == (array.dtype, array.shape), name
        assert saved[name].tobytes() == array.tobytes(), name


# transformers loaded the folders that these tests compare with, whole, when the golden values were made.
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_is_the_one_transformers_loaded(family, tmp_path):
    golden = np.load(GOLDEN / family / "golden.npz")
    np.testing.assert_allclose(golden["saved_logits"], golden["logits"], atol=1e-4)
    models.save_pretrained(models.load_pretrained(GOLDEN / family), tmp_path / "saved")
    bodies = json.loads((GOLDEN / family / "saved.json").read_text())
    assert_folder(tmp_path / "saved", bodies, load_file(GOLDEN / family / "model.safetensors"))


def reward_model(family: str) -> models.ScalarModel:
    """The golden trunk under the golden score head, as make_models.py built it."""
    scalar = models.create_scalar_model(models.load_pretrained(GOLDEN / family), key=jax.random.key(0))
    params = scalar.params
    params["head"]["score"] = jnp.asarray(np.load(GOLDEN / family / "golden.npz")["reward_score"])
    return models.ScalarModel(scalar.config, scalar.head_config, params)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_reward_folder_is_the_one_transformers_loaded(family, tmp_path):
    models.save_reward_model(reward_model(family), tmp_path / "saved")
    tensors = load_file(GOLDEN / family / "model.safetensors")
    tensors = {n: a for n, a in tensors.items() if n not in ("lm_head.weight", "embed_out.weight")}
    tensors["score.weight"] = np.load(GOLDEN / family / "golden.npz")["reward_score"][None]
    assert_folder(tmp_path / "saved", json.loads((GOLDEN / family / "reward.json").read_text()), tensors)


# Three stand for all: the trunk is the language model's, and the head is the same everywhere.
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_scores_equal_the_classifiers_of_transformers(family, tmp_path):
    golden = np.load(GOLDEN / family / "golden.npz")
    models.save_reward_model(reward_model(family), tmp_path / "saved")
    tokens = golden["tokens"]
    scores = models.load_reward_model(tmp_path / "saved")(
        jnp.asarray(tokens), lengths=jnp.full(len(tokens), tokens.shape[1])
    )
    np.testing.assert_allclose(scores, golden["saved_scores"], atol=1e-4)


TOKEN_CLASSIFIERS = [name for name in FAMILIES if (GOLDEN / name / "process.json").is_file()]


def process_model(family: str) -> models.ScalarModel:
    scalar = reward_model(family)
    params = models.with_normalizer(scalar.params, gain=1.0, bias=0.5)
    return models.ScalarModel(scalar.config, scalar.head_config, params, models.StepConfig(separator="\n"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_process_reward_folder_is_the_one_transformers_loaded(family, tmp_path):
    models.save_reward_model(process_model(family), tmp_path / "saved")
    if family not in TOKEN_CLASSIFIERS:
        # transformers has no token classifier of these families
        assert family in ("gemma3_text", "olmo2", "olmo3")
        assert models.load_reward_model(tmp_path / "saved").steps == models.StepConfig(separator="\n")
        return
    head = "classifier" if family.startswith(("gpt2", "gpt_neox")) else "score"
    tensors = load_file(GOLDEN / family / "model.safetensors")
    tensors = {n: a for n, a in tensors.items() if n not in ("lm_head.weight", "embed_out.weight")}
    tensors[f"{head}.weight"] = np.load(GOLDEN / family / "golden.npz")["reward_score"][None]
    tensors[f"{head}.bias"] = np.asarray([0.5], np.float32)
    assert_folder(tmp_path / "saved", json.loads((GOLDEN / family / "process.json").read_text()), tensors)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_step_logits_equal_the_token_classifiers_of_transformers(family, tmp_path):
    golden = np.load(GOLDEN / family / "golden.npz")
    models.save_reward_model(process_model(family), tmp_path / "saved")
    again = models.load_reward_model(tmp_path / "saved")
    np.testing.assert_allclose(
        again.per_token(jnp.asarray(golden["tokens"])), golden["saved_token_scores"], atol=1e-4
    )
    assert again.steps == models.StepConfig(separator="\n")


def test_a_token_classifier_of_two_labels_is_read_as_the_difference(tmp_path):
    # As TRL trains them: its folder says nothing of a separator, and its labels are wrong and right.
    folder = models.save_reward_model(process_model("llama"), tmp_path / "saved")
    (folder / "jaxalign_head.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    weight, bias = tensors["score.weight"], tensors["score.bias"]
    tensors["score.weight"] = np.concatenate([0.5 * weight, 1.5 * weight])
    tensors["score.bias"] = np.concatenate([-bias, 0 * bias])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    again = models.load_reward_model(folder)
    tokens = jnp.arange(12).reshape(2, 6)
    np.testing.assert_allclose(
        again.per_token(tokens), process_model("llama").per_token(tokens), rtol=1e-5, atol=1e-5
    )
    assert again.steps == models.StepConfig(separator="")
    tensors["score.weight"] = np.concatenate([weight] * 3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"shape \(3, 32\); expected .* a single label, or \[2, width\]"):
        models.load_reward_model(folder)


def test_shards_with_an_index_load_exactly(tmp_path):
    model = models.load_pretrained(GOLDEN / "llama")
    models.save_pretrained(model, tmp_path / "saved", max_shard_bytes=20_000)
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 2
    jax.tree.map(
        np.testing.assert_array_equal, models.load_pretrained(tmp_path / "saved").params, model.params
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "missing tensor model.layers.1.mlp.up_proj.weight",
        ),
        (lambda t: t.pop("lm_head.weight"), "missing tensor lm_head.weight"),
        (lambda t: t.update({"model.extra.weight": np.zeros(3, np.float32)}), "model.extra.weight"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}),
            r"model.norm.weight has shape \[31\], expected \[32\]",
        ),
    ],
)
def test_a_wrong_tensor_is_named(change, expected, tmp_path):
    shutil.copytree(GOLDEN / "llama", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=expected):
        models.load_pretrained(tmp_path / "model")


def test_torch_pickles_are_refused_with_the_way_to_convert(tmp_path):
    shutil.copy(GOLDEN / "llama" / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="save_pretrained"):
        models.load_pretrained(tmp_path)


def test_a_truncated_file_is_one_line(tmp_path):
    shutil.copytree(GOLDEN / "llama", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors") as error:
        models.load_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "not valid JSON"), ('{"model_type": "bert"}', "'bert' is not supported")]
)
def test_a_wrong_config_is_named(text, expected, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=expected):
        models.load_pretrained(tmp_path)


def test_a_missing_folder_is_named():
    with pytest.raises(ModelError, match="no such folder"):
        models.load_pretrained("./nowhere")


def test_a_failed_save_leaves_the_old_folder(tmp_path, monkeypatch):
    model = models.load_pretrained(GOLDEN / "gpt2")
    models.save_pretrained(model, tmp_path / "saved")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space"):
        models.save_pretrained(model, tmp_path / "saved")
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    models.load_pretrained(tmp_path / "saved")


def test_bfloat16_compute_stays_near_float32():
    golden = np.load(GOLDEN / "llama" / "golden.npz")
    model = models.load_pretrained(GOLDEN / "llama", compute_dtype="bfloat16")
    logits = models.with_config(model, products="compute_dtype")(jnp.asarray(golden["tokens"]))
    assert logits.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - golden["logits"]).max() < 0.1 * np.abs(golden["logits"]).max()


def test_reward_folder_has_the_classifier_layout_and_round_trips(tmp_path):
    base = models.load_pretrained(GOLDEN / "qwen2")
    scalar = models.create_scalar_model(
        base, models.HeadConfig(kind="mlp", hidden_size=7), key=jax.random.key(0)
    )
    definition, params = models.split(scalar)
    scalar = models.merge(definition, models.with_normalizer(params, gain=2.0, bias=-1.0))
    models.save_reward_model(scalar, tmp_path / "reward")
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert load_file(tmp_path / "reward" / "model.safetensors")["score.weight"].shape == (1, 7)
    tokens = jnp.arange(12).reshape(2, 6)
    lengths = jnp.asarray([6, 4])
    again = models.load_reward_model(tmp_path / "reward")
    np.testing.assert_array_equal(again(tokens, lengths=lengths), scalar(tokens, lengths=lengths))


def test_a_language_model_is_no_reward_model():
    with pytest.raises(ModelError, match=r"score\.weight"):
        models.load_reward_model(GOLDEN / "gpt2")


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared model is not here")
def test_stories260k_meets_its_reference_outputs():
    model = models.load_pretrained(STORIES)
    for case in json.loads((STORIES / "reference_outputs.json").read_text())["outputs"]:
        ids, start = case["greedy_ids"], len(case["input_ids"])
        logits = model(jnp.asarray([ids]))[0]
        assert np.argmax(logits[start - 1 : -1], -1).tolist() == ids[start:]
        logps = np.take_along_axis(
            np.asarray(jax.nn.log_softmax(logits))[:-1], np.asarray(ids[1:])[:, None], 1
        )[:, 0]
        np.testing.assert_allclose(logps, case["token_logprobs"], atol=1e-4)
