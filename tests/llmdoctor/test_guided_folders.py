"""Patient and doctors come from folders as their cards say, and what does not go together is refused in one line."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import config as configs
from jaxalign import llmdoctor, models
from jaxalign.errors import ConfigError, ModelError, UserError
from jaxalign.llmdoctor import GuideConfig
from jaxalign.llmdoctor.guided_folders import guided_by, read_doctors

TOKENS = jnp.asarray([[5, 70, 3, 9, 200]])


@pytest.fixture
def patient(tiny_model_folder):
    return models.load_pretrained(tiny_model_folder)


def guided(*doctors, **settings):
    return llmdoctor.load_guided(GuideConfig(doctor=tuple(map(str, doctors)), **settings))[0]


@partial(jax.jit, static_argnums=0)
def called(definition, params, tokens):
    return models.merge(definition, params)(tokens)


def logits(model, tokens=TOKENS):
    return np.asarray(called(*models.split(model), tokens), np.float64)


def normalized(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def logps(model):
    return normalized(logits(model))


def expected(patient, terms, alpha=1.0):
    """Log-probs of alpha * patient + sum of beta * model over (beta, model)."""
    return normalized(alpha * logits(patient) + sum(beta * logits(model) for beta, model in terms))


def exported(run):
    return models.load_pretrained(run / "export")


def test_all_that_is_needed_comes_from_the_card(make_doctor, patient):
    run = make_doctor("kind", alpha=0.8, beta=0.6)
    wanted = expected(patient, [(0.6, exported(run))], alpha=0.8)
    np.testing.assert_allclose(logps(guided(run)), wanted, atol=1e-5)
    np.testing.assert_allclose(logps(guided(run / "export")), wanted, atol=1e-5)


def test_alpha_and_beta_given_win_over_the_card(make_doctor, patient):
    run = make_doctor("kind", alpha=0.8, beta=0.6)
    wanted = expected(patient, [(2.0, exported(run))], alpha=0.5)
    np.testing.assert_allclose(logps(guided(run, alpha=0.5, beta=2.0)), wanted, atol=1e-5)


def test_weights_multiply_the_beta_of_their_dimension(make_doctor, patient):
    runs = [make_doctor("kind", beta=0.5), make_doctor("safe", seed=2, beta=2.0)]
    kind, safe = map(exported, runs)
    weights = {"safe": 0.3, "kind": 0.8}
    found = logps(guided(*runs, preference_weights=weights))
    np.testing.assert_allclose(found, expected(patient, [(0.5 * 0.8, kind), (2.0 * 0.3, safe)]), atol=1e-5)
    found = logps(guided(*runs, preference_weights=weights, beta=1.5))
    np.testing.assert_allclose(found, expected(patient, [(1.5 * 0.8, kind), (1.5 * 0.3, safe)]), atol=1e-5)


def test_another_patient_may_be_named(make_doctor, patient):
    run, other = make_doctor("kind"), make_doctor("other", seed=5)
    found = logps(guided(run, patient=str(other)))
    np.testing.assert_allclose(found, expected(exported(other), [(1.0, exported(run))]), atol=1e-5)


@pytest.mark.parametrize("guidance", [pytest.param("product", marks=pytest.mark.slow), "ratio"])
def test_adapters_on_one_base_share_it_and_give_what_the_exports_give(make_doctor, patient, guidance):
    runs = [make_doctor(name, seed=seed, adapter=True) for seed, name in enumerate(("kind", "safe"), 1)]
    together = guided(*runs, guidance=guidance, beta=0.5)
    # The base is the patient, so that ratio needs no member for it.
    assert [e.members for e in together.definition.experts] == [2]
    terms = [(0.5, exported(run)) for run in runs]
    terms += [(-1.0, patient)] if guidance == "ratio" else []
    np.testing.assert_allclose(logps(together), expected(patient, terms), atol=1e-4)


def test_a_base_that_is_the_patient_is_in_memory_once(make_doctor):
    model = guided(make_doctor("kind", adapter=True))
    base = model.params["experts"][0]["base"]["embed"]["tokens"]
    assert base is model.params["patient"]["embed"]["tokens"]


@pytest.mark.slow
def test_without_their_base_doctors_guide_by_their_merged_exports(make_doctor, patient):
    runs = [
        make_doctor(name, seed=i, adapter=True, base="gone") for i, name in enumerate(("kind", "safe"), 1)
    ]
    wanted = expected(patient, [(0.5, exported(run)) for run in runs])
    np.testing.assert_allclose(logps(guided(*runs, beta=0.5)), wanted, atol=1e-5)


def test_ratio_of_a_doctor_without_adapter_divides_by_its_reference(make_doctor, patient):
    start = make_doctor("start", seed=7)
    run = make_doctor("kind", guidance="ratio", reference=str(start))
    terms = [(1.0, exported(run)), (-1.0, exported(start))]
    np.testing.assert_allclose(logps(guided(run)), expected(patient, terms), atol=1e-5)


def other_words(folder, tiny_model_folder):
    """The tokenizer of bytes with the ids of A, B and C moved round."""
    words = models.load_tokenizer(tiny_model_folder)
    words.save_pretrained(folder)
    body = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = body["model"]["vocab"]
    vocabulary |= dict(zip("ABC", [vocabulary[x] for x in "BCA"], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(body))
    return models.load_tokenizer(folder)


def test_a_doctor_with_another_tokenizer_is_refused_and_mapped_where_asked(
    make_doctor, patient, tiny_model_folder, tmp_path
):
    run = make_doctor("kind", tokenizer=other_words(tmp_path, tiny_model_folder))
    with pytest.raises(ModelError) as caught:
        guided(run)
    message = str(caught.value)
    assert (
        "259 and 259 tokens; the first difference is at id 32, 'C' for the doctor and 'A' for the" in message
    )
    assert "--vocabulary=map" in message and "\n" not in message
    doctor = exported(run)
    moved = np.arange(259)
    vocabulary = models.load_tokenizer(tiny_model_folder).get_vocab()
    moved[[vocabulary[x] for x in "ABC"]] = [vocabulary[x] for x in "BCA"]
    tokens = jnp.asarray([[5, *(vocabulary[x] for x in "ABC"), 9]])
    wanted = normalized(logits(patient, tokens) + logits(doctor, jnp.asarray(moved)[tokens])[..., moved])
    mapped = guided(run, vocabulary="map")
    np.testing.assert_allclose(normalized(logits(mapped, tokens)), wanted, atol=1e-5)
    assert mapped.params["experts"][0]["unknown"] == 258  # <pad>: there is no unknown token


def test_a_map_says_once_how_much_it_finds(make_doctor, tiny_model_folder, tmp_path, capsys):
    words = other_words(tmp_path, tiny_model_folder)
    runs = [make_doctor(name, tokenizer=words) for name in ("kind", "safe")]
    capsys.readouterr()
    guided(*runs, vocabulary="map")
    said = "259 of the patient's 259 tokens are among its 259; to the others it is neutral"
    assert capsys.readouterr().err == f"{runs[0] / 'export'}: {said}\n"


def test_a_special_token_of_another_name_or_place_refuses_no_doctor_and_is_listed(
    make_doctor, patient, tiny_model_folder, tmp_path, capsys
):
    body = (tiny_model_folder / "tokenizer.json").read_text()
    settings = (tiny_model_folder / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer.json").write_text(body.replace("<pad>", "<|pad|>"))
    (tmp_path / "tokenizer_config.json").write_text(settings.replace("<pad>", "<|pad|>"))
    named = make_doctor("named", tokenizer=models.load_tokenizer(tmp_path))
    wanted = expected(patient, [(1.0, exported(named))])
    model = guided(named)
    # Every id means the same: nothing is translated.
    assert "vocabulary" not in model.params["experts"][0]
    np.testing.assert_allclose(logps(model), wanted, atol=1e-5)
    line = (
        "its tokenizer is the patient's: the patient's '<pad>' (id 258) is the doctor's '<|pad|>' (id 258)\n"
    )
    error = capsys.readouterr().err
    assert error.endswith(line) and error.count("\n") == 1
    moved = json.loads(body)
    vocabulary = moved["model"]["vocab"]
    vocabulary |= {"</s>": vocabulary["<pad>"], "<pad>": vocabulary["</s>"]}
    for token in moved["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(moved))
    (tmp_path / "tokenizer_config.json").write_text(settings)
    moved = make_doctor("moved", tokenizer=models.load_tokenizer(tmp_path))
    said = logits(exported(moved))[..., [*range(257), 258, 257]]
    np.testing.assert_allclose(logps(guided(moved)), normalized(logits(patient) + said), atol=1e-5)
    assert "the patient's '</s>' (id 257) is the doctor's '</s>' (id 258)" in capsys.readouterr().err


@pytest.mark.parametrize("vocabulary", ["refuse", "map"])
def test_what_ends_a_doctors_turn_ends_the_patients_by_its_text(
    make_doctor, byte_tokenizer, tiny_model_folder, tmp_path, vocabulary
):
    words = byte_tokenizer if vocabulary == "refuse" else other_words(tmp_path, tiny_model_folder)
    run = make_doctor("kind", tokenizer=words)
    ends = {"eos_token_id": words.get_vocab()["A"]}
    (run / "export" / "generation_config.json").write_text(json.dumps(ends))
    assert guided(run, vocabulary=vocabulary).config.eos_ids == (257, byte_tokenizer.get_vocab()["A"])


def test_doctors_with_the_patients_tokenizer_need_no_map(make_doctor):
    model = guided(make_doctor("kind"), vocabulary="map")
    assert "vocabulary" not in model.params["experts"][0]


def test_a_patient_without_tokenizer_takes_the_one_of_the_card(make_doctor, tiny_model_folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model_folder, bare, ignore=shutil.ignore_patterns("token*", "special*"))
    run = make_doctor("kind", patient=str(bare))
    _, words = llmdoctor.load_guided(GuideConfig(doctor=(str(run),)))
    assert words.get_vocab() == models.load_tokenizer(tiny_model_folder).get_vocab()


def test_a_live_patient_needs_no_folder(make_doctor, patient, byte_tokenizer):
    run = make_doctor("kind", patient="gone")
    doctors = read_doctors(GuideConfig(doctor=(str(run),)))
    found = logps(guided_by(doctors, patient, byte_tokenizer))
    np.testing.assert_allclose(found, expected(patient, [(1.0, exported(run))]), atol=1e-5)


@pytest.mark.parametrize(
    ("second", "settings", "error", "message"),
    [
        ({"dimension": "kind"}, {}, ConfigError, "both doctors of kind; expected one per dimension"),
        (
            {"patient": "elsewhere"},
            {},
            ConfigError,
            "has patient .* has elsewhere; choose one with --patient",
        ),
        (
            {"guidance": "ratio"},
            {},
            ConfigError,
            "has guidance product in its card, .* has ratio; choose one",
        ),
        (
            {"alpha": 0.5},
            {},
            ConfigError,
            r"has alpha 1\.0 in its card, .* has 0\.5; choose one with --alpha",
        ),
        ({}, {"preference_weights": {"kinder": 1.0}}, ConfigError, "no doctor of 'kinder'; .* kind, safe"),
        ({}, {"preference_weights": {"kind": 1.0}}, ConfigError, "no weight for safe; set it to 0"),
        (
            {},
            {"guidance": "ratio"},
            ModelError,
            "kind/export/doctor.json: .* initial model, and names none; --gui",
        ),
        ({}, {"patient": "./gone"}, ModelError, r"^\./gone: no such folder"),
    ],
)
def test_doctors_that_do_not_go_together_are_named_in_one_line(make_doctor, second, settings, error, message):
    runs = [make_doctor("kind"), make_doctor("safe", **second)]
    with pytest.raises(error, match=message) as caught:
        guided(*runs, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"patient": "./gone"}, "doctor.json: its patient was not found; set --patient .*gone"),
        ({"patient": ""}, "doctor.json: the card names no patient; set --patient"),
        (
            {"guidance": "ratio", "reference": "./gone"},
            "initial model, and .*gone is not here; --guidance=product",
        ),
    ],
)
def test_a_card_that_leads_nowhere_says_what_to_do(make_doctor, card, message):
    with pytest.raises(ModelError, match=message) as caught:
        guided(make_doctor("kind", **card))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_doctor_is_said_to_be_none(tiny_model_folder):
    with pytest.raises(ModelError, match=r"no doctor\.json; expected the run folder of a doctor"):
        guided(tiny_model_folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--doctor=d", "--beta=-1"], "beta must be non-negative and finite, got -1.0"),
        (["--doctor=d", "--alpha=.inf"], "alpha must be non-negative and finite, got inf"),
        (
            ["--doctor=d", "--preference-weights", '{"kind": 0.8, "safe": -0.2}'],
            "preference_weights.safe must be non-negative and finite, got -0.2",
        ),
        (["--beta=0"], "beta needs doctors; name them with --doctor=FOLDER"),
        (["--patient=m"], "patient needs doctors"),
        (["--doctor=d", "--plausibility=2"], r"plausibility must lie in \[0, 1\], got 2.0"),
        (["--plausibility=0.1"], "plausibility needs doctors"),
        (["--guidance=ratio"], "guidance needs doctors"),
        (["--vocabulary=map"], "vocabulary needs doctors"),
        (["--preference-weights={kind: 1}"], "preference_weights needs doctors"),
        (["--doctor=d", "--preference-weights={kind: much}"], "expected mapping of text to float, got"),
        (["--doctor=d", "--guidance=sum"], r"guidance: expected auto \| product \| ratio"),
    ],
)
def test_a_setting_out_of_range_is_named(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        configs.parse(GuideConfig, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_weights_are_read_from_json_as_typed_and_key_by_key():
    typed = ["--doctor=[a, b]", "--preference-weights", '{"helpfulness": 0.8, "safety": 0.2}']
    apart = ["--doctor=[a, b]", "--preference_weights.helpfulness=0.8", "--preference_weights.safety=0.2"]
    for overrides in (typed, apart):
        config = configs.parse(GuideConfig, overrides=overrides)
        assert config.preference_weights == {"helpfulness": 0.8, "safety": 0.2}
        assert config.doctor == ("a", "b")
