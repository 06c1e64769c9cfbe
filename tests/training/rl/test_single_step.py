"""The loss of a rollout's only step is that of a rollout scored before it, also where the user's own loss is called."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.models.lora import LoraConfig
from jaxalign.training.core import setup
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.rl.gae_inputs import RolloutScores, advantages_of
from jaxalign.training.rl.grpo_config import GRPOLossConfig
from jaxalign.training.rl.grpo_step import (
    GRPOBatch,
    GRPORollout,
    make_grpo_loss,
    make_single_step_grpo_loss,
)
from jaxalign.training.rl.kl_controller import KLConfig
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.on_policy_config import RolloutConfig, RolloutTrainConfig
from jaxalign.training.rl.ppo_config import PPOLossConfig
from jaxalign.training.rl.ppo_step import PPOBatch, make_ppo_loss, make_single_step_ppo_loss
from jaxalign.training.rl.rollout_metrics import rollout_counts
from tests.training.cases import KEY, ppo_alone_case, ppo_models, rows, shape

HEAT = 0.7


def own(logps, old_logps, advantages, mask):
    """A policy loss that stops no gradient by itself."""
    return jnp.where(mask, -jnp.exp(logps - old_logps) * advantages, 0.0)


def gradient(loss, params, frozen, batch):
    return jax.grad(lambda p: loss(p, frozen, batch, None, rollout_counts(batch))[0])(params)


def assert_same(found, expected):
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(expected)))
    assert norm > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * norm), found, expected)


def grpo_rollout(mesh):
    """(policy, trained and frozen leaves, rollout) of a tiny model."""
    policy, trained, frozen = setup.policy_of(models.create(shape(), key=KEY), LoraConfig(), mesh, key=KEY)
    rng = np.random.default_rng(1)
    drawn = {
        name: rng.standard_normal((8, 12)).astype(np.float32) for name in ("advantages", "sampler_logps")
    }
    columns = rows(8)
    # Outside the mask, where the policy's are 0, nothing may read these.
    drawn["sampler_logps"] = np.where(columns["mask"], drawn["sampler_logps"], 99.0).astype(np.float32)
    return policy, trained, frozen, shard_batch(GRPORollout.of(columns | drawn), mesh)


def test_the_gap_to_the_sampler_is_over_the_tokens_of_the_mask(devices):
    policy, trained, frozen, rollout = grpo_rollout(make_mesh(MeshConfig(), devices[:1]))
    loss = make_single_step_grpo_loss(policy, GRPOLossConfig(), HEAT, 12)
    leaves = {"policy": trained}, {"policy": frozen}
    _, metrics = loss(*leaves, rollout, None, rollout_counts(rollout))
    logps = policy.score(trained, frozen, rollout, temperature=HEAT).logps
    gaps = np.abs(np.asarray(logps) - rollout.sampler_logps)
    inside = gaps[np.asarray(rollout.mask)]
    np.testing.assert_allclose(metrics["rollout/logp_gap_max"][0], inside.max(), rtol=1e-5)
    total, count = metrics["rollout/logp_gap_mean"]
    np.testing.assert_allclose(total / count, inside.mean(), rtol=1e-5)
    assert inside.size == count < gaps.size


@pytest.mark.parametrize("checked", [False, True])
def test_the_step_checks_the_gap_unless_that_was_done_before(checked):
    seen = []
    trainer = SimpleNamespace(
        passes=lambda *_: {"policy/steps": 1.0, "rollout/logp_gap_max": 0.3},
        check_gaps=lambda number, gaps: seen.append((number, gaps["rollout/logp_gap"])),
    )
    metrics = OnPolicyTrainer.single_step(trainer, 3, None, None, checked=checked)
    assert metrics == {"policy/steps": 1.0, "rollout/logp_gap": 0.3}
    assert seen == ([] if checked else [(3, 0.3)])


@pytest.mark.long
@pytest.mark.parametrize("loss", [None, own], ids=["grpo", "own"])
def test_grpo_takes_the_gradient_of_a_rollout_scored_before(loss, devices):
    policy, trained, frozen, rollout = grpo_rollout(make_mesh(MeshConfig(), devices[:1]))
    old = policy.score(trained, frozen, rollout, temperature=HEAT).logps
    weights = jnp.ones_like(old)
    scored = GRPOBatch.of(rollout.columns() | {"old_logps": old, "weights": weights})
    arguments = policy, GRPOLossConfig(), HEAT, 12, loss
    found, expected = (
        gradient(make(*arguments), {"policy": trained}, {"policy": frozen}, batch)
        for make, batch in ((make_single_step_grpo_loss, rollout), (make_grpo_loss, scored))
    )
    assert_same(found, expected)


@pytest.mark.long
@pytest.mark.parametrize("loss", [None, own], ids=["ppo", "own"])
def test_ppo_takes_the_gradient_of_a_rollout_scored_before(loss, devices):
    mesh = make_mesh(MeshConfig(), devices[:1])
    parts, rollout = ppo_models(mesh), shard_batch(ppo_alone_case(mesh)[-1], mesh)
    config = PPOLossConfig(bootstrap_truncated=True)
    make_advantages = functools.partial(advantages_of, kl=KLConfig(), loss=config, whiten_rewards=True)
    scores, values, after = parts.models.score(parts.trained, parts.frozen, rollout, temperature=HEAT)
    known = RolloutScores(
        logps=scores.logps,
        ref_logps=rollout.ref_logps,
        values=values,
        entropy=scores.entropy,
        next_values=after,
    )
    advantages, returns, _ = make_advantages(known, rollout.mask, rollout.outcome, rollout.coefficient[0])
    scored = PPOBatch.of(
        dataclasses.asdict(rollout)
        | {"old_logps": scores.logps, "old_values": values, "advantages": advantages, "returns": returns}
        | {"weights": jnp.ones_like(values)}
    )
    single = make_single_step_ppo_loss(parts.models, config, HEAT, make_advantages, loss)
    found = gradient(single, parts.trained, parts.frozen, rollout)
    expected = gradient(make_ppo_loss(parts.models, config, HEAT, loss), parts.trained, parts.frozen, scored)
    assert_same(found, expected)


def test_sampler_and_trainer_may_differ_as_the_policys_own_dtype_makes_them():
    """A live policy's too, whatever the configuration says of other models."""

    def check(dtype, mean, products="compute_dtype"):
        config = SimpleNamespace(rollout=RolloutConfig(), train=RolloutTrainConfig(), model=ModelSource())
        definition = models.Definition(dataclasses.replace(shape(), compute_dtype=dtype, products=products))
        trainer = SimpleNamespace(config=config, policy=CausalPolicy(definition))
        OnPolicyTrainer.check_gaps(trainer, 1, {"rollout/logp_gap": 10 * mean, "rollout/logp_gap_mean": mean})

    check("bfloat16", 0.09)
    with pytest.raises(
        UserError,
        match=r"0\.11 nats in the mean.*logp_tolerance = 0\.1; .*or set model\.compute_dtype=float32$",
    ):
        check("bfloat16", 0.11)
    for dtype, products in (("float32", "auto"), ("bfloat16", "float32")):
        check(dtype, 1e-5, products)
        with pytest.raises(
            UserError,
            match=r"0\.04 nats, more than train\.logp_tolerance = 0\.001; the update would not be on-policy$",
        ):
            check(dtype, 0.004, products)
