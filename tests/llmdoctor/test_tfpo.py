"""TFPO runs: a doctor learns, is written down with its card, and what cannot be learned from is said."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from jaxalign import llmdoctor, models
from jaxalign.cli.main import main
from jaxalign.config import parse
from jaxalign.data import DataConfig, chat_of, load_dataset
from jaxalign.errors import ConfigError, DataError, ModelError
from jaxalign.llmdoctor import tfpo_dimension
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.llmdoctor.tfpo_config import PatientSource, TFPOConfig, TFPOLossConfig
from jaxalign.llmdoctor.tfpo_parts import DoctorPatientPair, check_identical, completion_end, terminated
from jaxalign.llmdoctor.token_reward_scores import FaceScorer
from jaxalign.llmdoctor.token_rewards import token_reward_tables
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.lora import LoraConfig
from jaxalign.models.memory import bytes_a_device, bytes_of, sized
from jaxalign.runs import Run, records, report
from jaxalign.training.core import setup
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.setup import ModelSource


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """A report has a picture of every metric, which takes longer than the training here; it has tests of its own."""
    monkeypatch.setattr(report, "write_report", lambda folder: None)


def unsampled(config):
    """The same, without samples: their program takes as long to compile as an update's."""
    return replace(config, run=replace(config.run, sample_rows=0))


def evaluations(folder):
    return [row for row in records.read(folder / "metrics.jsonl") if "eval/balance" in row]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (str(path),)


@pytest.fixture
def live(configs):
    """A live patient and its tokenizer."""
    return models.load_pretrained(configs.model.path), models.load_tokenizer(configs.model.path)


@pytest.mark.long
def test_balance_falls_and_the_doctor_is_written_with_its_card(configs, tmp_path):
    train = TrainConfig(batch_size=8, steps=24, packing=True)
    result = train_tfpo(unsampled(configs.tfpo(tmp_path / "run", train=train)))
    first, last = evaluations(tmp_path / "run")[0], result.metrics
    assert last["eval/balance"] < 0.5 * first["eval/balance"]
    # Of log-ratios to what it began as, that is of nothing at first; lengths are in the sums alone.
    assert (first["eval/accuracy"], first["eval/margin"]) == (0.5, pytest.approx(0.0, abs=1e-4))
    assert last["eval/accuracy"] > 0.5
    assert last["eval/margin_raw"] - first["eval/margin_raw"] == pytest.approx(last["eval/margin"], abs=1e-3)
    assert abs(first["eval/margin_raw"]) > 0.1
    patient = configs.model.path
    assert (result.card.patient, result.card.reference, result.card.base) == (patient, patient, "")
    assert (result.card.preset, result.card.guidance, result.card.beta) == ("paper", "product", 1.0)
    assert result.card == llmdoctor.load_doctor_card(tmp_path / "run")
    assert models.load_tokenizer(result.card.tokenizer).get_vocab() == result.tokenizer.get_vocab()
    saved = models.load_pretrained(tmp_path / "run" / "export")
    jax.tree.map(np.testing.assert_array_equal, saved.params, result.model.params)
    jax.tree.map(
        np.testing.assert_array_equal, llmdoctor.load_value_head(tmp_path / "run"), result.value_head
    )
    assert np.abs(result.value_head["head"]["score"]).max() > 0
    meta = json.loads((tmp_path / "run" / "metadata.json").read_text())
    assert meta["loss"] == dict(result.card.loss)
    scale = meta["reward_scale"]["value"]
    readme = (tmp_path / "run" / "export" / "README.md").read_text()
    assert f"| `loss.reward_scale` | `{scale:.4g} (configured: auto)` |" in readme
    assert meta["loss"]["reference_weight"] == 0.0
    assert meta["ended_fraction"] == 1.0
    assert meta["token_rewards"]["rows"] == meta["data"]["train_rows"]
    # As long as the mean response; and a random model of 259 tokens, of about log 259 nats a token.
    assert meta["value_start"]["ramp"] == pytest.approx(np.log(259), rel=0.1)
    assert meta["value_start"]["horizon"] == pytest.approx(5.5, abs=1.0)


class Enough(Exception):
    """The run has shown what it was to show."""


@pytest.fixture
def held(monkeypatch, live_bytes):
    """Runs a configuration until it loads the doctor: bytes that live while faces are scored, and right before it."""

    def run(config, **options):
        seen, load, batch = {"scored": 0, "said": []}, setup.load_model, FaceScorer._batch
        begun = live_bytes(collected=True)

        def load_model(source, *args, section="model", **kwargs):
            if section == "model":
                seen["doctor"] = live_bytes(collected=True) - begun
                raise Enough
            return load(source, *args, section=section, **kwargs)

        def scored(self, *arguments):
            seen["scored"] = max(seen["scored"], live_bytes() - begun)
            return batch(self, *arguments)

        monkeypatch.setattr(Run, "tell", lambda self, part, what: seen["said"].append(f"{part}: {what}"))
        monkeypatch.setattr(setup, "load_model", load_model)
        monkeypatch.setattr(FaceScorer, "_batch", scored)
        with pytest.raises(Enough):
            train_tfpo(config, **options)
        return seen

    return run


@pytest.mark.long
@pytest.mark.parametrize("weights", ["same", "int8"])
def test_one_copy_of_the_patient_lives_while_it_scores_and_none_when_the_doctor_comes(
    weights, configs, held, tmp_path
):
    source = PatientSource(path=configs.model.path, weights=weights)
    seen = held(configs.tfpo(tmp_path / "run", patient=source))
    size = bytes_of(models.load_pretrained(configs.model.path, weights=weights).params)
    # Beside it there are keys, and the numbers of a batch at most.
    assert size <= seen["scored"] < 1.2 * size
    assert seen["doctor"] < 0.1 * size
    assert f"{sized(size)} in {'int8' if weights == 'int8' else 'float32'})" in seen["said"][0]


@pytest.mark.long
def test_of_a_live_patient_8_bit_copies_lie_beside_what_its_owner_holds(configs, live, held, tmp_path):
    patient, tokenizer = live
    rounded = bytes_of(models.quantize(patient).params)
    doctor = ModelSource(path=configs.model.path)
    config = configs.tfpo(tmp_path / "run", patient=PatientSource(weights="int8"), model=doctor)
    seen = held(config, patient=patient, tokenizer=tokenizer)
    # Norms are shared.
    assert 0.9 * rounded < seen["scored"] < 1.2 * rounded
    assert seen["doctor"] < 0.1 * rounded
    assert seen["said"][0].startswith("patient: passed live (llama, ")


@pytest.mark.long
@pytest.mark.parametrize("weights", ["same", "int8"])
def test_a_mesh_gives_the_rewards_of_one_device_and_no_device_holds_the_patient(
    weights, configs, tmp_path, monkeypatch
):
    found = []

    def rewarded(wanted, chat, patient, **options):
        (table,) = token_reward_tables(wanted, chat, patient, **options)
        found.append((patient, [split.scores for split in (table.train, table.validation)]))
        raise Enough

    monkeypatch.setattr(tfpo_dimension, "token_reward_tables", rewarded)
    for mesh in (MeshConfig(), MeshConfig(fsdp=4, tensor=2)):
        source = PatientSource(path=configs.model.path, weights=weights)
        with pytest.raises(Enough):
            train_tfpo(configs.tfpo(tmp_path / str(mesh.fsdp), patient=source, mesh=mesh))
    (_, one), (patient, many) = found
    for expected, scores in zip(one, many, strict=True):
        for name in ("positive_logps", "negative_logps"):
            np.testing.assert_allclose(getattr(scores, name), getattr(expected, name), atol=2e-5)
    assert bytes_a_device(patient.params) < 0.35 * bytes_of(patient.params)
    assert patient.config.mesh.size == 8


@pytest.mark.slow
def test_live_models_are_laid_out_on_the_mesh_and_stay_one_where_they_are(configs, live, tmp_path):
    patient, tokenizer = live
    config = configs.tfpo(tmp_path / "run", patient=PatientSource(), mesh=MeshConfig(fsdp=4, tensor=2))
    config = replace(unsampled(config), train=TrainConfig(batch_size=8, steps=1))
    result = train_tfpo(config, patient=patient, tokenizer=tokenizer)
    assert bytes_a_device(result.model.params) < 0.35 * bytes_of(result.model.params)
    alone = train_tfpo(
        replace(config, mesh=MeshConfig(), run=replace(config.run, output=str(tmp_path / "one"))),
        patient=patient,
        tokenizer=tokenizer,
    )
    # A step of Adam turns the rounding of a gradient near 0 into some part of the learning rate, 0.01.
    moved = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - b).mean(), result.model.params, alone.model.params
    )
    assert max(jax.tree.leaves(moved)) < 1e-5


@pytest.mark.long
def test_a_run_with_a_patient_drawn_from_the_seed_goes_on_and_guides_it(configs, tmp_path, monkeypatch):
    patient = PatientSource(path=configs.model.path, random_init=True)
    config = configs.tfpo(tmp_path / "run", patient=patient, train=TrainConfig(batch_size=8, steps=2))
    train_tfpo(unsampled(config))
    noted = json.loads((tmp_path / "run" / "metadata.json").read_text())

    def again(*_):
        raise AssertionError("the patient scores anew")

    monkeypatch.setattr(FaceScorer, "_batch", again)
    config = replace(config, run=replace(config.run, resume=True), train=replace(config.train, steps=4))
    result = train_tfpo(unsampled(config))
    # Of the first start: the scale that was read off its gradients, and the rewards.
    later = json.loads((tmp_path / "run" / "metadata.json").read_text())
    assert later["raised"] == ["train.steps is 4 where it was 2"]
    assert (later["reward_scale"], later["value_start"]) == (noted["reward_scale"], noted["value_start"])
    assert (noted["token_rewards"]["scored_rows"], later["token_rewards"]["scored_rows"]) == (40, 0)
    assert result.card.loss["reward_scale"] == noted["reward_scale"]["value"]
    steps = [row["step"] for row in records.read(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert steps == [1, 2, 3, 4]
    # The patient is in no folder but the run's own, which also the card of another checkpoint names.
    drawn = models.create(models.load_config(configs.model.path), key=jax.random.key(config.run.seed))
    for doctor in (str(tmp_path / "run"), f"{tmp_path / 'run'}@2"):
        guided, _ = llmdoctor.load_guided(llmdoctor.GuideConfig(doctor=(doctor,)))
        jax.tree.map(np.testing.assert_array_equal, guided.params["patient"], drawn.params)


@pytest.mark.slow
def test_the_measured_ramp_begins_nearer_to_balance_than_none(configs, tmp_path):
    found = {}
    for ramp in (None, 0.0):
        config = configs.tfpo(tmp_path / str(ramp), train=TrainConfig(batch_size=8, steps=1))
        train_tfpo(replace(config, loss=TFPOLossConfig(value_ramp=ramp)))
        found[ramp] = evaluations(tmp_path / str(ramp))[0]["eval/balance"]
    assert found[None] < 0.5 * found[0.0]


@pytest.mark.slow
def test_a_live_tilted_lora_doctor_begins_at_its_reference_and_keeps_what_it_began_as(
    configs, live, tmp_path
):
    patient, tokenizer = live
    config = configs.tfpo(
        tmp_path / "run",
        patient=PatientSource(weights="int8"),
        loss=TFPOLossConfig(preset="tilted", reward_scale=1.0),
        lora=LoraConfig(enabled=True, rank=2),
        train=TrainConfig(batch_size=8, steps=6),
    )
    result = train_tfpo(unsampled(config), patient=patient, tokenizer=tokenizer)
    first = evaluations(tmp_path / "run")[0]
    # Nothing but the rewards is out of balance: log pi and its reference cancel, and the ramp is 0.
    assert first["eval/margin"] == pytest.approx(0.0, abs=1e-4)
    assert first["eval/value_ramp"] == 0.0
    assert first["eval/balance"] < 5.0
    start = tmp_path / "run" / "start"
    names = (result.card.guidance, result.card.reference, result.card.base, result.card.adapter)
    assert names == ("ratio", str(start), str(start), "../adapter")
    base = models.load_pretrained(start)
    jax.tree.map(np.testing.assert_array_equal, base.params, patient.params)
    # The parts that the card names make the doctor that was exported.
    adapter, settings = models.load_adapter(tmp_path / "run" / "export" / "../adapter", base.config)
    beside = models.merge_adapter(base, models.attach(adapter, settings))
    live_parts = models.merge_adapter(patient, result.adapter)
    for other in (beside, live_parts):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other.params, result.model.params
        )
    assert any(np.abs(part["b"]).max() > 0 for part in adapter.values())


@pytest.mark.slow
def test_the_shipped_configuration_runs_from_the_command_line(configs, pairs_file, tmp_path):
    arguments = [
        "tfpo", "--config", "hh_rlhf", f"--patient={configs.model.path}", f"--data.train=[{pairs_file}]",
        f"--output={tmp_path / 'run'}", "--rewards.positive=be good", "--rewards.negative=be bad",
        "--data.max_length=32", "--data.template=plain", "--train.steps=2", "--run.progress=false",
        "--sampling.max_new_tokens=64",
    ]  # fmt: skip
    assert main(arguments) == 0
    card = llmdoctor.load_doctor_card(tmp_path / "run")
    assert (card.preset, card.beta, card.loss["value_weight"]) == ("repo", 0.5, 1.0)
    assert set(load_file(tmp_path / "run" / "export" / "value_head.safetensors")) == {
        "head.score", "head.hidden", "head.hidden_bias", "ramp", "horizon",
    }  # fmt: skip
    assert (tmp_path / "run" / "token_rewards").is_dir()
    # The context is 64, and the longest prompt has 5 tokens.
    assert "samples have at most 59 new tokens" in (tmp_path / "run" / "run.log").read_text()


def test_a_shipped_configuration_keeps_the_value_head_that_starts_at_zero():
    config = parse(TFPOConfig, "hh_rlhf")
    assert (config.head.kind, config.head.init_std) == ("mlp", 0.0)
    assert (config.rewards.threshold, config.patient.weights) == (0.1, "int8")
    small = parse(TFPOConfig, "weak_to_strong")
    assert (small.loss.window, small.guidance.beta) == (50, 0.3)


LONG = "a" * 40
# Of 16, two are equal as they are and two where they are cut.
SAME = [
    {"prompt": f"p{i}", "chosen": "aei", "rejected": "xyz"}
    | {0: {"rejected": "aei"}, 5: {"rejected": "aei"}, 9: {"chosen": LONG, "rejected": LONG + "b"}}.get(i, {})
    | {12: {"chosen": LONG + "c", "rejected": LONG}}.get(i, {})
    for i in range(16)
]


def cut(configs, path, rows):
    return replace(configs.data, train=written(path, rows), truncation="cut_completion")


def test_comparisons_of_identical_responses_are_counted_and_left_out(configs, live, tmp_path):
    config = configs.tfpo(tmp_path, data=cut(configs, tmp_path / "same.jsonl", SAME))
    data = load_dataset(config.data, "comparison", live[1], seed=0)
    said = SimpleNamespace(lines=[])
    said.warn = said.lines.append
    check_identical(data.counts, config, said)
    found = data.summary()
    assert found["filtered"] == {
        "chosen equals rejected": 2,
        "chosen equals rejected once trimmed or cut": 2,
    }
    assert found["train_rows"] + found["validation_rows"] == found["used"] == 12
    assert said.lines == ["4 comparisons skipped, as their two completions have the same tokens"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (SAME, "^4 comparisons have two equal completions"),
        ([SAME[1], SAME[0]], "^1 comparisons have two equal completions"),
    ],
)
def test_comparisons_of_identical_responses_stop_the_run_where_asked(rows, message, configs, tmp_path):
    data = cut(configs, tmp_path / "same.jsonl", rows)
    with pytest.raises(DataError, match=message) as caught:
        train_tfpo(configs.tfpo(tmp_path / "run", data=data, on_identical="stop"))
    assert "\n" not in str(caught.value)


def test_data_without_two_responses_that_differ_is_refused(configs, tmp_path):
    data = cut(configs, tmp_path / "same.jsonl", [SAME[9], SAME[12]])
    with pytest.raises(
        DataError, match=r"no row left to train on; .*chosen equals rejected once trimmed or cut\": 2"
    ):
        train_tfpo(configs.tfpo(tmp_path / "run", data=data))


def test_a_doctor_of_another_vocabulary_is_refused_before_anything_is_scored(
    configs, live, tmp_path, byte_tokenizer
):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    body = json.loads(byte_tokenizer.backend_tokenizer.to_str())
    words = body["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    swapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(body)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    models.save_pretrained(live[0], tmp_path / "other", tokenizer=swapped)
    config = configs.tfpo(tmp_path / "run", model=ModelSource(path=str(tmp_path / "other")))
    with pytest.raises(
        ModelError, match=r"doctor and patient differ: 259 and 259 .* id \d+, 'b' .* 'a'"
    ) as e:
        train_tfpo(config)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run" / "token_rewards").exists()


def test_a_doctor_may_have_been_given_tokens_that_the_patient_has_not_but_not_the_other_way(
    configs, live, tmp_path
):
    chat = models.load_tokenizer(configs.model.path)
    chat.add_tokens(["<|im_start|>"], special_tokens=True)
    more = models.create(replace(live[0].config, vocab_size=260), key=jax.random.key(0))
    models.save_pretrained(more, tmp_path / "chat", tokenizer=chat)

    def opened(doctor, patient, tokenizer):
        config = configs.tfpo(tmp_path / "run", model=ModelSource(path=str(doctor)))
        run: Any = SimpleNamespace(tell=lambda *_: None, add_metadata=lambda **_: None, metadata=dict)
        return DoctorPatientPair.open(
            config, make_mesh(), run, patient=patient, doctor=None, tokenizer=tokenizer
        )

    assert opened(tmp_path / "chat", *live).tokenizer is live[1]
    shutil.copytree(configs.model.path, tmp_path / "base")
    with pytest.raises(
        ModelError, match=r"id 259, no token for the doctor and '<\|im_start\|>' for the patient"
    ):
        opened(tmp_path / "base", more, chat)


def test_a_run_without_a_patient_says_so(configs, live, tmp_path):
    config = configs.tfpo(tmp_path / "run", patient=PatientSource())
    with pytest.raises(ConfigError, match=r"^patient\.path: expected"):
        train_tfpo(config)
    with pytest.raises(ConfigError, match=r"^patient: passed without tokenizer; a live model needs both"):
        train_tfpo(config, patient=live[0])


def test_only_responses_that_end_by_themselves_are_terminated(byte_tokenizer, tmp_path):
    rows = [{"prompt": "ask", "chosen": "a" * 9, "rejected": "b" * 3} for _ in range(1)]
    config = DataConfig(
        train=written(tmp_path / "rows.jsonl", rows),
        template="plain",
        max_length=10,
        truncation="cut_completion",
        validation_fraction=0.0,
    )
    end = completion_end(chat_of(config, byte_tokenizer))
    assert end == (257,)
    data = load_dataset(config, "comparison", byte_tokenizer, seed=0)
    [example] = data.train
    batch = {
        "tokens": np.asarray([[np.resize(row, 10) for row in example.rows]]),
        "mask": np.asarray([[[*mask, *[False] * (10 - len(mask))] for mask in example.masks]]),
        "lengths": np.asarray([[len(row) for row in example.rows]]),
    }
    np.testing.assert_array_equal(terminated(batch, end), [[False, True]])
    np.testing.assert_array_equal(terminated(batch, ()), [[False, False]])
    assert completion_end(chat_of(replace(config, end_token="none"), byte_tokenizer)) == ()


def test_the_end_is_found_in_a_vocabulary_of_words_that_knows_few():
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "Mia": 2, "ran": 3, ".": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert completion_end(chat_of(DataConfig(template="plain"), words)) == (1,)
    assert completion_end(chat_of(DataConfig(template="plain", end_token="none"), words)) == ()


def test_the_end_of_a_chat_template_is_found(byte_tokenizer):
    from copy import deepcopy

    chatty = deepcopy(byte_tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}!{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    end = completion_end(chat_of(DataConfig(template="tokenizer"), chatty))
    assert chatty.decode(list(end)) == "!"
