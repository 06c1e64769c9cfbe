"""Packed rows, and heads on counted tokens alone, give what padded rows give: loss, gradients, metrics."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import models
from jaxalign.data import Example, collate_demonstrations, eval_batches
from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.models.lora import LoraConfig
from jaxalign.training.core import loading, setup
from jaxalign.training.core.batch import TokenBatch, TokenRows, valid_count
from jaxalign.training.core.scoring import score_tokens
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_evaluation, make_update
from jaxalign.training.preference.dpo import DPOLossConfig, train_dpo
from jaxalign.training.preference.objectives import PreferenceBatch, scored_rows
from jaxalign.training.reward_model.ensemble import EnsembleConfig
from jaxalign.training.reward_model.trainer import PairBatch, RewardLossConfig, make_reward_loss, train_reward
from jaxalign.training.rl.grpo_config import GRPOLossConfig
from jaxalign.training.rl.grpo_step import GRPOBatch, make_grpo_loss
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import CriticConfig
from jaxalign.training.rl.rollout_metrics import rollout_counts
from jaxalign.training.sft import DemonstrationBatch, train_sft
from tests.training.cases import (
    KEY,
    distill_case,
    dpo_case,
    online_dpo_case,
    ppo_case,
    preference_parts,
    rows,
    sft_case,
    shape,
    step_case,
    tfpo_case,
)
from tests.training.test_resume import Killed, assert_same_run, at_step, kill

WIDTH = 12


def reward_case(mesh):
    scalar = models.create_scalar_model(models.create(shape(), key=KEY), key=KEY)
    policy, trained, frozen = setup.scalar_of(scalar, None, mesh, key=KEY)
    batch = rows(8, 2) | {"margin": np.zeros(8, np.float32)}
    return make_reward_loss(policy, RewardLossConfig()), valid_count, trained, frozen, PairBatch.of(batch)


def grpo_case(mesh):
    policy, trained, frozen = setup.policy_of(models.create(shape(), key=KEY), LoraConfig(), mesh, key=KEY)
    config = GRPOLossConfig(beta=0.1, entropy_weight=0.01)
    batch, rng = rows(8), np.random.default_rng(1)
    for name in ("old_logps", "ref_logps", "advantages"):
        batch[name] = np.where(batch["mask"], rng.standard_normal((8, WIDTH)), 0).astype(np.float32)
    batch |= {"old_logps": batch["old_logps"] - 4, "weights": np.ones((8, WIDTH), np.float32)}
    return (
        make_grpo_loss(policy, config, 0.7, WIDTH),
        rollout_counts,
        {"policy": trained},
        {"policy": frozen},
        GRPOBatch.of(batch),
    )


CASES = {
    "sft": sft_case,
    "distill": distill_case,
    "reward": reward_case,
    "dpo": dpo_case,
    "kto": functools.partial(dpo_case, config=DPOLossConfig(name="kto")),
    "steps": step_case,
    "tfpo": tfpo_case,
    "ppo": ppo_case,
    "grpo": grpo_case,
    "online_dpo": online_dpo_case,
}
SCALAR = ("reward", "steps")  # without a vocabulary head
SLOW = ("distill", "kto", "steps", "online_dpo", "tfpo")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]


def with_lengths(batch, seed=3):
    """Other lengths: of one token, of all columns, and between; some tokens counted at random."""
    rng, result = np.random.default_rng(seed), dict(batch)
    for prefix in ("", "kl_"):
        if prefix + "tokens" not in batch:
            continue
        lengths = rng.integers(1, WIDTH + 1, batch[prefix + "lengths"].shape).astype(np.int32)
        lengths.flat[:3] = 1, WIDTH, WIDTH
        columns = np.arange(WIDTH)
        result[prefix + "lengths"] = lengths
        chance = rng.random(batch[prefix + "mask"].shape) < 0.5
        # Always the second token: what fills up the heads of counted tokens must not stand for it.
        result[prefix + "mask"] = (columns >= 1) & (columns < lengths[..., None]) & (chance | (columns == 1))
    for name in ("labels", "old_logps", "old_values", "advantages", "returns"):
        if name in batch:
            result[name] = np.where(result["mask"], batch[name], 0)
    return result


PLAIN, HEADS, PACKED = "plain", "heads", "packed"


def placed_on(mesh, kind, columns, layout, *, parts=1, head=True):
    """The batch on the mesh: padded, the same with its heads, or packed."""
    if layout == PLAIN:
        return shard_batch(kind.of(columns), mesh)
    batch = setup.on_mesh(columns, kind, mesh, packing=layout == PACKED, num_microbatches=parts, head=head)
    assert (batch.packing.flat_indices is not None) == (layout == PACKED)
    assert (batch.packing.loss_positions is not None) == head
    return batch


def results(name, mesh, layout, *, parts=1):
    """Loss, metrics and gradient of a step (read off its plain gradient descent)."""
    loss, counts, trained, frozen, batch = CASES[name](mesh)
    columns = with_lengths(batch.columns())
    sgd = optax.sgd(1.0)
    before = jax.tree.map(np.asarray, trained)
    update = make_update(loss, counts, sgd, accumulation_steps=parts)
    placed = placed_on(mesh, type(batch), columns, layout, parts=parts, head=name not in SCALAR)
    state, metrics = update(create_state(jax.tree.map(jnp.copy, trained), sgd), frozen, placed, KEY)
    gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)
    return jax.device_get(metrics), gradient


def assert_equal(found, expected, *, tolerance=1e-5):
    (metrics, gradient), (expected_metrics, expected_gradient) = found, expected
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=5 * tolerance, atol=tolerance, err_msg=name)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(expected_gradient)))
    assert norm > 1e-3
    for a, b in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(norm, 1))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_packed_rows_give_the_loss_metrics_and_gradient_of_padded_rows(name, devices):
    mesh = make_mesh(MeshConfig(), devices[:1])
    assert_equal(results(name, mesh, PACKED), results(name, mesh, PLAIN))


HEADED = [
    pytest.param(name, parts, shards, marks=[] if quick else pytest.mark.slow)
    for name, parts, shards, quick in (
        ("sft", 1, 1, True),
        ("sft", 1, 8, False),
        ("sft", 2, 8, True),  # four rows a micro-batch, which eight devices cannot share
        ("sft", 2, 2, True),
        ("dpo", 1, 1, False),
        ("dpo", 4, 2, False),
        ("kto", 1, 1, False),
        ("tfpo", 2, 2, False),
        ("ppo", 2, 1, True),
        ("grpo", 1, 1, False),
        ("online_dpo", 1, 1, False),
    )
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "parts", "shards"), HEADED)
def test_heads_on_counted_tokens_give_the_loss_metrics_and_gradient_of_heads_on_all(
    name, parts, shards, devices
):
    one, several = make_mesh(MeshConfig(), devices[:1]), make_mesh(MeshConfig(data=shards), devices[:shards])
    assert_equal(results(name, several, HEADS, parts=parts), results(name, one, PLAIN))


@pytest.mark.slow
def test_mismatched_rows_have_a_packing_of_their_own(devices):
    mesh, config = make_mesh(MeshConfig(), devices[:1]), DPOLossConfig(name="kto")
    policy, definition, trained, frozen, batch = preference_parts(mesh, config)
    columns = with_lengths(batch.columns())
    placed = [placed_on(mesh, PreferenceBatch, columns, layout) for layout in (PLAIN, HEADS, PACKED)]
    ratios = [
        scored_rows(policy, definition, config, trained, frozen, each, None)[0].kl_ratio for each in placed
    ]
    assert np.abs(ratios[0]).max() > 0.01
    for found in ratios[1:]:
        np.testing.assert_allclose(found, ratios[0], atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", pytest.param("reward", marks=pytest.mark.slow)])
def test_in_bfloat16_they_do_to_its_rounding(name, devices, monkeypatch):
    monkeypatch.setattr(models, "create", functools.partial(models.create, compute_dtype=jnp.bfloat16))
    mesh = make_mesh(MeshConfig(), devices[:1])
    assert_equal(results(name, mesh, PACKED), results(name, mesh, PLAIN), tolerance=5e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["dpo", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sft", "reward", "ppo"))]
)
def test_micro_batches_of_packed_rows_add_up(name, devices):
    mesh = make_mesh(MeshConfig(), devices[:1])
    assert_equal(results(name, mesh, PACKED, parts=4), results(name, mesh, PLAIN))


@pytest.mark.parametrize(
    "name", ["sft", *(pytest.param(n, marks=pytest.mark.slow) for n in ("reward", "dpo", "ppo"))]
)
def test_packed_rows_on_eight_devices_equal_one(name, devices):
    one, eight = make_mesh(MeshConfig(), devices[:1]), make_mesh(MeshConfig(data=4, fsdp=2), devices)
    assert_equal(results(name, eight, PACKED, parts=2), results(name, one, PLAIN))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("sft", PACKED),
        ("ppo", HEADS),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("dpo", PACKED), ("sft", HEADS), ("reward", PACKED))
        ),
    ],
)
def test_devices_that_share_the_tokens_of_a_row_give_what_one_gives(name, layout, devices):
    one, eight = make_mesh(MeshConfig(), devices[:1]), make_mesh(MeshConfig(fsdp=2, context=4), devices)
    parts = 2 if layout == PACKED else 1
    assert_equal(results(name, eight, layout, parts=parts), results(name, one, PLAIN))


@pytest.mark.long
def test_a_value_head_on_the_policys_trunk_reads_packed_rows_too(devices):
    """The hidden states of packed rows are those of the padded ones, at every token."""
    model = models.create(shape(), key=KEY)
    batch = with_lengths(rows(8))
    mesh = make_mesh(MeshConfig(), devices[:1])
    inside = (np.arange(WIDTH) < batch["lengths"][:, None]) & batch["valid"][:, None]
    padded = score_tokens(model, placed_on(mesh, TokenBatch, batch, PLAIN))
    for layout in (HEADS, PACKED):
        found = score_tokens(model, placed_on(mesh, TokenBatch, batch, layout))
        np.testing.assert_allclose(found.hidden[inside], padded.hidden[inside], atol=1e-5)


VARIANTS = {
    "rope": {},
    "learned positions": {"positions": "learned"},
    "sliding windows": {"sliding_window": 4, "sliding_layers": (True, False)},
}


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [pytest.param(v, id=k, marks=[pytest.mark.slow] * (k == "sliding windows")) for k, v in VARIANTS.items()],
)
def test_other_rows_of_a_packed_row_change_nothing_bit_for_bit(changes, devices):
    model = models.create(replace(shape(), **changes), key=KEY)
    lengths = np.asarray([5, 3, 4, 12, 1, 7], np.int32)
    columns, rng = np.arange(WIDTH), np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 64, (6, WIDTH)).astype(np.int32),
        "lengths": lengths,
        "mask": (columns > 0) & (columns < lengths[:, None]),
    }
    mesh = make_mesh(MeshConfig(), devices[:1])
    packed, padded = (placed_on(mesh, TokenRows, batch, layout) for layout in (PACKED, PLAIN))
    assert packed.packing.flat_indices.shape[0] == 3  # 12; 7 + 5; 4 + 3 + 1
    score = jax.jit(lambda tokens: score_tokens(model, replace(packed, tokens=tokens)).logps)
    plain = score_tokens(model, padded).logps
    before = np.asarray(score(jnp.asarray(batch["tokens"])))
    np.testing.assert_allclose(before, plain, atol=2e-5)
    for changed in range(6):
        tokens = batch["tokens"].copy()
        tokens[changed] = (tokens[changed] + 1) % 64
        after = np.asarray(score(jnp.asarray(tokens)))
        others = np.arange(6) != changed
        np.testing.assert_array_equal(after[others], before[others])
        assert lengths[changed] == 1 or (after[changed] != before[changed]).any()


@pytest.mark.long
def test_each_shape_is_compiled_once(devices, compiled):
    """An epoch of long-tailed lengths, twice: whatever comes back is not compiled again, padded or packed."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(2.3, 0.6, 120), 3, 60).astype(int)
    examples = [
        Example((tuple(rng.integers(1, 64, n).tolist()),), ((False, False, *[True] * (n - 2)),), (), "")
        for n in lengths
    ]
    mesh = make_mesh(MeshConfig(), devices[:1])
    loss, counts, trained, frozen, _ = sft_case(mesh)
    evaluate = make_evaluation(loss, counts)
    for packing, most in ((False, 6), (True, 12)):
        collate = loading.collate_of(collate_demonstrations, examples, packing=packing)
        shapes: set[tuple] = set()
        for _ in range(2):
            for batch in eval_batches(examples, 8, collate):
                placed = setup.on_mesh(batch, DemonstrationBatch, mesh, packing=packing)
                shape_of = tuple(x.shape for x in jax.tree.leaves(placed))
                compiled.clear()
                jax.block_until_ready(evaluate(trained, frozen, placed))
                assert bool(compiled) == (shape_of not in shapes)
                shapes.add(shape_of)
        assert 1 < len(shapes) <= most


RUNS = {
    "sft": (train_sft, {}),
    "reward": (train_reward, {}),
    "steps": (train_reward, {}),
    "dpo": (train_dpo, {"reference_logps": "precomputed"}),
    "ppo": (train_ppo, {"critic": CriticConfig(shared_trunk=True)}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", [n if n == "sft" else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_a_run_with_packed_rows_ends_where_one_with_padded_rows_does(name, configs, tmp_path):
    train, more = RUNS[name]
    found = {}
    for packing in (False, True):
        config = getattr(configs, name)(tmp_path / str(packing), **more)
        config = replace(config, train=replace(config.train, packing=packing))
        found[packing] = train(config).metrics
    timeless = {k: v for k, v in found[False].items() if not k.startswith("time/")}
    assert found[True].keys() == found[False].keys()
    for metric, value in timeless.items():
        np.testing.assert_allclose(found[True][metric], value, rtol=2e-3, atol=2e-4, err_msg=metric)


@pytest.mark.slow
def test_a_resumed_run_with_packed_rows_is_the_same_bit_for_bit(configs, tmp_path, monkeypatch):
    def config(name):
        made = configs.sft(tmp_path / name)
        return replace(made, train=replace(made.train, packing=True, accumulation_steps=2))

    train_sft(config("whole"))
    with monkeypatch.context() as patch:
        at_step(patch, "sft", 4, kill)
        with pytest.raises(Killed):
            train_sft(config("stopped"))
    stopped = config("stopped")
    train_sft(replace(stopped, run=replace(stopped.run, resume=True)))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_an_ensemble_of_packed_rows_ends_where_one_of_padded_rows_does(configs, tmp_path):
    found = []
    for packing in (False, True):
        config = configs.reward(tmp_path / str(packing), ensemble=EnsembleConfig(size=2))
        train = replace(config.train, packing=packing, accumulation_steps=2)
        found.append(train_reward(replace(config, train=train)).metrics)
    for metric in ("eval/loss", "eval/accuracy", "eval/margin", "eval/disagreement", "train/grad_norm"):
        np.testing.assert_allclose(found[1][metric], found[0][metric], rtol=2e-3, atol=2e-4, err_msg=metric)
