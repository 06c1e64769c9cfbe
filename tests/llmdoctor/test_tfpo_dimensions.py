"""Several dimensions from one TFPO run: each doctor is what a run of its dimension alone would give."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import llmdoctor, models
from jaxalign.checkpoints import read_part
from jaxalign.errors import ConfigError
from jaxalign.export.checkpoint_export import export_checkpoint
from jaxalign.llmdoctor.guided_folders import read_doctors
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.llmdoctor.tfpo_config import PatientSource, TFPOConfig, TFPOLossConfig
from jaxalign.llmdoctor.tfpo_step import TFPOBatch
from jaxalign.llmdoctor.tfpo_together import Together
from jaxalign.llmdoctor.token_rewards import TokenRewardConfig
from jaxalign.mesh import MeshConfig, make_mesh, replicated
from jaxalign.models.lora import LoraConfig
from jaxalign.runs import RunConfig, records, report
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.members import create_member_states, member_of, stack_batches, stacked
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from tests.training.cases import tfpo_case
from tests.training.conftest import Configs
from tests.training.test_resume import Killed, at_read, kill, numbers

pytestmark = pytest.mark.long
LABELS = {"kindness": "better", "safety": "safer"}
# The shipped instructions are longer than the tiny model's context.
INSTRUCTIONS = {"kindness": ("be kind", "be rude"), "safety": ("take care", "dare all")}
RATE = 1e-2


@pytest.fixture(scope="module")
def settings(tiny_model_folder, steps_file, tmp_path_factory):
    """Makes configurations for both dimensions: 40 pairs of which half are better and safer, half better or safer."""
    folder = tmp_path_factory.mktemp("pku")
    rows = [
        {
            "prompt": f"q{i} ",
            "response_0": "aei" + "o" * (i % 5),
            "response_1": "xyz" + "w" * (i % 3),
            "better_response_id": i % 2,
            "safer_response_id": (i // 2) % 2,
        }
        for i in range(40)
    ]
    (folder / "pku.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = Configs(tiny_model_folder, folder / "pku.jsonl", steps_file)

    def make(output, **changes):
        parts = {
            "dimensions": LABELS,
            "rewards": TokenRewardConfig(instructions=INSTRUCTIONS),
            "lora": LoraConfig(enabled=True, rank=2, dropout=0.1),
            "train": TrainConfig(batch_size=4, steps=4, accumulation_steps=2, packing=True),
            "optimizer": OptimizerConfig(learning_rate=RATE, warmup_ratio=0.3),
        }
        config = configs.tfpo(output, **(parts | changes))
        # The program of samples takes as long to compile as an update's.
        return replace(config, run=replace(config.run, sample_rows=0))

    return make


@pytest.fixture(scope="module")
def together(settings, tmp_path_factory):
    """A run of both dimensions."""
    folder = tmp_path_factory.mktemp("together") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda folder: None)
        return train_tfpo(settings(folder))


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda folder: None)


def metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def metrics(folder, name=""):
    """Every record's training and held-out metrics, of one dimension where it is named."""
    found = []
    for row in records.read(folder / "metrics.jsonl"):
        parts = {key: value for key, value in row.items() if key.startswith(("train/", "eval/"))}
        if name:
            parts = {k.replace(f"{name}/", ""): v for k, v in parts.items() if f"/{name}/" in k}
        found.append(parts)
    return found


# In `make test` their steps are compared below.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["kindness", "safety"])
def test_a_doctor_is_what_a_run_of_its_dimension_trains_alone(name, together, settings, tmp_path):
    config = settings(tmp_path / name).each()[name]
    if name == "safety":  # the patient has said it all: another run of the other dimension says so too
        scores = str(together.folder / "token_rewards")
        config = replace(config, rewards=replace(config.rewards, folder=scores))
    alone, doctor = train_tfpo(config), together.doctors[name]
    facts = metadata(alone.folder)["token_rewards"]
    assert facts["scored_rows"] == (0 if name == "safety" else 40)
    np.testing.assert_array_equal(alone.rewards.train.rewards, doctor.rewards.train.rewards)
    ours, theirs = metadata(together.folder)["dimensions"][name], metadata(alone.folder)
    assert ours["data"] == theirs["data"]
    assert ours["reward_scale"]["value"] == pytest.approx(theirs["reward_scale"]["value"], rel=1e-3)
    found = metrics(together.folder, name)
    for mine, its in zip(found, metrics(alone.folder), strict=True):
        assert mine.keys() | {"train/learning_rate"} == its.keys() | {"train/learning_rate"}
        for key, value in mine.items():
            assert value == pytest.approx(its[key], rel=5e-3, abs=5e-3), key
    paths = ("tokenizer", "adapter")
    assert replace(doctor.card, **dict.fromkeys(paths, ""), loss={}) == replace(
        alone.card, **dict.fromkeys(paths, ""), loss={}
    )
    for part in ("adapter/adapter_model.safetensors", "value_head.safetensors"):
        mine = load_file(together.folder / "export" / name / part)
        its = load_file(alone.folder / (part if "/" in part else f"export/{part}"))
        assert mine.keys() == its.keys()
        for key, tensor in its.items():
            # Adam magnifies rounding: a step of 0.01 is taken as it is to a few hundredths.
            np.testing.assert_allclose(mine[key], tensor, atol=0.03 * RATE, err_msg=key)
    assert (
        metrics(together.folder)[-1]["eval/kindness/margin"]
        != metrics(together.folder)[-1]["eval/safety/margin"]
    )


def test_one_pass_of_the_patient_scores_the_faces_of_all(together):
    log = (together.folder / "run.log").read_text()
    assert log.count("pairs to score under both instructions") == 1
    assert "token rewards: 80 pairs to score under both instructions" in log
    assert log.count(" patient: ") == 2  # its forms and its size, once
    pages = {path.name for path in (together.folder / "token_rewards").glob("*.html")}
    assert pages >= {"token_rewards-kindness.html", "token_rewards-safety.html"}


def test_the_only_doctors_parts_are_not_guessed_of_several(together):
    with pytest.raises(AttributeError, match=r"^card: the run has several doctors; use doctors\[dimension\]"):
        _ = together.card


# --- one update --------------------------------------------------------------------------------


NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def case():
    """Three doctors on random pairs: how they step together, and alone, with what may be wrong with a batch."""
    mesh = make_mesh(MeshConfig(), jax.devices("cpu"))
    loss, counts, params, frozen, batch = tfpo_case(mesh, lora=LoraConfig(enabled=True, rank=2))
    params = jax.device_put(params, replicated(mesh))
    batches = [replace(batch, rewards=(1 + k) * batch.rewards) for k in range(3)]
    each = [frozen | {"reward_scale": jnp.float32(1 + k)} for k in range(3)]
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=RATE, epsilon=1e-2, max_grad_norm=1.0), 10)
    doctors, key, lifted = Together([SimpleNamespace(name=name) for name in NAMES]), jax.random.key(0), []

    def loss_at(params, frozen, batch, key, counts):
        batch = replace(batch, rewards=frozen["reward_scale"] * batch.rewards)
        return loss(params, frozen, batch, key, counts)

    def lift(update):
        lifted.append(doctors.lift(update))
        return lifted[0]

    update = make_update(loss_at, counts, optimizer, lift=lift)
    single = make_update(loss_at, counts, optimizer)

    def inputs(poisoned):
        columns = jax.tree.map(jnp.asarray, stack_batches([each.columns() for each in batches]))
        if poisoned is not None:
            columns["rewards"] = columns["rewards"].at[poisoned, 0, 0].set(jnp.nan)
        state = create_member_states(stacked([params] * 3), optimizer, 3)
        return state, doctors.frozen(each), TFPOBatch.of(columns), key

    def alone(index):
        placed = jax.tree.map(jnp.asarray, batches[index])
        return single(create_state(params, optimizer), each[index], placed, key)

    def program():
        return jax.jit(lifted[0]).lower(*inputs(None)).compile().as_text()

    def step(poisoned=None):
        return update(*inputs(poisoned))

    return SimpleNamespace(step=step, alone=alone, program=program, base=frozen["base"])


def test_each_doctor_takes_the_step_that_it_would_take_alone(case):
    after, found = case.step()
    assert found["finite"] == 1
    for index, name in enumerate(NAMES):
        state, its = case.alone(index)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2 * RATE),
            member_of(after.params, index),
            state.params,
        )
        for metric in ("loss", "balance", "grad_norm"):
            np.testing.assert_allclose(found[f"{name}/{metric}"], its[metric], rtol=1e-4)
    assert found["a/loss"] < found["b/loss"] < found["c/loss"]


def test_the_update_copies_no_matrix_of_the_base(case):
    case.step()
    program = case.program()
    matrices = [x.shape for x in jax.tree.leaves(case.base) if x.ndim > 1 and min(x.shape[-2:]) > 2]
    assert len(matrices) > 5
    for shape in matrices:
        assert f"f32[{','.join(map(str, shape))}]" in program
        for copies in ((3, *shape), (shape[0], 3, *shape[1:])):
            assert f"f32[{','.join(map(str, copies))}]" not in program


def test_a_bad_number_stops_its_own_doctor_alone(case):
    good, (bad, found) = case.step()[0], case.step(poisoned=1)
    assert found["finite"] == 0
    assert bad.step.tolist() == [1, 0, 1]
    for index in (0, 2):
        jax.tree.map(
            np.testing.assert_array_equal, member_of(bad.params, index), member_of(good.params, index)
        )


# --- in use ------------------------------------------------------------------------------------


def test_the_run_folder_brings_all_doctors_and_they_are_computed_together(together):
    run = str(together.folder)
    both = read_doctors(llmdoctor.GuideConfig(doctor=(run,)))
    assert [card.dimension for card in both.cards] == [*LABELS]
    weights = {"safety": 0.3, "kindness": 0.8}
    guided, _ = llmdoctor.load_guided(llmdoctor.GuideConfig(doctor=(run,), preference_weights=weights))
    assert [expert.members for expert in guided.definition.experts] == [2]
    np.testing.assert_allclose(guided.params["betas"], [0.8, 0.3])
    folders = tuple(f"{run}/export/{name}" for name in LABELS)
    named, _ = llmdoctor.load_guided(llmdoctor.GuideConfig(doctor=folders, preference_weights=weights))
    tokens = jnp.arange(6)[None]
    np.testing.assert_array_equal(guided(tokens), named(tokens))
    live = llmdoctor.guide(
        together.model,
        [llmdoctor.Doctor(together.model, adapter=together.doctors[name].adapter) for name in LABELS],
        betas=[0.8, 0.3],
    )
    np.testing.assert_allclose(guided(tokens), live(tokens), atol=1e-4)
    assert np.abs(np.asarray(guided(tokens) - together.model(tokens))).max() > 0.1
    with pytest.raises(ConfigError, match="no weight for safety"):
        read_doctors(llmdoctor.GuideConfig(doctor=(run,), preference_weights={"kindness": 1.0}))


def test_a_checkpoint_is_exported_as_all_of_its_doctors(together, tmp_path):
    run = together.folder
    assert export_checkpoint(run, "latest").folder == run / "export"
    half = export_checkpoint(run, "2", output=tmp_path / "half").folder
    cards = read_doctors(llmdoctor.GuideConfig(doctor=(str(half),))).cards
    assert [card.dimension for card in cards] == [*LABELS]
    whole = read_doctors(llmdoctor.GuideConfig(doctor=(f"{run}@2",)))
    assert [path.parent.name for path in whole.folders] == ["step-2", "step-2"]
    for index, (name, card) in enumerate(zip(LABELS, cards, strict=True)):
        assert replace(card, adapter="", tokenizer="") == replace(
            together.doctors[name].card, adapter="", tokenizer=""
        )
        leaves, _ = models.load_adapter(card.adapter and half / name / card.adapter, together.model.config)
        saved = member_of(read_part(run / "checkpoints", 2, ("params",))["policy"], index)
        jax.tree.map(np.testing.assert_array_equal, leaves, jax.tree.map(np.asarray, saved))
        head = llmdoctor.load_value_head(half / name)
        np.testing.assert_array_equal(head["horizon"], together.doctors[name].value_head["horizon"])
    with pytest.raises(ConfigError, match=r"^--merge=false: .*always exports each adapter/"):
        export_checkpoint(run, "2", merge=False)


@pytest.mark.slow
def test_a_run_killed_and_resumed_gives_the_same_bits(together, settings, tmp_path, monkeypatch):
    config = settings(tmp_path / "parts")
    config = replace(config, rewards=replace(config.rewards, folder=str(together.folder / "token_rewards")))
    with monkeypatch.context() as patch:
        # Eight batches of each dimension are read for its reward scale; the newest checkpoint is that of step 2.
        at_read(patch, 2 * 4 + 2 * 3 + 2, kill)
        with pytest.raises(Killed):
            train_tfpo(config)
    assert not (tmp_path / "parts" / "export").exists()
    train_tfpo(replace(config, run=replace(config.run, resume=True)))
    assert numbers(tmp_path / "parts") == numbers(together.folder)
    for name in LABELS:
        ours, theirs = (
            load_file(run / "export" / name / "model.safetensors")
            for run in (tmp_path / "parts", together.folder)
        )
        for key in theirs:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


@pytest.mark.slow
def test_live_tilted_doctors_of_one_label_share_what_they_began_as(settings, tmp_path):
    config = settings(tmp_path / "run", dimensions=(*LABELS,), loss=TFPOLossConfig(preset="tilted"))
    folder = config.patient.path
    patient, tokenizer = models.load_pretrained(folder), models.load_tokenizer(folder)
    live = replace(config, patient=PatientSource(), run=replace(config.run, sample_rows=2))
    result = train_tfpo(live, patient=patient, tokenizer=tokenizer)
    start = str(tmp_path / "run" / "export" / "start")
    assert {result.doctors[name].card.reference for name in LABELS} == {start}
    guided, _ = llmdoctor.load_guided(llmdoctor.GuideConfig(doctor=(str(tmp_path / "run"),), patient=folder))
    # Both adapters, and what they began as, on one base.
    assert [expert.members for expert in guided.definition.experts] == [3]
    samples = list(records.read(tmp_path / "run" / "samples.jsonl"))
    prompts = [[row["prompt"] for row in samples if row["dimension"] == name] for name in LABELS]
    assert prompts[0] == prompts[1] and len(prompts[0]) == 2


# --- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig()}, "dimensions: several doctors are adapters on one base model; set lora.enabled=true"),
        ({"dimensions": LABELS | {"safety": "kinder"}}, r"dimensions\.safety: no label 'kinder'; expected better"),
        ({"dimensions": (*LABELS, "safety")}, "dimensions: a name occurs twice in kindness, safety, safety"),
        ({"dimensions": (*LABELS, "wit")}, "dimensions: no instructions are shipped for 'wit'"),
        ({"dimensions": LABELS | {"a/b": "better"}}, "dimensions: 'a/b' cannot name a doctor's folder"),
        ({"dimensions": {"safety": "safer"}}, r"rewards\.instructions\.kindness: this run has no such dimension"),
        ({"rewards": TokenRewardConfig(positive="a", negative="b", instructions=INSTRUCTIONS)},
         "rewards.positive sets one dimension's instruction"),
        ({"train": TrainConfig(batch_tokens=64)}, "train.batch_tokens cannot be combined with dimensions"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(changes, message):
    parts = {
        "dimensions": LABELS,
        "rewards": TokenRewardConfig(instructions=INSTRUCTIONS),
        "lora": LoraConfig(enabled=True),
    }
    with pytest.raises(ValueError, match=message):
        TFPOConfig(**(parts | changes))


def test_labels_of_data_that_hold_one_are_refused_before_the_patient_reads(settings, pairs_file, tmp_path):
    config = settings(tmp_path / "run")
    config = replace(config, data=replace(config.data, train=(str(pairs_file),)))
    with pytest.raises(ConfigError, match="the labels better and safer give the same comparisons") as e:
        train_tfpo(config)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_epochs_of_different_lengths_ask_for_steps(settings, tmp_path):
    config = settings(tmp_path / "run", train=TrainConfig(batch_size=4))
    rows = list(records.read(Path(config.data.train[0])))
    rows += [{**row, "prompt": "x" + row["prompt"], "safer_response_id": 7} for row in rows[:20]]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = replace(config.data, train=(str(tmp_path / "more.jsonl"),), on_bad_row="skip")
    with pytest.raises(
        ConfigError, match=r"train\.epochs: .* \(kindness \d+, safety \d+\); set train\.steps"
    ):
        train_tfpo(replace(config, data=data))


def test_each_dimension_alone_has_its_label_and_instructions():
    config = TFPOConfig(
        run=RunConfig(seed=3),
        model=ModelSource(path="m"),
        dimensions={"kindness": "safer", "safety": "better"},
        rewards=TokenRewardConfig(instructions={"kindness": ("be kind", "be rude")}, threshold=0.2),
        lora=LoraConfig(enabled=True),
    )
    each = config.each()
    kind, safe = each["kindness"], each["safety"]
    assert (kind.data.dimension, safe.data.dimension) == ("safer", "better")
    assert (kind.rewards.positive, kind.rewards.negative) == ("be kind", "be rude")
    assert (safe.rewards.dimension, safe.rewards.positive, safe.rewards.threshold) == ("safety", "", 0.2)
    assert kind.dimensions == () and kind.run == config.run
