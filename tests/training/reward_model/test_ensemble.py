"""A reward ensemble is K reward models, trained at once as each would be alone."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.data import BatchIterator, collate_comparisons, load_dataset
from jaxalign.errors import DataError
from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.models import attention
from jaxalign.models.heads import HeadConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rewards import ModelReward
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import records
from jaxalign.training.core.batch import pair_axis, valid_count
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.members import MemberBatches, create_member_states, member_of, stack_batches
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from jaxalign.training.reward_model.ensemble import (
    EnsembleConfig,
    HeldOut,
    create_members,
    over_members,
    seeds,
)
from jaxalign.training.reward_model.trainer import PairBatch, RewardLossConfig, make_reward_loss, train_reward
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.ppo import train_ppo
from tests.training.conftest import Configs
from tests.training.test_resume import Killed, at_read, kill, numbers

THREE = EnsembleConfig(size=3)
RATE = 1e-2


@pytest.fixture(scope="module")
def ensemble(tiny_model_folder, pairs_file, steps_file, tmp_path_factory):
    """Three models on the pairs of vowels: (configuration, result)."""
    config = Configs(tiny_model_folder, pairs_file, steps_file).reward(
        tmp_path_factory.mktemp("ensemble") / "run",
        ensemble=THREE,
        train=TrainConfig(batch_size=8, steps=24),
        head=HeadConfig(kind="mlp", hidden_size=8, dropout=0.1),
    )
    return config, train_reward(config)


def rows_of(config, tokenizer):
    data = load_dataset(config.data, "comparison", tokenizer, seed=config.run.seed)
    return [row for example in data.validation for row in example.rows]


def member_tensors(folder):
    return [load_file(folder / "export" / f"member-{k}" / "model.safetensors") for k in range(3)]


# --- together and alone -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "head": HeadConfig(kind="mlp", hidden_size=8, dropout=0.2),
            "train": TrainConfig(batch_size=4, steps=3, accumulation_steps=2),
        },
        {"lora": LoraConfig(enabled=True, rank=2, dropout=0.1)},
    ],
    ids=["models", "adapters"],
)
def test_a_member_is_what_a_run_of_its_seed_trains_alone(changes, configs, tmp_path):
    config = configs.reward(tmp_path / "together", ensemble=THREE, **changes)
    together = train_reward(config)
    rows = rows_of(config, together.tokenizer)
    scores = []
    for k in range(3):
        run = replace(config.run, output=str(tmp_path / f"alone-{k}"), seed=k)
        alone = train_reward(replace(config, ensemble=EnsembleConfig(), run=run))
        theirs, ours = (
            load_file(alone.folder / "export/model.safetensors"),
            member_tensors(together.folder)[k],
        )
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            # Adam magnifies rounding: a step of 0.01 is taken as it is to a hundredth.
            np.testing.assert_allclose(ours[name], tensor, atol=0.01 * RATE, err_msg=name)
        scores.append(ModelReward(alone.model).score_rows(rows))
        np.testing.assert_allclose(ModelReward(together.model[k]).score_rows(rows), scores[k], atol=2e-3)
        for name in ("gain", "bias"):
            np.testing.assert_allclose(
                together.metrics[f"final/member-{k}/{name}"], alone.metrics[f"final/{name}"], rtol=2e-3
            )
        assert together.metrics[f"eval/member-{k}/accuracy"] == alone.metrics["eval/accuracy"]
    # The three are three: scores of one member are nowhere near another's.
    assert min(np.abs(scores[a] - scores[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.05


@pytest.mark.long
def test_where_cudnn_is_fast_members_take_a_form_that_can_be_mapped(configs, tmp_path, monkeypatch):
    monkeypatch.setitem(attention.REFUSALS, "cudnn", lambda config, device: "")
    monkeypatch.setitem(attention.FASTEST, "cpu", "cudnn")
    train = TrainConfig(batch_size=4, steps=1)
    config = configs.reward(tmp_path / "run", ensemble=THREE, train=train)
    # Here cuDNN's program would not even compile.
    train_reward(config)
    recorded = json.loads((tmp_path / "run" / "metadata.json").read_text())["implementations"]["model"]
    assert recorded["attention"] == "plain"
    assert recorded["attention_reason"] == "cuDNN's kernels cannot be mapped over several models"
    live = models.with_config(models.load_pretrained(config.model.path), attention="cudnn")
    policy, *_ = create_members(config, live, make_mesh(MeshConfig()))
    assert policy.definition.config.attention == "plain"


def one_step_case(configs, mesh, folder, kind="heads"):
    """(policy, trained, frozen, K batches [B, 2, T]) on the tiny model."""
    config = configs.reward(folder, ensemble=EnsembleConfig(size=3, members=kind))
    model, tokenizer = models.load_pretrained(config.model.path), models.load_tokenizer(config.model.path)
    policy, trained, frozen = create_members(config, model, mesh)
    data = load_dataset(config.data, "comparison", tokenizer, seed=0).train
    batches = [
        pair_axis(BatchIterator(data, batch_size=4, seed=seed, collate=collate_comparisons).next())
        for seed in seeds(config)
    ]
    return policy, trained, frozen, batches


KEYS = [0, 1, 2]


def step_together(policy, trained, frozen, batches, mesh, optimizer, **loss):
    """The state and metrics after one step of all members."""
    update = make_update(
        make_reward_loss(policy, RewardLossConfig(**loss)), valid_count, optimizer, lift=over_members
    )
    keys = jnp.stack([jax.random.key(k) for k in KEYS])
    placed = shard_batch(PairBatch.of(stack_batches(batches)), mesh, axis=1)
    return update(create_member_states(trained, optimizer, 3), frozen, placed, keys)


@pytest.mark.long
@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_each_head_takes_its_own_step_on_the_shared_trunk(clip, configs, tmp_path, devices):
    mesh = make_mesh(MeshConfig(), devices)
    policy, trained, frozen, batches = one_step_case(configs, mesh, tmp_path)
    assert set(trained) == {"head"}
    # Clipped so low, and epsilon so high, that one norm over all members would show.
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=RATE, epsilon=1e-2, max_grad_norm=clip), 10)
    state, _ = step_together(policy, trained, frozen, batches, mesh, optimizer)
    single = make_update(make_reward_loss(policy, RewardLossConfig()), valid_count, optimizer)
    for k in range(3):
        fresh = create_state(member_of(trained, k), optimizer)
        placed = shard_batch(PairBatch.of(batches[k]), mesh)
        alone, _ = single(fresh, frozen, placed, jax.random.key(KEYS[k]))
        ours, theirs = member_of(state.params, k)["head"]["score"], alone.params["head"]["score"]
        moved = np.abs(theirs - trained["head"]["score"][k]).max()
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * moved)


def test_a_bad_number_in_one_members_batch_stops_that_member_alone(configs, tmp_path, devices):
    mesh = make_mesh(MeshConfig(), devices)
    policy, trained, frozen, batches = one_step_case(configs, mesh, tmp_path)
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=RATE), 10)

    def step(batches):
        return step_together(policy, trained, frozen, batches, mesh, optimizer, use_margin=True)

    good, metrics = step(batches)
    assert metrics["finite"] == 1
    batches[1] = {**batches[1], "margin": np.full(4, np.nan, np.float32)}
    bad, metrics = step(batches)
    assert metrics["finite"] == 0
    assert bad.step.tolist() == [1, 0, 1]
    for k in (0, 2):
        jax.tree.map(np.testing.assert_array_equal, member_of(bad, k), member_of(good, k))
    np.testing.assert_array_equal(bad.params["head"]["score"][1], trained["head"]["score"][1])


@pytest.mark.long
def test_eight_devices_equal_one(configs, tmp_path, devices):
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=RATE, schedule="constant"), 10)
    found = []
    for axes in ({}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = make_mesh(MeshConfig(**axes), devices)
        policy, trained, frozen, batches = one_step_case(configs, mesh, tmp_path, "models")
        found.append(step_together(policy, trained, frozen, batches, mesh, optimizer))
    (one, metrics), (eight, metrics8) = found
    for name in metrics:
        np.testing.assert_allclose(metrics8[name], metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)
    # As placed before the step, rows split and members whole: the second step is the same program.
    weight = eight.params["trunk"]["layers"]["up_proj"]
    assert weight.shape == (3, 2, 16, 32)
    assert tuple(weight.sharding.spec) == (None, None, "fsdp", "tensor")
    assert placed_rows(batches, mesh) == (3, 1, 2, 16)
    jax.tree.map(
        # Adam magnifies rounding: parameters agree to a hundredth of the step.
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=0.01 * RATE),
        eight.params,
        one.params,
    )


def placed_rows(batches, mesh):
    """The shape of the tokens that one device holds."""
    tokens = shard_batch(PairBatch.of(stack_batches(batches)), mesh, axis=1).tokens
    return tokens.sharding.shard_shape(tokens.shape)


# --- batches and resuming ---------------------------------------------------------------------


def test_every_member_has_an_order_of_its_own_and_positions_come_back(configs):
    tokenizer = models.load_tokenizer(configs.model.path)
    data = load_dataset(configs.data, "comparison", tokenizer, seed=0).train

    def make():
        def collate(examples, numbers):
            return pair_axis(collate_comparisons(examples, numbers))

        return MemberBatches([BatchIterator(data, batch_size=4, seed=k, collate=collate) for k in range(3)])

    batches = make()
    first = batches.next()
    assert first["lengths"].shape == (3, 4, 2)
    assert not np.array_equal(first["row_ids"][0], first["row_ids"][1])
    saved, second = json.loads(json.dumps(batches.state())), batches.next()
    again = make()
    again.restore(saved)
    for name, value in again.next().items():
        np.testing.assert_array_equal(value, second[name])


def test_narrow_rows_are_filled_up_to_the_widest():
    parts = [
        {
            "tokens": np.full((1, 2, width), 7),
            "mask": np.ones((1, 2, width), bool),
            "lengths": np.full((1, 2), width),
        }
        for width in (2, 3)
    ]
    stacked = stack_batches(parts)
    np.testing.assert_array_equal(stacked["tokens"][0, 0, 0], [7, 7, 0])
    np.testing.assert_array_equal(stacked["mask"][:, 0, 0], [[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(stacked["lengths"][:, 0, 0], [2, 3])


def test_questions_of_different_sizes_are_named():
    parts = [{"tokens": np.zeros((2, g, 4), np.int32)} for g in (3, 4)]
    with pytest.raises(DataError, match="same number of candidates; found 3 and 4"):
        stack_batches(parts)


@pytest.mark.slow
def test_a_killed_and_resumed_run_gives_the_same_bits(configs, tmp_path, monkeypatch):
    def make(output, **run):
        config = configs.reward(output, ensemble=THREE, head=HeadConfig(dropout=0.1))
        return replace(config, run=replace(config.run, **run))

    whole = train_reward(make(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        # Between the second and the third member's batch of step 4; the newest checkpoint is that of step 2.
        at_read(patch, 3 * 3 + 2, kill)
        with pytest.raises(Killed):
            train_reward(make(tmp_path / "parts"))
    assert not (tmp_path / "parts" / "export").exists()
    train_reward(make(tmp_path / "parts", resume=True))
    assert numbers(tmp_path / "parts") == numbers(whole.folder)
    for ours, theirs in zip(member_tensors(tmp_path / "parts"), member_tensors(whole.folder), strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


# --- what is measured -------------------------------------------------------------------------


def test_held_out_metrics_by_hand():
    # Two members, three pairs: (chosen, rejected). Each member's six scores have mean 0 and variance 1.
    scores = np.asarray([[[1, -1], [1, -1], [1, -1]], [[1, -1], [-1, 1], [1, -1]]], np.float32)
    count = np.full(2, 3.0)
    found = HeldOut(4 * scores + 7, np.zeros(3, int), {"loss": np.asarray([[3.0, 6.0], count])})
    gain, bias = found.normalizer()
    np.testing.assert_allclose(gain, [1 / 4, 1 / 4])
    np.testing.assert_allclose(bias, [-7 / 4, -7 / 4])
    metrics = found.metrics(normalize=True)
    # The second pair is a tie of the mean: half right.
    assert metrics["accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]
    assert metrics["margin"] == pytest.approx((2 + 0 + 2) / 3)
    assert metrics["disagreement"] == pytest.approx((0 + 1 + 0) / 3)
    assert [metrics[f"member-{k}/accuracy"] for k in range(2)] == pytest.approx([1, 2 / 3])
    assert [metrics[f"member-{k}/margin"] for k in range(2)] == pytest.approx([2, (2 - 2 + 2) / 3])
    assert metrics["member_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["loss"] == pytest.approx((1 + 2) / 2)
    assert found.metrics(normalize=False)["disagreement"] == pytest.approx(4 / 3)


def test_the_best_of_several_is_held_against_the_largest_other():
    scores = np.asarray([[[0.0, 3.0, 1.0], [2.0, 0.0, 5.0]]])
    metrics = HeldOut(scores, np.asarray([1, 0]), {"loss": np.ones((2, 1))}).metrics(normalize=False)
    assert metrics["accuracy"] == 0.5
    assert metrics["margin"] == pytest.approx(((3 - 1) + (2 - 5)) / 2)


@pytest.mark.long
def test_an_ensemble_learns_and_its_members_do_too(ensemble):
    config, result = ensemble
    first = next(row for row in records.read(result.folder / "metrics.jsonl") if "eval/accuracy" in row)
    assert first["eval/accuracy"] < 0.9
    assert result.metrics["eval/accuracy"] == 1.0
    assert min(result.metrics[f"eval/member-{k}/accuracy"] for k in range(3)) == 1.0
    assert 0 < result.metrics["eval/disagreement"] < first["eval/disagreement"]
    rows = rows_of(config, result.tokenizer)
    for k, member in enumerate(models.load_reward_ensemble(result.folder / "export")):
        scores = ModelReward(member).score_rows(rows)
        assert scores.mean() == pytest.approx(0, abs=1e-4)
        assert scores.std() == pytest.approx(1, abs=1e-3)
        alone = models.load_reward_model(result.folder / "export" / f"member-{k}")
        np.testing.assert_array_equal(ModelReward(alone).score_rows(rows), scores)
        np.testing.assert_allclose(ModelReward(result.model[k]).score_rows(rows), scores, atol=1e-5)


@pytest.mark.long
def test_heads_learn_while_their_trunk_stays_as_it_was(configs, tmp_path):
    config = configs.reward(
        tmp_path / "run",
        ensemble=EnsembleConfig(size=3, members="heads"),
        train=TrainConfig(batch_size=8, steps=24),
        optimizer=replace(configs.optimizer, learning_rate=0.1),
    )
    result = train_reward(config)
    assert result.metrics["eval/accuracy"] > 0.9
    trunk = load_file(f"{config.model.path}/model.safetensors")
    members = member_tensors(result.folder)
    for tensors in members:
        for name in set(trunk) & set(tensors):
            np.testing.assert_array_equal(tensors[name], trunk[name], err_msg=name)
    assert not np.allclose(members[0]["score.weight"], members[1]["score.weight"], atol=1e-3)


# --- in use -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_grpo_learns_against_the_mean_less_the_doubt(ensemble, configs, tmp_path):
    ppo = configs.ppo(tmp_path / "run")
    config = GRPOConfig(
        run=ppo.run,
        model=ppo.model,
        data=ppo.data,
        reward=RewardSource(
            model=str(ensemble[1].folder), aggregate="mean_minus_std", aggregate_coefficient=0.5
        ),
        sampling=SamplingConfig(max_new_tokens=6, num_samples=4),
        train=GRPOTrainConfig(updates=24, prompts=8, minibatches=2, score_batch_size=32),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant"),
        loss=GRPOLossConfig(beta=0.01),
    )
    train_grpo(config)
    rows = list(records.read(tmp_path / "run" / "metrics.jsonl"))
    for row in rows:
        mean = np.mean([row[f"reward/model/member-{k}"] for k in range(3)])
        doubt = row["reward/model/disagreement"]
        assert doubt > 0
        assert row["objective/score"] == pytest.approx(mean - 0.5 * doubt, abs=1e-4)
    assert rows[-1]["objective/score"] > rows[0]["objective/score"] + 0.2


@pytest.mark.slow
def test_ppo_takes_several_folders_and_a_critic_from_the_first(ensemble, configs, tmp_path):
    plain = configs.ppo(tmp_path / "run")
    folders = tuple(str(ensemble[1].folder / "export" / f"member-{k}") for k in range(2))
    train_ppo(
        replace(
            plain,
            reward=RewardSource(models=folders, aggregate="worst"),
            critic=replace(plain.critic, init="reward"),
        )
    )
    for row in records.read(tmp_path / "run" / "metrics.jsonl"):
        assert row["objective/score"] <= min(row[f"reward/model/member-{k}"] for k in range(2)) + 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "ensemble.size must be 1 or more, got 0"),
        ({"members": "heads"}, "ensemble.members=heads needs ensemble.size of 2 or more, got 1"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        EnsembleConfig(**changes)


def test_heads_with_adapters_are_refused(configs, tmp_path):
    with pytest.raises(ValueError, match=r"ensemble\.members=heads and lora\.enabled: choose one"):
        configs.reward(
            tmp_path, ensemble=EnsembleConfig(size=2, members="heads"), lora=LoraConfig(enabled=True)
        )
