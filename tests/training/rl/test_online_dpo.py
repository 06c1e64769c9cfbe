"""Online DPO: pairs from the policy's own samples, the loss on them, and learning from a reward or a judge."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from jaxalign import losses, models
from jaxalign.errors import ConfigError, UserError
from jaxalign.models.lora import LoraConfig
from jaxalign.rewards import Rewards
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import records
from jaxalign.training.core.loop import Interrupted
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.preference.config import DPOLossConfig
from jaxalign.training.rl.on_policy_config import RolloutTrainConfig
from jaxalign.training.rl.online_dpo import best_and_worst, preferred, train_online_dpo
from jaxalign.training.rl.online_dpo_config import JudgeSource, OnlineDPOConfig


def metrics_of(folder):
    return list(records.read(folder / "metrics.jsonl"))


def judge_ascii(prompts, first, second, *, columns):
    """Prefers the larger share of ASCII letters; no opinion where they are equal."""
    shares = [[sum(c.isascii() for c in t) / max(len(t), 1) for t in side] for side in (first, second)]
    return [None if a == b else a > b for a, b in zip(*shares, strict=True)]


ONE = RolloutTrainConfig(updates=1, prompts=4, score_batch_size=8, eval_prompts=0)


@pytest.fixture
def online(configs):
    def make(output, **changes):
        ppo = configs.ppo(output)
        parts = {
            "model": ppo.model,
            "data": ppo.data,
            "reward": replace(ppo.reward, missing_stop_penalty=0.0),
            "sampling": SamplingConfig(max_new_tokens=6, num_samples=2),
            "train": replace(ONE, updates=4),
            "optimizer": OptimizerConfig(learning_rate=1e-2, schedule="constant"),
        }
        return OnlineDPOConfig(run=ppo.run, **(parts | changes))

    return make


# --- pairs --------------------------------------------------------------------------------------


def test_the_best_of_a_group_is_paired_with_the_worst():
    scores = np.asarray([1, 3, 2, 0, 0, 0, 5, -1, 9, 4, 7, 7], np.float32)
    valid = np.ones(12, bool)
    valid[[8, 9, 11]] = False  # the third group has 5, -1 left of three; the fourth one score
    pairs = best_and_worst(scores, valid, 3)
    np.testing.assert_array_equal(pairs.valid, [True, False, True, False])
    np.testing.assert_array_equal(pairs.chosen[[0, 2]], [1, 6])
    np.testing.assert_array_equal(pairs.rejected[[0, 2]], [0, 7])
    np.testing.assert_array_equal(pairs.chosen[[1, 3]], pairs.rejected[[1, 3]])


def test_a_judges_favourite_is_chosen_and_no_opinion_is_no_pair():
    pairs = preferred(np.asarray([1.0, 0.2, 0.5, 0.51], np.float32))
    np.testing.assert_array_equal(pairs.valid, [True, True, False, True])
    np.testing.assert_array_equal(pairs.chosen[pairs.valid], [0, 3, 6])
    np.testing.assert_array_equal(pairs.rejected[pairs.valid], [1, 2, 7])


# --- one update ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference(online, tmp_path):
    sampling = SamplingConfig(max_new_tokens=6, num_samples=3, top_p=0.9)
    train_online_dpo(online(tmp_path / "run", sampling=sampling, train=ONE))
    (row,) = metrics_of(tmp_path / "run")
    assert row["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert row["pairs/margin"] == pytest.approx(0, abs=1e-5)
    assert row["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert row["policy/first_ratio"] == pytest.approx(1, abs=1e-5)
    assert row["rollout/logp_gap"] < 1e-4
    assert row["rollout/pairs"] + row["rollout/ties"] == 4
    assert row["objective/score_chosen"] > row["objective/score"] > row["objective/score_rejected"]
    kept = list(records.read(tmp_path / "run" / "samples.jsonl"))
    assert len(kept) == min(4, row["rollout/pairs"]) > 0
    assert all(pair["chosen_score"] > pair["rejected_score"] and pair["prompt"] for pair in kept)


class Recorded:
    """The mean token id, but the same for the first `ties` completions; keeps what it was asked."""

    def __init__(self, ties=0):
        self.ties = ties

    def score(self, request):
        self.request = request
        self.scores = np.asarray([np.mean(ids) for ids in request.completion_ids], np.float32)
        self.scores[: self.ties] = 100
        return Rewards(scores=self.scores)


def sequence_logps(definition, params, rows, temperature):
    """Summed log-probs of completions [N], from plain logits of padded rows."""
    tokens, lengths, mask = rows
    logits = models.merge(definition, params)(tokens, lengths=lengths)[:, :-1] / temperature
    logps = logits - jnp.log(jnp.sum(jnp.exp(logits), -1, keepdims=True))
    found = jnp.take_along_axis(logps, tokens[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(jnp.where(mask[:, 1:], found, 0.0), axis=1)


@pytest.mark.slow
def test_one_update_minimises_the_loss_of_the_best_against_the_worst(online, tmp_path, byte_tokenizer):
    beta, temperature, smoothing = 0.5, 0.7, 0.1
    other = models.create(models.load_pretrained(online("x").model.path).config, key=jax.random.key(9))
    models.save_pretrained(other, tmp_path / "reference", tokenizer=byte_tokenizer)
    reward = Recorded(ties=3)
    config = online(
        tmp_path / "run",
        reference=ModelSource(path=str(tmp_path / "reference")),
        sampling=SamplingConfig(max_new_tokens=6, num_samples=3, temperature=temperature),
        loss=DPOLossConfig(beta=beta, label_smoothing=smoothing),
        train=ONE,
    )
    train_online_dpo(config, reward=reward)
    groups = reward.scores.reshape(4, 3)
    counted = [1, 2, 3]
    assert np.all(np.ptp(groups, axis=1)[counted] > 0)
    picked = [3 * g + int(side(groups[g])) for side in (np.argmax, np.argmin) for g in counted]
    prompts, completions = reward.request.prompt_ids, reward.request.completion_ids
    tokens, mask = np.zeros((len(picked), 32), int), np.zeros((len(picked), 32), bool)
    lengths = np.asarray([len(prompts[i]) + len(completions[i]) for i in picked])
    for row, i in enumerate(picked):
        tokens[row, : lengths[row]] = [*prompts[i], *completions[i]]
        mask[row, len(prompts[i]) : lengths[row]] = True
    rows = tokens, lengths, mask
    start = models.split(models.load_pretrained(config.model.path))
    ref = sequence_logps(*models.split(other), rows, temperature)

    def margins(params):
        ratio = sequence_logps(start[0], params, rows, temperature) - ref
        return beta * (ratio[: len(counted)] - ratio[len(counted) :])

    def loss(params):
        m = margins(params)
        return jnp.mean((1 - smoothing) * jnp.log(1 + jnp.exp(-m)) + smoothing * jnp.log(1 + jnp.exp(m)))

    m = np.asarray(margins(start[1]), np.float64)
    expected = np.mean((1 - smoothing) * np.log1p(np.exp(-m)) + smoothing * np.log1p(np.exp(m)))
    (row,) = metrics_of(tmp_path / "run")
    assert row["rollout/pairs"] == len(counted)
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert row["pairs/margin"] == pytest.approx(m.mean(), abs=1e-5)
    assert row["pairs/accuracy"] == pytest.approx((m > 0).mean())
    gradient = jax.jit(jax.grad(loss))(start[1])
    assert row["grad_norm"] == pytest.approx(float(optax.global_norm(gradient)), rel=1e-4)
    assert abs(expected - np.log(2)) > 1e-3  # the reference is another model


@pytest.mark.slow
def test_micro_batches_of_a_loss_that_sorts_the_batch_are_one_batch(online, tmp_path, byte_tokenizer):
    other = models.create(models.load_pretrained(online("x").model.path).config, key=jax.random.key(9))
    models.save_pretrained(other, tmp_path / "reference", tokenizer=byte_tokenizer)
    found = []
    for parts in (1, 2):
        config = online(
            tmp_path / str(parts),
            reference=ModelSource(path=str(tmp_path / "reference")),
            loss=DPOLossConfig(name="aot", beta=1.0, length_alpha=0.5),
            train=replace(ONE, accumulation_steps=parts),
        )
        train_online_dpo(config, reward=Recorded())
        found.append(metrics_of(tmp_path / str(parts))[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=1e-5)


# --- ties ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_rewards_that_never_differ_change_nothing_and_are_warned_of(online, tmp_path):
    config = online(tmp_path / "run", train=replace(ONE, updates=2))
    train_online_dpo(config, reward=lambda p, c, **_: [1] * len(p))
    for row in metrics_of(tmp_path / "run"):
        assert (row["rollout/pairs"], row["rollout/ties"], row["objective/score"]) == (0, 4, 1)
        assert "loss" not in row
    ours = load_file(tmp_path / "run" / "export" / "model.safetensors")
    for name, tensor in load_file(f"{config.model.path}/model.safetensors").items():
        np.testing.assert_array_equal(ours[name], tensor)
    assert "update 2: skipped, because the completions of all" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("better", "steps"), [pytest.param((7,), 1, marks=pytest.mark.slow), ((1, 5), 2)], ids=["one", "two"]
)
def test_pairs_are_dealt_out_over_the_minibatches_and_ties_are_in_no_mean(better, steps, online, tmp_path):
    config = online(tmp_path / "run", train=replace(ONE, minibatches=2))
    train_online_dpo(config, reward=lambda p, c, **_: [float(i in better) for i in range(len(p))])
    (row,) = metrics_of(tmp_path / "run")
    # A minibatch of ties alone is no step; else each of the two gets one pair and one tie.
    assert (row["rollout/pairs"], row["policy/steps"]) == (len(better), steps)
    if steps == 1:
        assert row["loss"] == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.slow
def test_equal_completions_are_no_pair_whatever_the_reward_says(online, tmp_path):
    sampling = SamplingConfig(max_new_tokens=6, num_samples=2, top_k=1)
    train_online_dpo(
        online(tmp_path / "run", sampling=sampling, train=ONE),
        reward=lambda p, c, **_: list(range(len(p))),
    )
    assert metrics_of(tmp_path / "run")[0]["rollout/ties"] == 4


@pytest.mark.long
def test_a_reward_that_applies_nowhere_is_one_line(online, tmp_path):
    with pytest.raises(UserError, match="no reward applies to any of the 8 completions"):
        train_online_dpo(online(tmp_path / "run"), reward=lambda p, c, **_: [None] * len(p))


# --- learning -----------------------------------------------------------------------------------


LONG = RolloutTrainConfig(updates=24, prompts=16, minibatches=4, score_batch_size=32, eval_prompts=0)


def rise(folder, metric):
    """The metric's mean over the last five updates, and over the first five."""
    values = [row[metric] for row in metrics_of(folder)]
    return np.mean(values[-5:]), np.mean(values[:5])


@pytest.mark.long
def test_rewards_rise(online, tmp_path):
    train_online_dpo(online(tmp_path / "run", train=LONG))
    last, first = rise(tmp_path / "run", "objective/score")
    assert last > first + 0.2
    assert metrics_of(tmp_path / "run")[-1]["objective/kl"] > 1


@pytest.mark.long
def test_a_policy_comes_to_win_against_its_reference_before_the_judge(online, tmp_path):
    config = online(tmp_path / "run", train=LONG, reward=RewardSource())
    train_online_dpo(config, judge=judge_ascii)
    # 80 comparisons each: a tie is half a win, so their standard deviation is under 0.056.
    last, first = rise(tmp_path / "run", "objective/score")
    assert first < 0.64
    assert last > 0.7
    assert 0 < metrics_of(tmp_path / "run")[0]["judge/no_opinion"] < 1


@pytest.mark.slow
def test_completions_that_end_are_preferred_where_it_costs_not_to(online, tmp_path):
    config = online(
        tmp_path / "run",
        reward=RewardSource(missing_stop_penalty=1.0),
        sampling=SamplingConfig(max_new_tokens=6, num_samples=2, stop_tokens=tuple(range(16))),
        train=LONG,
    )
    train_online_dpo(config, reward=lambda p, c, **_: [0.0] * len(p))
    last, first = rise(tmp_path / "run", "rollout/stop_rate")
    assert last > first + 0.15
    assert metrics_of(tmp_path / "run")[0]["objective/score_chosen"] == 0  # before the rule


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, spec in losses.PREFERENCE_LOSSES.items() if not spec.unpaired]
)
def test_every_loss_of_pairs_takes_a_step(name, online, tmp_path):
    smoothing = {"label_smoothing": 0.01} if name == "exo" else {}
    config = online(
        tmp_path / "run", loss=DPOLossConfig(name=name, **smoothing), train=ONE, reward=RewardSource()
    )
    # By which no two completions tie.
    train_online_dpo(
        config, reward=lambda completion_ids, **_: [float(hash(tuple(i)) % 97) for i in completion_ids]
    )
    (row,) = metrics_of(tmp_path / "run")
    assert np.isfinite(row["loss"])
    assert row["grad_norm"] > 0


# --- runs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_gives_the_same_bits(online, tmp_path, monkeypatch):
    from jaxalign.training.rl.online_dpo import Trainer
    from tests.training.test_resume import assert_same_run, terminate

    # Half of what it says depends on the place alone, half on the texts (the reference's too).
    def biased(prompts, first, second, *, columns):
        return [i % 2 == 0 or a > b for i, (a, b) in enumerate(zip(first, second, strict=True))]

    settings = {"reward": RewardSource()}
    whole = train_online_dpo(online(tmp_path / "whole", **settings), judge=biased)
    plain = Trainer.update

    def update(self, number):
        if number == 3:
            terminate()
        return plain(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(Interrupted):
            train_online_dpo(online(tmp_path / "parts", **settings), judge=biased)
    config = online(tmp_path / "parts", **settings)
    train_online_dpo(replace(config, run=replace(config.run, resume=True)), judge=biased)
    assert_same_run(tmp_path / "parts", whole.folder)


@pytest.mark.slow
def test_with_an_adapter_the_reference_is_the_base(online, tmp_path):
    lora = LoraConfig(enabled=True, rank=2)
    config = online(tmp_path / "run", lora=lora, train=replace(ONE, updates=3))
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=3e-2))
    train_online_dpo(config, reward=lambda p, c, **_: list(range(len(p))))
    rows = metrics_of(tmp_path / "run")
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(rows[-1]["objective/kl"]) > 1e-3
    assert (tmp_path / "run" / "adapter").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": DPOLossConfig(name="kto")},
            "loss.name=kto needs labeled completions.*use one of dpo, ",
        ),
        ({"sampling": SamplingConfig(num_samples=1)}, "num_samples must be 2 or more, to make a pair; got 1"),
        (
            {"train": RolloutTrainConfig(prompts=6, minibatches=4)},
            "train.prompts = 6 pairs must be divisible by",
        ),
        ({"reward": RewardSource(whiten=True)}, "reward.whiten is for PPO"),
        ({"judge": JudgeSource(function="judge.py:f")}, "judge and reward: choose one"),
        (
            {
                "judge": JudgeSource(function="judge.py:f"),
                "reward": RewardSource(),
                "sampling": SamplingConfig(num_samples=4),
            },
            "num_samples must be 2 with a judge, which compares two; got 4",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message, online, tmp_path):
    with pytest.raises(ValueError, match=message):
        online(tmp_path, **changes)


def test_a_missing_or_wrong_judge_is_one_line_and_leaves_nothing(online, tmp_path):
    nothing = {"reward": RewardSource()}
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"reward.model, reward.functions or judge.function, got none"):
        train_online_dpo(online(folder, **nothing))
    with pytest.raises(ConfigError, match=r"judge 'nowhere.py:f': no such file nowhere.py"):
        train_online_dpo(online(folder, judge=JudgeSource(function="nowhere.py:f"), **nothing))
    with pytest.raises(ConfigError, match="judge and reward: choose one"):
        train_online_dpo(online(folder), judge=judge_ascii)
    with pytest.raises(UserError, match="judge <lambda>: returned 1 verdicts for 8 pairs"):
        train_online_dpo(online(folder, **nothing), judge=lambda p, a, b, *, columns: [True])
    assert not folder.exists()


@pytest.mark.long
def test_token_rewards_behind_the_end_of_a_completion_rank_nothing(online, tmp_path):
    def ones(prompts, completions, *, completion_ids, columns):
        del completions, completion_ids, columns
        return np.ones((len(prompts), 6))

    sampling = SamplingConfig(max_new_tokens=6, num_samples=4, stop_tokens=tuple(range(128)))
    row = train_online_dpo(online(tmp_path / "run", sampling=sampling, train=ONE), reward=ones).metrics
    assert row["objective/score"] == pytest.approx(row["rollout/length"])
    # The longest completion is the best.
    assert row["objective/score_chosen"] > row["objective/score_rejected"]
