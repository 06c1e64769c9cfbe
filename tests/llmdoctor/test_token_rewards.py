"""Token rewards of a data set: what the patient says, what the files keep, what the trainer and callers get."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.data import DataConfig, chat_of, collate_comparisons, eval_batches, load_dataset
from jaxalign.errors import CheckpointError, ConfigError, DataError, ModelError
from jaxalign.llmdoctor import token_reward_store
from jaxalign.llmdoctor.token_rewards import (
    PreferenceExample,
    TokenRewardConfig,
    process_preference_dataset,
    token_reward_table,
)
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.runs import Run, RunConfig
from jaxalign.training.core import setup
from jaxalign.training.core.batch import pair_axis

ON_MESH = setup.on_mesh
CONFIG = TokenRewardConfig(positive="vowels ", negative="others: ", batch_size=4)


@pytest.fixture(scope="module")
def patient(tiny_model_folder):
    """The tiny model with weights three times as large, so that what stands before a token matters."""
    definition, params = models.split(models.load_pretrained(tiny_model_folder))
    return models.merge(definition, jax.tree.map(lambda x: 3 * x, params))


@pytest.fixture(scope="module")
def settings(pairs_file):
    return DataConfig(train=(str(pairs_file),), template="plain", max_length=32, validation_fraction=0.2)


@pytest.fixture(scope="module")
def data(settings, byte_tokenizer):
    return load_dataset(settings, "comparison", byte_tokenizer, seed=0)


class Interrupted(Exception):
    """The user has enough."""


class Maker:
    """Makes tables; `forwards` counts the batches that a patient has read, and at `stop_at` the user interrupts."""

    def __init__(self, data, chat, patient, folder):
        self.data, self.chat, self.patient, self.folder = data, chat, patient, folder
        self.forwards, self.stop_at = 0, -1

    def on_mesh(self, *args, **options):
        if self.forwards == self.stop_at:
            raise Interrupted
        self.forwards += 1
        return ON_MESH(*args, **options)

    def __call__(self, config=CONFIG, *, devices=1, **changes):
        mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
        options = {"data": self.data, "patient": self.patient, "folder": self.folder} | changes
        return token_reward_table(config, chat=self.chat, mesh=mesh, **options)


@pytest.fixture
def make(data, settings, byte_tokenizer, patient, tmp_path, monkeypatch):
    maker = Maker(data, chat_of(settings, byte_tokenizer), patient, tmp_path / "rewards")
    monkeypatch.setattr(setup, "on_mesh", maker.on_mesh)
    return maker


def logps_of(table):
    return [
        np.concatenate([getattr(split.scores, name) for split in (table.train, table.validation)])
        for name in ("positive_logps", "negative_logps")
    ]


def batches(data, *, training=True):
    rows = data.train if training else data.validation
    return [pair_axis(batch) for batch in eval_batches(rows, 8, collate_comparisons)]


@pytest.mark.long
def test_logps_are_those_of_the_completion_behind_the_instruction(make, data, patient, byte_tokenizer):
    scores = make(folder=None).train.scores
    for index in (0, 1, 10, 23):
        example, side = data.train[index // 2], index % 2
        start = len(example.prompt_tokens)
        span = slice(scores.offsets[index], scores.offsets[index + 1])
        assert scores.token_ids[span].tolist() == list(example.rows[side][start:])
        for instruction, found in (("vowels ", scores.positive_logps), ("others: ", scores.negative_logps)):
            prompt = byte_tokenizer(instruction + example.prompt)["input_ids"]
            row = np.zeros((1, 40), np.int32)
            end = len(prompt) + len(found[span])
            row[0, :end] = [*prompt, *example.rows[side][start:]]
            logps = np.asarray(jax.nn.log_softmax(patient(jnp.asarray(row))[0]))
            expected = logps[np.arange(len(prompt) - 1, end - 1), row[0, len(prompt) : end]]
            np.testing.assert_allclose(found[span], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"packing": False}, {"devices": 8}])
def test_packed_equals_padded_and_many_devices_equal_one(make, options):
    expected, found = make(folder=None), make(folder=None, **options)
    for one, other in zip(logps_of(expected), logps_of(found), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_swapping_the_instructions_leaves_the_importance_unchanged(make):
    table = make(folder=None)
    swapped = make(replace(CONFIG, positive=CONFIG.negative, negative=CONFIG.positive), folder=None)
    np.testing.assert_allclose(table.train.importance, swapped.train.importance, atol=1e-3)
    np.testing.assert_allclose(logps_of(table)[0], logps_of(swapped)[1], atol=2e-5)
    assert np.abs(logps_of(table)[0] - logps_of(table)[1]).mean() > 0.05


@pytest.mark.parametrize("training", [True, False])
def test_rewards_lie_on_completion_tokens_alone_and_have_the_labels_sign(make, data, training):
    table = make(folder=None)
    split = table.train if training else table.validation
    found = []
    for batch in batches(data, training=training):
        rewards = table.attached(batch, training=training)["rewards"]
        assert rewards.shape == batch["tokens"].shape
        assert rewards.dtype == np.float32
        np.testing.assert_array_equal(rewards[~batch["mask"]], 0)
        assert (rewards[:, 0] >= 0).all()
        assert (rewards[:, 1] <= 0).all()
        found.append(rewards[batch["valid"]][batch["mask"][batch["valid"]]])
    np.testing.assert_array_equal(np.concatenate(found), split.rewards)
    assert 0 < (split.rewards != 0).mean() < 1


def test_rows_of_a_batch_get_their_own_rewards_in_any_order(make, data):
    table = make(folder=None)
    numbers = [7, 2, 2, 11]
    batch = pair_axis(collate_comparisons([data.train[i] for i in numbers], numbers))
    rewards = table.attached(batch, training=True)["rewards"]
    for place, number in enumerate(numbers):
        span = slice(table.train.scores.offsets[2 * number], table.train.scores.offsets[2 * number + 2])
        np.testing.assert_array_equal(rewards[place][batch["mask"][place]], table.train.rewards[span])
    with pytest.raises(ValueError, match="completions are not those of the token rewards"):
        table.attached(batch | {"row_ids": np.asarray([1, 2, 3, 4])}, training=True)


def test_an_interrupted_extraction_goes_on_where_it_stopped(make, data, monkeypatch, tmp_path):
    monkeypatch.setattr(token_reward_store, "PART", 8)
    whole = make(folder=None)
    steps = make.forwards
    assert steps == -(-len(data.train) // 4) + -(-len(data.validation) // 4)
    make.stop_at = steps + 5  # in the middle of the third part
    with pytest.raises(Interrupted):
        make()
    [folder] = (tmp_path / "rewards").glob("scores-*")
    assert sorted(path.name for path in folder.glob("*")) == [
        "about.json", "train-00000.parquet", "train-00001.parquet",
    ]  # fmt: skip
    make.stop_at = -1
    make.forwards = 0
    table = make()
    assert make.forwards == steps - 4
    assert table.summary()["scored_rows"] == len(data.train) + len(data.validation) - 16
    for one, other in zip(logps_of(whole), logps_of(table), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.train.rewards, table.train.rewards)


def test_other_settings_of_the_rewards_run_no_forward(make):
    first = make()
    make.stop_at = make.forwards
    again = make()
    np.testing.assert_array_equal(first.train.rewards, again.train.rewards)
    settings = [
        {"threshold": 0.7}, {"quantile": 0.2}, {"temperature": 2.0}, {"epsilon": 0.5}, {"signed": True},
        {"min_mean_delta": 0.1}, {"batch_size": 2}, {"on_zero": "skip"},
    ]  # fmt: skip
    tables = [make(replace(CONFIG, **change)) for change in settings]
    folders = [table.summary()["rewards_folder"] for table in (first, *tables)]
    assert len(set(folders)) == 7  # batch_size and on_zero change no reward
    assert all(table.summary()["scored_rows"] == 0 for table in tables)
    assert all((table.train.rewards != first.train.rewards).any() for table in tables[:6])


@pytest.mark.long
def test_other_instructions_patients_and_data_are_scored_anew(make, data, patient):
    definition, params = models.split(patient)
    other = models.merge(definition, jax.tree.map(lambda x: x * 1.01, params))
    tables = [
        make(),
        make(replace(CONFIG, negative="other ")),
        make(patient=other),
        make(data=replace(data, fingerprint="other")),
    ]
    assert len({table.summary()["scores_folder"] for table in tables}) == 4
    assert all(table.summary()["scored_rows"] == len(data.train) + len(data.validation) for table in tables)


@pytest.mark.long
def test_patients_of_other_weights_have_other_files(make, patient):
    definition, params = models.split(patient)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    same = models.merge(definition, jax.tree.map(lambda x: x.astype(jnp.float32), low))
    patients = [patient, models.merge(definition, low), same, models.quantize(patient)]
    assert len({make(patient=other).summary()["scores_folder"] for other in patients}) == 4


def test_a_damaged_part_is_named(make, data, tmp_path):
    make()
    [path] = (tmp_path / "rewards").glob("scores-*/train-00000.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"train-00000.parquet: cannot read .* delete the file"):
        make()
    rows = token_reward_store.unscored(data.train)
    for first, ids in ((0, rows.token_ids + 1), (1, rows.token_ids)):
        token_reward_store.write_scores(path, data.train, replace(rows, token_ids=ids), first=first)
        with pytest.raises(CheckpointError, match=r"train-00000.parquet: the file holds other completions"):
            make()
    path.unlink()
    make()


def test_files_are_read_by_datasets_and_hold_what_the_table_holds(make, data, tmp_path):
    import datasets

    table = make()
    folder = table.summary()["rewards_folder"]
    datasets.disable_progress_bars()
    stored = datasets.Dataset.from_parquet(f"{folder}/train.parquet", cache_dir=str(tmp_path / "cache"))
    assert stored.column_names == [
        "row", "side", "source", "token_ids", "positive_logps", "negative_logps", "importance", "rewards",
        "prompt_cut",
    ]  # fmt: skip
    assert len(stored) == 2 * len(data.train)
    row = stored[5]
    assert (row["row"], row["side"], row["source"]) == (2, "rejected", data.train[2].source)
    span = slice(table.train.scores.offsets[5], table.train.scores.offsets[6])
    assert row["rewards"] == table.train.rewards[span].tolist()
    assert row["positive_logps"] == table.train.scores.positive_logps[span].tolist()
    about = json.loads((tmp_path / "rewards" / folder / "about.json").read_text())
    assert (about["positive"], about["threshold"]) == ("vowels ", 0.5)
    page = (tmp_path / "rewards" / "token_rewards.html").read_text()
    assert page.count("<section") == 20


def test_a_folder_of_the_configuration_is_shared(make, tmp_path):
    make(replace(CONFIG, folder=str(tmp_path / "shared")), folder=tmp_path / "one")
    make.stop_at = make.forwards
    make(replace(CONFIG, folder=str(tmp_path / "shared")), folder=tmp_path / "two")
    assert {path.name for path in tmp_path.iterdir()} == {"shared"}


def test_a_patient_that_does_not_heed_instructions_is_an_error(make, patient):
    definition, params = models.split(patient)
    deaf = models.merge(definition, jax.tree.map(jnp.zeros_like, params))
    with pytest.raises(
        ConfigError, match=r"no token of the \d+ training pairs has a reward.*differ by 0 nats"
    ):
        make(patient=deaf)
    with pytest.raises(ConfigError, match="has a reward"):
        make(replace(CONFIG, on_zero="skip"), patient=deaf)


def test_pairs_without_a_reward_are_skipped_where_asked(make, data):
    # A floor that half of the responses do not reach.
    deltas = make(folder=None).train.scores
    means = deltas.totals(np.abs(deltas.positive_logps - deltas.negative_logps)) / deltas.lengths
    config = replace(CONFIG, min_mean_delta=float(np.quantile(means, 0.7)))
    stay, skip = make(config), make(replace(config, on_zero="skip"))
    assert stay.summary()["zero_rows"] == skip.summary()["zero_rows"] > 0
    without = (skip.train.kept == 0).all(1)
    assert without.sum() == skip.summary()["zero_rows"]
    for batch in batches(data):
        assert stay.attached(batch, training=True)["valid"].tolist() == batch["valid"].tolist()
        np.testing.assert_array_equal(
            skip.attached(batch, training=True)["valid"], batch["valid"] & ~without[batch["row_ids"]]
        )


def test_a_patient_with_broken_weights_is_named_with_the_row(make, patient, data):
    definition, params = models.split(patient)
    broken = models.merge(definition, jax.tree.map(lambda x: x * jnp.nan, params))
    with pytest.raises(ModelError, match=f"^{data.train[0].source}: .* not finite"):
        make(patient=broken)


def test_a_prompt_too_long_for_the_patient_is_cut_and_counted(make, patient, data):
    short = models.with_config(patient, max_positions=20)
    table = make(patient=short)
    # The prompt of 5 ids does not fit beside "others: " and long completions.
    longest = [max(map(len, e.rows)) - len(e.prompt_tokens) for e in (*data.train, *data.validation)]
    assert table.summary()["cut_rows"] == sum(8 + 5 + length > 20 for length in longest) > 0
    with pytest.raises(DataError, match=r"pairs.jsonl:\d+: .* the patient's context is 12"):
        make(patient=models.with_config(patient, max_positions=12))


def test_python_examples_give_what_the_table_gives(make, data, settings, patient, byte_tokenizer, tmp_path):
    table = make()
    texts = [byte_tokenizer.decode(row[len(e.prompt_tokens) : -1]) for e in data.train for row in e.rows]
    examples = [
        PreferenceExample(example.prompt, texts[2 * i], texts[2 * i + 1])
        for i, example in enumerate(data.train)
    ]
    found = process_preference_dataset(examples, patient, byte_tokenizer, config=CONFIG, data=settings)
    assert len(found) == len(data.train)
    for index in range(2 * len(found)):
        side = (found[index // 2].preferred, found[index // 2].non_preferred)[index % 2]
        span = slice(table.train.scores.offsets[index], table.train.scores.offsets[index + 1])
        assert list(side.tokens) == table.train.scores.token_ids[span].tolist()
        assert "".join(side.texts) == texts[index] + "</s>"
        np.testing.assert_allclose(side.positive_logps, table.train.scores.positive_logps[span], atol=2e-5)
        np.testing.assert_allclose(side.negative_logps, table.train.scores.negative_logps[span], atol=2e-5)
        np.testing.assert_allclose(side.importances, table.train.importance[span], atol=1e-3)
        kept = np.abs(table.train.importance[span] - 0.5) > 1e-3  # not at the threshold
        np.testing.assert_allclose(np.asarray(side.rewards)[kept], table.train.rewards[span][kept], atol=1e-3)
    config = replace(CONFIG, folder=str(tmp_path / "kept"))
    process_preference_dataset(examples, patient, byte_tokenizer, config=config, data=settings)
    assert (tmp_path / "kept" / "token_rewards.html").is_file()


def test_python_examples_that_do_not_fit_are_named(patient, byte_tokenizer, settings):
    examples = [PreferenceExample("a", "b", "c"), PreferenceExample("a" * 40, "b", "c")]
    settings = replace(settings, truncation="filter")
    with pytest.raises(DataError, match=r"examples\[1\]: too long \(data.max_length=32\)"):
        process_preference_dataset(examples, patient, byte_tokenizer, config=CONFIG, data=settings)
    with pytest.raises(DataError, match="at least one"):
        process_preference_dataset([], patient, byte_tokenizer)


def test_faces_that_say_nothing_about_the_labels_are_told(make, data, tmp_path):
    """Half of the labels are turned: what the faces say agrees with them by chance."""
    turned = [
        replace(e, rows=e.rows[::-1], masks=e.masks[::-1]) if i % 2 else e for i, e in enumerate(data.train)
    ]
    with Run.open(RunConfig(output=str(tmp_path / "run"), progress=False), RunConfig(), "tfpo") as run:
        table = make(data=replace(data, train=turned, fingerprint="turned"), run=run)
    log = (tmp_path / "run" / "run.log").read_text()
    assert "token rewards may be noise" in log
    assert f"{table.summary()['agreement']:.1%} of the pairs" in log


def test_an_extraction_that_failed_does_not_stand_in_the_way_of_its_run(make, tmp_path):
    config = RunConfig(output=str(tmp_path / "run"), progress=False)
    make.stop_at = 1
    with pytest.raises(Interrupted), Run.open(config, config, "tfpo") as run:
        make(folder=run.folder / "token_rewards", run=run)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["token_rewards"]
    make.stop_at = -1
    with Run.open(config, config, "tfpo") as run:
        make(folder=run.folder / "token_rewards", run=run)
