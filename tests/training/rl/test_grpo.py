"""GRPO and its relatives: advantages of groups, the algorithm's loss, and learning from rewards."""

import inspect
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import losses, models
from jaxalign.errors import UserError
from jaxalign.models import LoraConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import records
from jaxalign.training.core.loop import Interrupted
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.rl import group_rollout
from jaxalign.training.rl.group_rollout import informative
from jaxalign.training.rl.grpo import Trainer, advantages_of, train_grpo
from jaxalign.training.rl.grpo_advantages import ADVANTAGES, RewardedRows
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.grpo_step import GRPOBatch, policy_terms
from jaxalign.training.rl.on_policy_config import RolloutConfig
from jaxalign.training.rl.recipes import RL_RECIPES
from tests.golden import make_exact_curve as exact_curve

MASK = jnp.asarray([[0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]], bool)


def metrics_of(folder):
    return list(records.read(folder / "metrics.jsonl"))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    old = jnp.where(MASK, -rng.exponential(size=MASK.shape), 0.0).astype(jnp.float32)
    advantages = jnp.where(MASK, jnp.asarray([[1.0], [-0.5], [2.0], [-2.0]]), 0.0)
    moved = jnp.where(MASK, old + 0.1 * rng.standard_normal(MASK.shape), 0.0).astype(jnp.float32)
    zeros = jnp.zeros(MASK.shape, jnp.int32)
    return moved, GRPOBatch(
        tokens=zeros,
        lengths=MASK.sum(1),
        mask=MASK,
        old_logps=old,
        advantages=advantages,
        weights=jnp.ones(MASK.shape),
    )


@pytest.mark.parametrize("name", RL_RECIPES)
def test_a_recipe_says_what_its_loss_takes(name):
    recipe = RL_RECIPES[name]
    parameters = inspect.signature(recipe.loss).parameters
    given = (
        ["logps", "old_logps", "advantages", "mask"] if recipe.reads_old else ["logps", "advantages", "mask"]
    )
    assert list(parameters)[: len(given)] == given
    assert recipe.clip_arguments(*recipe.clip).keys() <= parameters.keys()
    assert not recipe.takes_dual_clip or "dual_clip" in parameters
    assert recipe.advantages in ADVANTAGES
    found = policy_terms(GRPOLossConfig(name=name), *batch())
    assert found.shape == ((4,) if recipe.of_rows else MASK.shape)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_are_those_of_unmasked_tokens(name):
    steps = MASK & ~jnp.roll(MASK, -1, axis=1)
    rewards = jnp.asarray([1.0, 3.0, 5.0, 4.0])
    rows = RewardedRows(
        scores=rewards,
        valid=jnp.ones(4, bool),
        mask=MASK,
        step_rewards=jnp.where(steps, rewards[:, None], 0.0),
        steps=steps,
        group=2,
    )
    found = ADVANTAGES[name].function(rows)
    assert found.shape == MASK.shape and not found[~MASK].any() and found[MASK].any()
    # The better completion of each prompt has the larger advantage, wherever it has a token.
    best = [float(found[i][MASK[i]].max()) for i in range(4)]
    assert best[1] > best[0] and best[2] > best[3]


@pytest.mark.parametrize("name", RL_RECIPES)
def test_the_terms_are_the_public_loss_with_the_papers_clip(name):
    logps, data = batch()
    row = jnp.asarray([1.0, -0.5, 2.0, -2.0])
    expected = {
        "grpo": lambda: losses.grpo_loss(logps, data.old_logps, row, MASK),
        "dr_grpo": lambda: losses.grpo_loss(logps, data.old_logps, row, MASK),
        "dapo": lambda: losses.grpo_loss(logps, data.old_logps, row, MASK, clip_high=0.28),
        "gspo": lambda: losses.gspo_loss(logps, data.old_logps, row, MASK),
        "cispo": lambda: losses.cispo_loss(logps, data.old_logps, row, MASK),
        "gmpo": lambda: losses.gmpo_loss(logps, data.old_logps, row, MASK),
        "rloo": lambda: losses.rloo_loss(logps, data.old_logps, row, MASK),
        "reinforce": lambda: losses.reinforce_loss(logps, row, MASK),
        "reinforce++": lambda: losses.grpo_loss(logps, data.old_logps, row, MASK),
    }[name]()
    np.testing.assert_allclose(policy_terms(GRPOLossConfig(name=name), logps, data), expected, rtol=1e-6)


def test_advantages_compare_the_completions_of_a_prompt():
    scores, valid = jnp.asarray([1.0, 3.0, 5.0, 5.0]), jnp.ones(4, bool)

    def of(name):
        rows = RewardedRows(scores=scores, valid=valid, mask=MASK, group=2)
        return advantages_of(GRPOLossConfig(name=name), rows)

    np.testing.assert_allclose(of("dr_grpo"), jnp.where(MASK, jnp.asarray([[-1.0], [1], [0], [0]]), 0))
    np.testing.assert_allclose(of("rloo"), jnp.where(MASK, jnp.asarray([[-2.0], [2], [0], [0]]), 0))
    np.testing.assert_allclose(of("grpo")[:, 2], [-(0.5**0.5), 0.5**0.5, 0, 0], atol=1e-3)


@pytest.fixture
def grpo(configs):
    def make(output, **changes):
        ppo = configs.ppo(output)
        parts = {
            "model": ppo.model,
            "data": ppo.data,
            "reward": replace(ppo.reward, missing_stop_penalty=0.0),
            "sampling": SamplingConfig(max_new_tokens=6, num_samples=4),
            "train": GRPOTrainConfig(
                updates=4, prompts=4, minibatches=2, score_batch_size=16, eval_prompts=0
            ),
            "optimizer": OptimizerConfig(learning_rate=1e-2, schedule="constant"),
        }
        return GRPOConfig(run=ppo.run, **(parts | changes))

    return make


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "rloo", "reinforce++")]
)  # that GRPO learns is seen in `make test` by its example
def test_rewards_rise(name, grpo, tmp_path):
    train = GRPOTrainConfig(updates=24, prompts=8, minibatches=2, score_batch_size=32, eval_prompts=0)
    train_grpo(grpo(tmp_path / "run", loss=GRPOLossConfig(name=name, beta=0.01), train=train))
    rows = metrics_of(tmp_path / "run")
    assert rows[-1]["objective/score"] > rows[0]["objective/score"] + 0.04
    assert rows[0]["policy/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[-1]["objective/kl"] > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("minibatches", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_in_exact_mode_the_sampler_is_the_policy_to_the_bit(minibatches, grpo, tmp_path):
    """Also where the policy's numbers are rounded to bfloat16, and however many rows are scored at once."""
    model = replace(grpo(tmp_path).model, compute_dtype="bfloat16", products="compute_dtype")
    found = []
    for size in (16, 3):
        train = GRPOTrainConfig(
            updates=2, prompts=4, minibatches=minibatches, score_batch_size=size, eval_prompts=0
        )
        folder, rollout = tmp_path / f"run{size}", RolloutConfig(exact=True)
        train_grpo(grpo(folder, model=model, train=train, rollout=rollout, loss=GRPOLossConfig(beta=0.1)))
        rows = metrics_of(folder)
        assert [row["rollout/logp_gap"] for row in rows] == [0.0, 0.0]
        assert [row["policy/first_ratio"] for row in rows] == [1.0, 1.0]
        found.append(
            [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows]
        )
    assert found[0] == found[1]


@pytest.mark.long
def test_in_exact_mode_a_golden_curve_is_repeated_to_the_bit(grpo, tmp_path):
    train = GRPOTrainConfig(updates=20, prompts=4, minibatches=2, score_batch_size=16, eval_prompts=0)
    config = grpo(tmp_path / "run", train=train, rollout=RolloutConfig(exact=True))
    kept = json.loads(exact_curve.FILE.read_text()).get(exact_curve.key())
    written = os.environ.get("JAXALIGN_EXACT_CURVE")
    if kept is None and not written:
        pytest.skip(f"no curve of {exact_curve.key()}; `python -m tests.golden.make_exact_curve` makes it")
    found = exact_curve.curve(config, train_grpo)
    assert len(found) == 20 and {row["rollout/logp_gap"] for row in found} == {"0x0.0p+0"}
    assert len({row["objective/score"] for row in found}) > 5
    if written:
        Path(written).write_text(json.dumps({exact_curve.key(): found}))
    else:
        assert found == kept


def test_in_exact_mode_any_gap_ends_the_run():
    trainer = SimpleNamespace(config=SimpleNamespace(rollout=RolloutConfig(exact=True)))
    Trainer.check_gaps(trainer, 3, {"rollout/logp_gap": 0.0})
    with pytest.raises(UserError, match=r"update 3: .* differ by 1e-07 nats, and rollout\.exact promises 0"):
        Trainer.check_gaps(trainer, 3, {"rollout/logp_gap": 1e-7})


@pytest.fixture
def forwards(monkeypatch):
    """Of each rollout that is scored before its update: whether the policy is asked, and whether the reference."""
    asked, plain = [], Trainer.score_rows

    def score_rows(self, rows, score):
        found = plain(self, rows, score)
        asked.append((found.logps is not None, found.ref_logps is not None))
        return found

    monkeypatch.setattr(Trainer, "score_rows", score_rows)
    return asked


@pytest.mark.long
@pytest.mark.parametrize(
    ("beta", "expected"),
    [(0.0, [(True, False)]), pytest.param(0.1, [(True, True), *[(False, True)] * 2], marks=pytest.mark.slow)],
)
def test_one_step_a_rollout_asks_the_policy_once_and_learns_the_same(
    beta, expected, grpo, tmp_path, monkeypatch, forwards
):
    train = GRPOTrainConfig(updates=3, prompts=4, accumulation_steps=2, score_batch_size=16, eval_prompts=0)
    settings = {"train": train, "loss": GRPOLossConfig(beta=beta)}
    train_grpo(grpo(tmp_path / "once", **settings))
    # Only before the first update, to hold the sampler's log-probs against it.
    assert forwards == expected
    monkeypatch.setattr(Trainer, "one_step", False)
    train_grpo(grpo(tmp_path / "twice", **settings))
    assert forwards[len(expected) :] == [(True, bool(beta))] * 3
    once, twice = (metrics_of(tmp_path / name) for name in ("once", "twice"))
    assert [row.keys() for row in once] == [row.keys() for row in twice]
    for ours, theirs in zip(once, twice, strict=True):
        for name in (n for n in ours if not n.startswith("time/")):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=2e-5), name
    assert once[-1]["objective/entropy"] > 0.1 and once[-1]["rollout/logp_gap"] > 0
    start = load_file(f"{grpo(tmp_path).model.path}/model.safetensors")
    ours, theirs = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("once", "twice"))
    for name in start:
        # The learning rate is 1e-2, and Adam magnifies rounding.
        np.testing.assert_allclose(ours[name], theirs[name], atol=5e-4, err_msg=name)
    assert any(np.abs(ours[name] - start[name]).max() > 5e-3 for name in start)


def test_a_sampler_that_disagrees_is_found_before_the_first_of_single_steps(grpo, tmp_path, monkeypatch):
    steps, plain = [], Trainer.passes
    monkeypatch.setattr(
        Trainer, "passes", lambda *args, **options: steps.append(1) or plain(*args, **options)
    )
    train = GRPOTrainConfig(updates=1, prompts=4, score_batch_size=16, logp_tolerance=1e-12, eval_prompts=0)
    with pytest.raises(UserError, match="the log-probs of sampler and trainer differ"):
        train_grpo(grpo(tmp_path / "run", train=train))
    assert not steps


@pytest.mark.long
@pytest.mark.parametrize("minibatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_gap_to_the_sampler_is_that_of_completions_that_count(minibatches, grpo, tmp_path, monkeypatch):
    plain = Trainer.sample

    def off(self, number, part=0):
        """Samples of which every other one comes with log-probs that are 1 nat too high."""
        completions, request = plain(self, number, part)
        return replace(completions, logps=completions.logps + (np.arange(16) % 2)[:, None]), request

    monkeypatch.setattr(Trainer, "sample", off)
    train = GRPOTrainConfig(
        updates=2, prompts=4, minibatches=minibatches, score_batch_size=16, eval_prompts=0
    )
    config = grpo(tmp_path / "run", train=train)
    train_grpo(config, reward=lambda p, c, **_: [None if i % 2 else float(i) for i in range(len(p))])
    rows = metrics_of(tmp_path / "run")
    assert [row["rollout/counted_rows"] for row in rows] == [0.5, 0.5]
    assert all(0 < row["rollout/logp_gap_mean"] <= row["rollout/logp_gap"] < 1e-4 for row in rows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"train": GRPOTrainConfig(prompts=4, minibatches=2)}, False),
        ({"train": GRPOTrainConfig(prompts=4, epochs=2)}, False),
        ({"loss": GRPOLossConfig(importance_cap=2.0)}, False),
        ({"loss": GRPOLossConfig(name="reinforce++", beta=0.1)}, False),
        ({"loss": GRPOLossConfig(name="rloo", beta=0.1)}, False),
        ({"loss": GRPOLossConfig(name="grpo", advantages="leave_one_out", beta=0.1)}, True),
    ],
)
def test_what_needs_the_old_log_probs_before_the_update_gets_them(changes, expected, grpo, tmp_path):
    config = grpo(tmp_path, **({"train": GRPOTrainConfig(prompts=4)} | changes))
    assert Trainer.one_step.fget(SimpleNamespace(config=config)) == expected


@pytest.mark.long
def test_without_a_kl_term_no_reference_is_held(grpo, tmp_path, monkeypatch):
    held, plain = [], Trainer.update
    monkeypatch.setattr(
        Trainer, "update", lambda self, number: held.append(self.reference) or plain(self, number)
    )
    # A folder that is not there is not missed.
    config = grpo(
        tmp_path / "run",
        train=GRPOTrainConfig(updates=1, prompts=4),
        reference=ModelSource(path="nowhere"),
    )
    train_grpo(config)
    assert held == [{}]


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_gives_the_same_bits(grpo, tmp_path, monkeypatch):
    from tests.training.test_resume import assert_same_run, terminate

    whole = train_grpo(grpo(tmp_path / "whole"))
    plain = Trainer.update

    def update(self, number):
        if number == 3:
            terminate()
        return plain(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(Interrupted):
            train_grpo(grpo(tmp_path / "parts"))
    config = grpo(tmp_path / "parts")
    train_grpo(replace(config, run=replace(config.run, resume=True)))
    assert_same_run(tmp_path / "parts", whole.folder)


@pytest.mark.long
def test_groups_that_are_all_alike_are_replaced_while_rounds_are_left(grpo, tmp_path):
    calls = []

    def reward(prompts, completions, *, completion_ids, columns):
        calls.append(len(prompts))
        # The first round's groups are alike but for the last one.
        if len(calls) == 1:
            return [0.0] * (len(prompts) - 1) + [1.0]
        return [float(i % 2) for i in range(len(prompts))]

    train = GRPOTrainConfig(updates=1, prompts=4, sampling_rounds=3, score_batch_size=16, eval_prompts=0)
    train_grpo(grpo(tmp_path / "run", train=train), reward=reward)
    (row,) = metrics_of(tmp_path / "run")
    assert calls == [16, 16]
    assert row["rollout/groups_sampled"] == 8
    assert row["rollout/groups_alike"] == 0
    # One group of the first round (one 1 in four) and three of the second (two in four).
    assert row["objective/score"] == pytest.approx((1 + 3 * 2) / 16)


@pytest.mark.long
def test_rewards_that_never_differ_change_nothing(grpo, tmp_path):
    train = GRPOTrainConfig(updates=1, prompts=4, sampling_rounds=2, score_batch_size=16, eval_prompts=0)
    config = grpo(tmp_path / "run", train=train)
    train_grpo(config, reward=lambda p, c, **_: [1] * len(p))
    (row,) = metrics_of(tmp_path / "run")
    assert row["rollout/groups_alike"] == 4
    ours = load_file(tmp_path / "run" / "export" / "model.safetensors")
    for name, tensor in load_file(f"{config.model.path}/model.safetensors").items():
        np.testing.assert_array_equal(ours[name], tensor)


@pytest.mark.long
def test_completions_cut_by_length_can_be_left_out_and_long_ones_cost(grpo, tmp_path):
    sampling = SamplingConfig(max_new_tokens=6, num_samples=4, stop_tokens=())
    loss = GRPOLossConfig(name="dapo", mask_truncated=True, overlong_buffer=3, overlong_penalty=0.5)
    config = grpo(
        tmp_path / "run",
        sampling=sampling,
        loss=loss,
        train=GRPOTrainConfig(updates=1, prompts=4, eval_prompts=0),
    )
    train_grpo(config)
    (row,) = metrics_of(tmp_path / "run")
    assert row["rollout/stop_rate"] == 0
    assert row["rollout/counted_rows"] == 0


@pytest.mark.long
def test_truncated_sampling_is_corrected_by_importance_weights(grpo, tmp_path):
    sampling = SamplingConfig(max_new_tokens=6, num_samples=4, top_k=4)
    loss = GRPOLossConfig(importance_cap=2.0)
    train_grpo(grpo(tmp_path / "run", sampling=sampling, loss=loss))
    assert np.isfinite(metrics_of(tmp_path / "run")[-1]["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": SamplingConfig(num_samples=1)}, "num_samples must be 2 or more: loss.name=grpo"),
        ({"train": GRPOTrainConfig(prompts=3, minibatches=5)}, "must be divisible by"),
        ({"sampling": SamplingConfig(num_samples=4, temperature=0.0)}, "temperature must be positive"),
        (
            {"rollout": RolloutConfig(exact=True), "lora": LoraConfig(enabled=True, dropout=0.1)},
            "exact needs lora.dropout=0",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message, grpo, tmp_path):
    with pytest.raises(ValueError, match=message):
        grpo(tmp_path, **changes)


def test_no_applicable_reward_is_one_line(grpo, tmp_path):
    with pytest.raises(UserError, match="no reward applies to any of the 16 completions"):
        train_grpo(grpo(tmp_path / "run"), reward=lambda p, c, **_: [None] * len(p))


@pytest.mark.long
def test_a_function_of_trls_learns_on_chat_rows_and_shows_what_it_logs(grpo, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"q {i}"}], "truth": f"{i}"} for i in range(16)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = []

    def reward(prompts, completions, truth, trainer_state, log_extra, log_metric, **kwargs):
        steps.append((trainer_state.global_step, trainer_state.max_steps))
        log_extra("truth", truth)
        log_metric("rows", len(truth))
        assert [p[0]["content"] for p in prompts] == [f"q {t}" for t in truth]
        return [float(len(completion[0]["content"])) for completion in completions]

    config = grpo(tmp_path / "run", train=GRPOTrainConfig(updates=2, prompts=4, score_batch_size=16))
    train_grpo(
        replace(config, data=replace(config.data, train=(str(tmp_path / "chat.jsonl"),))), reward=reward
    )
    assert steps == [(0, 2), (1, 2), (2, 2)]  # the last on held-out prompts
    assert metrics_of(tmp_path / "run")[-1]["reward/rows"] == 16
    sample = next(records.read(tmp_path / "run" / "samples.jsonl"))
    assert sample["prompt"] == f"q {sample['truth']}"


def one_a_token(prompts, completions, *, completion_ids, columns):
    """Token rewards of 1 in every column, also behind the ends of completions."""
    del completions, completion_ids, columns
    return np.ones((len(prompts), 6))


@pytest.mark.long
def test_token_rewards_behind_the_end_of_a_completion_do_not_count(grpo, tmp_path, monkeypatch):
    seen, plain = [], group_rollout.sample_groups
    monkeypatch.setattr(group_rollout, "sample_groups", lambda *args: seen.append(plain(*args)) or seen[-1])
    sampling = SamplingConfig(max_new_tokens=6, num_samples=4, stop_tokens=tuple(range(128)))
    config = grpo(
        tmp_path / "run", sampling=sampling, train=GRPOTrainConfig(updates=1, prompts=4, eval_prompts=0)
    )
    row = train_grpo(config, reward=one_a_token).metrics
    lengths = seen[0].completions.lengths
    assert len(set(lengths)) > 1
    np.testing.assert_array_equal(seen[0].scores, lengths)
    assert row["objective/score"] == pytest.approx(lengths.mean())
    # A step ends where a completion does, or before.
    assert not (seen[0].steps & ~seen[0].completions.mask).any()


@pytest.mark.long
def test_minibatches_in_which_no_row_counts_do_not_move_the_policy(grpo, tmp_path):
    def first_group_alone(prompts, completions, *, completion_ids, columns):
        del completions, completion_ids, columns
        return [float(i) if i < 4 else None for i in range(len(prompts))]

    train = GRPOTrainConfig(
        updates=1, prompts=4, epochs=2, minibatches=16, score_batch_size=16, eval_prompts=0
    )
    row = train_grpo(grpo(tmp_path / "run", train=train), reward=first_group_alone).metrics
    # Each of four rows is a step by itself; the twelve others are none.
    assert row["policy/steps"] == 2 * 4
    assert row["policy/entropy"] == pytest.approx(row["objective/entropy"], rel=0.1)
    assert row["policy/ratio_mean"] == pytest.approx(1.0, abs=0.2)


def test_an_update_in_which_no_row_counts_changes_nothing_and_is_warned_of(grpo, tmp_path):
    """Weight decay and momentum would move the policy without any gradient."""
    sampling = SamplingConfig(max_new_tokens=6, num_samples=4, stop_tokens=())
    optimizer = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    loss, train = GRPOLossConfig(mask_truncated=True), GRPOTrainConfig(updates=2, prompts=4, eval_prompts=0)
    config = grpo(tmp_path / "run", sampling=sampling, loss=loss, train=train, optimizer=optimizer)
    row = train_grpo(config).metrics
    assert row["policy/steps"] == 0 and row["rollout/counted_rows"] == 0
    ours = load_file(tmp_path / "run" / "export" / "model.safetensors")
    for name, tensor in load_file(f"{config.model.path}/model.safetensors").items():
        np.testing.assert_array_equal(ours[name], tensor)
    assert (
        "update 2: skipped, because the loss reads no completion"
        in (tmp_path / "run" / "run.log").read_text()
    )


def cut_by_hand(monkeypatch, cut):
    """From now on the rows `cut` [16] ended by length, and all others by themselves."""
    plain = Trainer.sample

    def sample(self, number, part=0):
        completions, request = plain(self, number, part)
        reasons = ["length" if x else "stop" for x in cut]
        return replace(completions, finish_reason=reasons), request

    monkeypatch.setattr(Trainer, "sample", sample)


@pytest.mark.long
def test_a_masked_completion_counts_in_its_groups_statistics_and_not_in_the_loss(grpo, tmp_path, monkeypatch):
    cut = np.arange(16) % 4 == 0
    cut_by_hand(monkeypatch, cut)
    seen, plain = [], Trainer.passes
    monkeypatch.setattr(
        Trainer, "passes", lambda self, n, data, *args: seen.append(data) or plain(self, n, data, *args)
    )
    loss = GRPOLossConfig(name="dr_grpo", mask_truncated=True)
    train = GRPOTrainConfig(updates=1, prompts=4, sampling_rounds=3, score_batch_size=16, eval_prompts=0)
    # Groups that differ in the truncated row alone: they teach that the others are better than it.
    rewards = lambda p, c, **_: [0.0 if i % 4 == 0 else 1.0 for i in range(len(p))]  # noqa: E731
    row = train_grpo(grpo(tmp_path / "run", loss=loss, train=train), reward=rewards).metrics
    (data,) = seen
    np.testing.assert_array_equal(data.mask.any(1), ~cut)
    np.testing.assert_allclose(data.advantages[data.mask], 0.25)
    assert row["rollout/groups_alike"] == 0 and row["rollout/groups_sampled"] == 4
    assert row["rollout/counted_rows"] == 0.75 and row["grad_norm"] > 1e-4


@pytest.mark.parametrize(
    ("rewards", "learnt", "expected"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], False),
        ([0, 1, 1, 1], [1, 1, 1, 1], True),
        ([0, 1, 1, 1], [0, 1, 1, 1], True),
        # All who differ are cut, or what is left lies at the mean.
        ([0, 1, 0, 1], [0, 0, 0, 0], False),
        ([0, 1, 2, 1], [0, 1, 0, 1], False),
        ([0.1, 0.3, np.nan, np.nan], [1, 0, 0, 0], True),
        ([np.nan] * 4, [0, 0, 0, 0], False),
        ([0.1, 0.1, 0.1, 0.1], [1, 1, 1, 1], False),
    ],
)
def test_a_group_teaches_where_a_row_that_is_learnt_has_an_advantage(rewards, learnt, expected):
    values = np.asarray(rewards, np.float32)[:, None]
    assert informative(values, np.asarray(learnt, bool), 4).tolist() == [expected]


@pytest.mark.long
def test_scores_of_replaced_groups_are_logged_beside_those_of_all(grpo, tmp_path):
    calls = []

    def reward(prompts, completions, *, completion_ids, columns):
        calls.append(1)
        # Three groups that are all right; then groups half right.
        if len(calls) == 1:
            return [1.0] * 12 + [0.0, 0.0, 0.0, 1.0]
        return [float(i % 2) for i in range(len(prompts))]

    train = GRPOTrainConfig(updates=1, prompts=4, sampling_rounds=3, score_batch_size=16, eval_prompts=0)
    row = train_grpo(grpo(tmp_path / "run", train=train), reward=reward).metrics
    assert row["objective/score"] == pytest.approx((1 + 3 * 2) / 16)
    assert row["objective/score_sampled"] == pytest.approx((13 + 8) / 32)
    # Three groups that were all right, and the one of the second round that was not needed.
    assert row["objective/score_replaced"] == pytest.approx((12 + 2) / 16)


def test_rloo_takes_the_summed_kl_off_the_reward_before_the_baseline():
    rng = np.random.default_rng(3)
    mask, beta = np.asarray(MASK), 0.3
    logps, ref = (np.where(mask, -rng.exponential(size=mask.shape), np.nan) for _ in range(2))
    scores = np.asarray([1.0, -2.0, 0.5, 0.25])
    # By hand, in float64: two groups of two.
    kl = [sum(logps[i, t] - ref[i, t] for t in range(4) if mask[i, t]) for i in range(4)]
    shaped = [scores[i] - beta * kl[i] for i in range(4)]
    rows = [shaped[0] - shaped[1], shaped[1] - shaped[0], shaped[2] - shaped[3], shaped[3] - shaped[2]]
    rows_in = RewardedRows(
        scores=jnp.float32(scores),
        valid=jnp.ones(4, bool),
        mask=MASK,
        logps=jnp.float32(logps),
        ref_logps=jnp.float32(ref),
        group=2,
        beta=beta,
    )
    found = advantages_of(GRPOLossConfig(name="rloo", beta=beta), rows_in)
    np.testing.assert_allclose(found, np.where(mask, np.asarray(rows)[:, None], 0.0), rtol=1e-5)


@pytest.mark.long
def test_the_loss_of_rloo_has_no_kl_term(grpo, tmp_path, monkeypatch):
    """Where all advantages are 0 nothing is left to learn, whatever the policy's distance to the reference."""
    monkeypatch.setattr("jaxalign.training.rl.grpo.advantages_of", lambda config, rows, own: 0.0 * rows.logps)
    plain = models.load_pretrained(grpo("x").model.path)
    other = models.create(plain.config, key=jax.random.key(9))
    models.save_pretrained(
        other, tmp_path / "reference", tokenizer=models.load_tokenizer(grpo("x").model.path)
    )
    config = grpo(
        tmp_path / "run",
        loss=GRPOLossConfig(name="rloo", beta=0.5),
        reference=ModelSource(path=str(tmp_path / "reference")),
        train=GRPOTrainConfig(updates=1, prompts=4, eval_prompts=0),
    )
    row = train_grpo(config).metrics
    assert row["loss"] == 0 and row["grad_norm"] == 0
    assert abs(row["objective/kl"]) > 0.01
