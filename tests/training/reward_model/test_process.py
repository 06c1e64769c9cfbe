"""Process reward models: the loss is of steps, held-out steps are told apart, and PPO and GRPO take them."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from jaxalign import models
from jaxalign.data import DataConfig
from jaxalign.errors import ConfigError, DataError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.lora import LoraConfig
from jaxalign.rewards import Rewards
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import records
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.scoring import ScalarPolicy
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.reward_model.process import StepBatch, process_loss, step_count, step_measures
from jaxalign.training.reward_model.trainer import RewardConfig, RewardLossConfig, train_reward
from jaxalign.training.rl.group_rollout import ending_at_last
from jaxalign.training.rl.grpo import Trainer, train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import PPOTrainConfig
from tests.training.cases import step_case
from tests.training.conftest import Configs


def metrics_of(folder):
    return list(records.read(folder / "metrics.jsonl"))


def updates_of(folder):
    """The records of updates, without the evaluation before the first."""
    return [row for row in metrics_of(folder) if "objective/score" in row]


class Fixed(ScalarPolicy):
    """Gives the logits that it was made with, so that a loss can be worked out by hand."""

    def __post_init__(self):
        """There is no definition to check."""

    def per_token(self, trained, frozen, rows, *, key=None):
        del frozen, rows, key
        return trained


def test_the_loss_is_the_mean_over_all_steps_of_the_batch():
    logits = jnp.asarray([[9.0, 2.0, 9.0, -1.0], [9.0, 0.5, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    batch = StepBatch(
        tokens=jnp.zeros((3, 4), int),
        lengths=jnp.full(3, 4),
        mask=jnp.asarray([[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]], bool),
        labels=jnp.asarray([[0, 1, 0, 0], [0, 0.25, 0, 0], [0, 0, 1, 1.0]]),
        valid=jnp.asarray([True, True, False]),
    )
    assert step_count(batch) == 3
    loss, metrics = process_loss(Fixed(None))(logits, None, batch, None, step_count(batch))
    # softplus(-2), softplus(-1), and the cross-entropy of 1/4 against sigmoid(1/2)
    terms = [np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log1p(np.exp(0.5)) - 0.25 * 0.5]
    assert loss == pytest.approx(np.mean(terms), rel=1e-5)
    assert [float(x) for x in metrics["step_accuracy"]] == [2.0, 3.0]


def test_measures_by_hand():
    def logits(text):
        return np.asarray([1.0 if c == "+" else -1.0 for c in text])

    def labels(text):
        return np.asarray([1.0 if c == "+" else 0.0 for c in text])

    truth_and_called = [("+++", "+++"), ("++", "+-"), ("+-+", "+-+"), ("+--", "--+"), ("-+", "++")]
    solutions = [(logits(called), labels(truth)) for truth, called in truth_and_called]
    found = step_measures(solutions, list("aabcd"))
    assert found["step_accuracy"] == pytest.approx((3 + 1 + 3 + 1 + 1) / 13)
    assert found["right_step_accuracy"] == pytest.approx((3 + 1 + 2 + 0 + 1) / (3 + 2 + 2 + 1 + 1))
    assert found["wrong_step_accuracy"] == pytest.approx((1 + 1 + 0) / (1 + 2 + 1))
    assert found["first_error_accuracy"] == pytest.approx(1 / 3)
    assert found["all_right_accuracy"] == pytest.approx(1 / 2)
    assert found["first_error_f1"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert found["step_accuracy_low"] < found["step_accuracy"] < found["step_accuracy_high"]
    # What there is nothing to measure on is left out, and a logit of 0 says wrong.
    only_right = step_measures([(np.asarray([0.0, 2.0]), np.asarray([0.5, 1.0]))], ["a"])
    assert {k: v for k, v in only_right.items() if not k.startswith("step_accuracy_")} == {
        "step_accuracy": 0.5,
        "right_step_accuracy": 0.5,
        "all_right_accuracy": 0.0,
    }


def test_padding_and_what_follows_the_last_step_change_nothing(devices):
    loss, counts, trained, frozen, batch = step_case(make_mesh(MeshConfig(), devices[:1]))
    other = jax.tree.map(np.array, batch)
    after = np.arange(12) >= batch.lengths[:, None]
    other.tokens[after] = 1
    other.labels[~other.mask] = 0.5
    values = []
    for rows in (batch, other):
        rows = jax.tree.map(jnp.asarray, rows)
        values.append(float(loss(trained, frozen, rows, None, counts(rows))[0]))
    assert (other.tokens != batch.tokens).any()
    assert values[1] == pytest.approx(values[0], rel=1e-6)


WORDS = ["a", "b", "c", "d", ";", "q", "<s>", "</s>", "<pad>"]


def words_world(folder):
    """A random model of nine words, so that what it samples are steps, and labelled steps for it.

    A step is right where its last word, the one before " ;", is a or b.
    """
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<pad>")
    config = models.ModelConfig(
        vocab_size=9, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        max_positions=64, eos_ids=(7,),
    )  # fmt: skip
    models.save_pretrained(models.create(config, key=jax.random.key(0)), folder / "model", tokenizer=words)
    draw = random.Random(0)
    rows = []
    for _ in range(160):
        steps = [" ".join(draw.choices("abcd", k=draw.randint(1, 3))) for _ in range(draw.randint(1, 4))]
        labels = [step[-1] in "ab" for step in steps]
        rows.append(
            {"prompt": "q " + " ".join(draw.choices("abcd", k=4)), "completions": steps, "labels": labels}
        )
    (folder / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def process_run(tmp_path_factory, pairs_file):
    """A process reward model of the world of words, and its run."""
    world = words_world(tmp_path_factory.mktemp("world"))
    configs = Configs(world / "model", pairs_file, world / "steps.jsonl")
    config = configs.steps(world / "run", train=TrainConfig(batch_size=16, steps=80))
    config = replace(
        config, data=replace(config.data, separator=" ;"), run=replace(config.run, eval_every=80)
    )
    return train_reward(config)


@pytest.mark.long
def test_held_out_steps_are_told_apart(process_run):
    first = next(row for row in metrics_of(process_run.folder) if "eval/loss" in row)
    found = process_run.metrics
    # Half of the steps are right, whatever the ones before them.
    assert 0.3 < first["eval/step_accuracy"] < 0.7
    assert found["eval/step_accuracy"] >= 0.95
    assert found["eval/first_error_f1"] >= 0.9
    assert found["eval/loss"] < 0.5 * first["eval/loss"]
    assert found["eval/step_accuracy_low"] < found["eval/step_accuracy"] <= found["eval/step_accuracy_high"]
    assert "final/gain" not in found


def test_the_export_is_a_token_classifier_that_knows_its_separator(process_run):
    config = json.loads((process_run.folder / "export" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForTokenClassification"]
    model = models.load_reward_model(process_run.folder / "export")
    assert model.steps == models.StepConfig(separator=" ;")
    ids = [WORDS.index(word) for word in "q c d a c a ; b d ;".split()]
    right, wrong = np.asarray(model.per_token(jnp.asarray([ids])))[0, [6, 9]]
    assert right > 0 > wrong


@pytest.mark.slow
def test_an_adapter_learns_steps_too_and_is_merged(configs, tmp_path):
    lora = LoraConfig(enabled=True, rank=4)
    config = configs.steps(tmp_path / "run", lora=lora, train=TrainConfig(batch_size=8, steps=100))
    result = train_reward(replace(config, optimizer=OptimizerConfig(learning_rate=3e-2)))
    first = next(row for row in metrics_of(tmp_path / "run") if "eval/loss" in row)
    assert result.metrics["eval/loss"] < first["eval/loss"]
    assert models.load_reward_model(result.folder / "export").steps == models.StepConfig(separator=";")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RewardConfig(normalize=True, loss=RewardLossConfig(labels="steps")),
            "normalize=true: .* logits",
        ),
        (lambda: DataConfig(separator=""), r"data\.separator must not be empty"),
        (
            lambda: DataConfig(separator="\\n"),
            r"data\.separator: \\n is a backslash and an n, not a new line",
        ),
        (lambda: RewardSource(separator="\\n\\n"), r"reward\.separator: .* write \$'"),
        (lambda: RewardLossConfig(labels="steps", use_margin=True), r"loss\.use_margin is not used by"),
        (
            lambda: GRPOLossConfig(name="gspo", advantages="process"),
            "gives one advantage per token, but loss.name=gspo",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture
def in_world(configs, process_run):
    """The parts that PPO and GRPO runs in the world of words share."""

    def parts(**source):
        return {
            "model": ModelSource(path=str(process_run.folder.parent / "model")),
            "data": replace(configs.data, train=(str(process_run.folder.parent / "steps.jsonl"),)),
            "reward": RewardSource(model=str(process_run.folder), **source),
            "sampling": SamplingConfig(max_new_tokens=8, num_samples=4, stop_tokens=()),
            "optimizer": OptimizerConfig(learning_rate=1e-2, schedule="constant"),
        }

    return parts


def grpo(configs, output, **changes):
    parts = {
        "model": configs.model,
        "data": configs.data,
        "loss": GRPOLossConfig(advantages="process"),
        "train": GRPOTrainConfig(updates=1, prompts=2, score_batch_size=4),
        "sampling": SamplingConfig(max_new_tokens=4, num_samples=2, stop_tokens=()),
    }
    return GRPOConfig(run=configs.run(output), **(parts | changes))


@pytest.mark.slow
def test_ppo_learns_from_the_steps_of_a_process_reward_model(configs, in_world, tmp_path):
    train = PPOTrainConfig(updates=12, prompts=16, epochs=2, minibatches=2, score_batch_size=64)
    train_ppo(configs.ppo(tmp_path / "run", train=train, **in_world()))
    rows = updates_of(tmp_path / "run")
    assert rows[-1]["objective/score"] > rows[0]["objective/score"] + 0.15
    # The sum of a row's rewards is the probability of its lowest step, and 0 where it has none.
    for row in rows:
        assert 0.9 * row["reward/model/lowest_step"] < row["objective/score"]
        assert row["objective/score"] <= row["reward/model/lowest_step"] + 1e-5
    assert rows[0]["reward/model/steps"] > 1.2


@pytest.mark.slow
def test_grpo_learns_from_the_steps_of_a_process_reward_model(configs, in_world, tmp_path):
    train = GRPOTrainConfig(updates=12, prompts=16, minibatches=2, score_batch_size=64)
    train_grpo(grpo(configs, tmp_path / "run", train=train, **in_world()))
    rows = updates_of(tmp_path / "run")
    assert rows[-1]["reward/model/step_probability"] > rows[0]["reward/model/step_probability"] + 0.15
    # For these advantages a step earns its probability: rows of several steps sum to more than the lowest.
    assert rows[0]["objective/score"] > rows[0]["reward/model/lowest_step"] + 0.1


@pytest.mark.slow
def test_a_live_process_model_is_a_reward_too(configs, in_world, process_run, tmp_path):
    config = grpo(configs, tmp_path / "run", **in_world(step_score="logit"))
    model = models.load_pretrained(config.model.path)
    train_grpo(config, policy=model, tokenizer=process_run.tokenizer, reward=process_run.model)
    assert "reward/steps" in updates_of(tmp_path / "run")[0]


@pytest.mark.long
def test_credit_goes_to_the_tokens_before_and_at_a_steps_end(configs, tmp_path, monkeypatch):
    def reward(prompts, completions, *, completion_ids, columns):
        """1 at token 1 or at token 0, by turns; 0 everywhere else."""
        found = np.zeros((len(prompts), 4), np.float32)
        found[np.arange(len(prompts)), 1 - np.arange(len(prompts)) % 2] = 1.0
        return Rewards(token_rewards=found, steps=found > 0)

    seen = []
    plain = Trainer.passes
    monkeypatch.setattr(
        Trainer, "passes", lambda s, n, data, step: seen.append(data) or plain(s, n, data, step)
    )
    train_grpo(grpo(configs, tmp_path / "run"), reward=reward)
    # Both completions of a group have a step of 1, and the last token ends one of 0: deviation sqrt(1/3).
    up = 0.5 / (np.sqrt(1 / 3) + 1e-4)
    for row, (advantages, mask) in enumerate(zip(seen[0].advantages, seen[0].mask, strict=True)):
        expected = [0, 0, -up, -up] if row % 2 == 0 else [0, -up, -up, -up]
        np.testing.assert_allclose(advantages[mask], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(advantages[~mask], 0)
    # Their sums are equal, and yet they teach something.
    assert metrics_of(tmp_path / "run")[-1]["rollout/groups_alike"] == 0


def test_a_score_is_part_of_the_last_steps_reward():
    tokens = np.asarray([[0.5, 0, 0, 0], [0.25, 0, 0, 0]], np.float32)
    steps = np.asarray([[1, 0, 0, 0], [1, 0, 1, 0]], bool)
    completions = SimpleNamespace(lengths=np.asarray([4, 3]))
    found = ending_at_last(Rewards(token_rewards=tokens, steps=steps), np.asarray([1.0, -1.0]), completions)
    np.testing.assert_array_equal(found[0], [[0.5, 0, 0, 1], [0.25, 0, -1, 0]])
    np.testing.assert_array_equal(found[1], [[1, 0, 0, 1], [1, 0, 1, 0]])


def test_rewards_without_tokens_are_refused_for_process_advantages(configs, tmp_path):
    with pytest.raises(ConfigError, match=r"loss\.advantages=process: the reward gave no token rewards"):
        train_grpo(grpo(configs, tmp_path / "run"), reward=lambda p, c, **_: [1.0] * len(p))


def test_a_separator_without_a_token_is_refused(configs, in_world, tmp_path):
    config = configs.steps(tmp_path / "run", model=in_world()["model"])
    with pytest.raises(DataError, match=r"data\.separator: the tokenizer cannot encode '\\n'"):
        train_reward(replace(config, data=replace(config.data, separator="\n")))
    with pytest.raises(ConfigError, match=r"reward\.separator: the tokenizer cannot encode '\\n'"):
        train_grpo(grpo(configs, tmp_path / "grpo", **in_world(separator="\n")))


@pytest.mark.parametrize("changes", [{"separator": "\n"}, {"step_score": "logit"}])
def test_settings_of_steps_need_a_process_reward_model(changes, configs, tmp_path):
    source = replace(configs.ppo(tmp_path).reward, **changes)
    name = next(iter(changes))
    with pytest.raises(ConfigError, match=rf"reward\.{name} needs a process reward model"):
        train_ppo(configs.ppo(tmp_path / "run", reward=source))
