"""Mixtures of experts in every trainer: the router's balance is in the loss that learns, and in the metrics."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.config import Mixture
from jaxalign.training.core import setup
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.step import make_evaluation, make_update
from jaxalign.training.rl.actor_critic import build
from jaxalign.training.rl.grpo_step import GRPOBatch, GRPOLossConfig, make_grpo_loss
from jaxalign.training.rl.ppo_config import CriticConfig, PPOConfig
from jaxalign.training.rl.rollout_metrics import rollout_counts
from tests.training import cases

PLAIN = cases.shape()


def grpo_case(mesh):
    policy, trained, base = setup.policy_of(
        setup.place_model(models.create(cases.shape(), key=cases.KEY), mesh),
        models.LoraConfig(),
        mesh,
        key=cases.KEY,
    )
    batch = cases.rows(8)
    batch["advantages"] = np.where(batch["mask"], 1.0, 0).astype(np.float32)
    batch["old_logps"] = -4.0 * batch["mask"].astype(np.float32)
    batch["weights"] = np.ones((8, 12), np.float32)
    loss = make_grpo_loss(policy, GRPOLossConfig(), 0.7, 12)
    return loss, rollout_counts, {"policy": trained}, {"policy": base}, GRPOBatch.of(batch)


def shared_trunk_case(mesh):
    """PPO whose critic is a head on the policy's trunk."""
    config = PPOConfig(critic=CriticConfig(shared_trunk=True))
    model = setup.place_model(models.create(cases.shape(), key=cases.KEY), mesh)
    parts = build(config, model, lambda *_, **__: [], mesh, key=cases.KEY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "ppo_models", lambda mesh: parts)
        return cases.ppo_case(mesh)


CASES = {
    "ppo": shared_trunk_case,
    "sft": cases.sft_case,
    "dpo": cases.dpo_case,
    "grpo": grpo_case,
    "online-dpo": cases.online_dpo_case,
    "tfpo": cases.tfpo_case,
}


@pytest.fixture
def mixtures(monkeypatch):
    """`mixtures(balance)` makes the cases' models mixtures of four experts."""

    def set_balance(balance):
        experts = Mixture(experts=4, per_token=2, balance=balance)
        monkeypatch.setattr(cases, "shape", lambda: replace(PLAIN, family="mixtral", mixture=experts))

    return set_balance


def stepped(case, steps=1):
    loss, counts, trained, frozen, batch = case(make_mesh(MeshConfig()))
    rule = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), trained, rule.init(trained))
    before = jax.tree.map(np.asarray, trained)
    update = make_update(loss, counts, rule, accumulation_steps=steps)
    state, metrics = update(state, frozen, batch, jax.random.key(0))
    return jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params), metrics


FAST = ("sft",)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [*FAST, *[pytest.param(name, marks=pytest.mark.slow) for name in CASES if name not in FAST]]
)
def test_the_loss_that_learns_has_the_routers_balance_by_its_factor(name, mixtures):
    mixtures(0.0)
    plain, without = stepped(CASES[name])
    mixtures(0.5)
    gradient, metrics = stepped(CASES[name])
    np.testing.assert_allclose(metrics["router_loss"], without["router_loss"], rtol=1e-6)
    assert 1.9 < metrics["router_loss"] < 4
    np.testing.assert_allclose(metrics["loss"] - without["loss"], 0.5 * metrics["router_loss"], rtol=1e-4)
    assert "router_penalty" not in metrics
    mixtures(1.0)
    twice, _ = stepped(CASES[name])
    jax.tree.map(  # linear in its factor
        lambda a, b, c: np.testing.assert_allclose(c - a, 2 * (b - a), atol=2e-5), plain, gradient, twice
    )
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), plain, gradient))
    assert max(moved) > 1e-3


@pytest.mark.long
def test_micro_batches_count_by_their_tokens(mixtures):
    mixtures(0.5)
    _, whole = stepped(cases.sft_case)
    _, parts = stepped(cases.sft_case, steps=4)
    # Of the load within a micro-batch, which is less even than that of all.
    np.testing.assert_allclose(
        parts["loss"] - 0.5 * parts["router_loss"], whole["loss"] - 0.5 * whole["router_loss"], rtol=1e-5
    )
    assert whole["router_loss"] < parts["router_loss"] < 1.2 * whole["router_loss"]


def test_evaluations_report_the_loss_without_the_balance(mixtures):
    found = []
    for balance in (0.0, 0.5):
        mixtures(balance)
        loss, counts, trained, frozen, batch = cases.sft_case(make_mesh(MeshConfig()))
        found.append(make_evaluation(loss, counts)(trained, frozen, batch))
    assert found[0].keys() == found[1].keys() >= {"router_loss", "loss"}
    np.testing.assert_allclose(found[0]["loss"], found[1]["loss"])


def test_scalar_models_refuse_a_balance_that_they_would_leave_out(mixtures):
    mixtures(0.5)
    with pytest.raises(
        ConfigError, match=r"critic that is a mixture of experts .*; set model\.router_loss=0"
    ):
        cases.ppo_case(make_mesh(MeshConfig()))
    with pytest.raises(ConfigError, match=r"^a reward model or critic .* experts"):
        cases.step_case(make_mesh(MeshConfig()))
    mixtures(0.0)
    assert cases.step_case(make_mesh(MeshConfig()))


def test_the_factor_of_a_run(byte_tokenizer, tmp_path, mixtures):
    mixtures(0.25)
    shape = replace(cases.shape(), vocab_size=259)
    folder = models.save_pretrained(
        models.create(shape, key=jax.random.key(0)), tmp_path / "mixture", tokenizer=byte_tokenizer
    )
    mesh, source = make_mesh(MeshConfig()), ModelSource(path=str(folder))
    for given, expected in ((-1.0, 0.25), (0.0, 0.0), (2.0, 2.0)):
        model, _ = setup.load_model(replace(source, router_loss=given), mesh, seed=0)
        assert model.config.mixture.balance == expected
    with pytest.raises(ValueError, match="router_loss must be 0 or more, or -1, got -2"):
        replace(source, router_loss=-2.0)
