"""A plan compiles the step that a run takes: the same shapes in the same places."""

from dataclasses import replace

import jax
import pytest

from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.lora import LoraConfig
from jaxalign.plan.steps import planned, step_of
from jaxalign.training.core.step import Update
from jaxalign.training.distill.trainer import DistillConfig, train_distill
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.reward_model.trainer import train_reward
from jaxalign.training.rl.grpo import GRPOConfig, train_grpo
from jaxalign.training.rl.online_dpo import OnlineDPOConfig, train_online_dpo
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.sft import train_sft


class Seen(Exception):
    """Ends a run before its first step."""


def grpo(configs, output, **changes):
    base = configs.ppo(output)
    shared = {name: getattr(base, name) for name in ("run", "model", "data", "sampling", "reward", "mesh")}
    config = GRPOConfig(**shared)
    train = replace(config.train, prompts=4, minibatches=1, updates=1)
    return replace(config, train=train, loss=replace(config.loss, beta=0.1), **changes)


NF4 = LoraConfig(enabled=True, rank=2, base_weights="nf4")


def online_dpo(configs, output):
    base = configs.ppo(output)
    shared = {name: getattr(base, name) for name in ("run", "model", "data", "reward", "mesh")}
    train = replace(base.train, prompts=4, minibatches=1, updates=1)
    return OnlineDPOConfig(**shared, sampling=replace(base.sampling, num_samples=2), train=train)


def tfpo(configs, output):
    config = configs.tfpo(output)
    return replace(config, loss=replace(config.loss, preset="tilted", reward_scale=1.0))


def distill(configs, output):
    parts = {
        "model": configs.model,
        "teacher": configs.model,
        "data": configs.data,
        "optimizer": configs.optimizer,
    }
    return DistillConfig(run=configs.run(output), train=configs.train, on_policy=0.0, **parts)


CASES = {
    "sft": (train_sft, lambda configs, output: configs.sft(output)),
    "sft, nf4": (train_sft, lambda configs, output: configs.sft(output, lora=NF4)),
    "reward": (train_reward, lambda configs, output: configs.reward(output)),
    "dpo": (train_dpo, lambda configs, output: configs.dpo(output)),
    "dpo, nf4": (train_dpo, lambda configs, output: configs.dpo(output, lora=NF4)),
    "distill": (train_distill, distill),
    "ppo": (train_ppo, lambda configs, output: configs.ppo(output)),
    "grpo": (train_grpo, grpo),
    "online-dpo": (train_online_dpo, online_dpo),
    "tfpo": (train_tfpo, tfpo),
}


def described(tree):
    """Path -> (shape, dtype, how many parts of each axis a device has), of every leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path): (x.shape, str(x.dtype), x.sharding.shard_shape(x.shape))
        for path, x in leaves
    }


@pytest.mark.long
@pytest.mark.parametrize("command", CASES)
def test_state_frozen_models_and_batch_are_those_of_a_run(command, configs, devices, tmp_path, monkeypatch):
    train, make = CASES[command]
    command = command.partition(",")[0]
    config = replace(make(configs, tmp_path / "run"), mesh=MeshConfig(fsdp=2))
    seen = []

    def first(self, *arguments):
        seen.append(jax.tree.map(lambda x: x, arguments))
        raise Seen

    monkeypatch.setattr(Update, "__call__", first)
    with pytest.raises(Seen):
        train(config)
    state, frozen, batch, _ = seen[0]
    mesh = make_mesh(config.mesh, devices)
    _, (own_state, own_frozen, own_batch, _) = planned(command, config, mesh, batch.tokens.shape[-1])
    assert described(own_state) == described(state)
    assert described(own_frozen) == described(frozen)
    # Which tokens the head reads is the data's; a plan takes all.
    ours, theirs = (
        {path: x for path, x in described(one).items() if "packing" not in path} for one in (own_batch, batch)
    )
    assert ours == theirs


def test_rows_that_a_run_would_refuse_are_refused(configs, devices, tmp_path):
    with pytest.raises(ConfigError, match=r"train.batch_size=4: .* mesh.fsdp = 8 devices"):
        planned("sft", configs.sft(tmp_path / "run"), make_mesh(MeshConfig(fsdp=8), devices), 16)


@pytest.mark.parametrize(
    ("command", "passes"),
    [
        ("sft", [("all", True)]),
        ("reward", [("all", False)]),
        # The policy's and the reference's, of which those of the mismatched rows (KTO) find no columns.
        ("dpo", [("all", True), ("nothing", True), ("nothing", True), ("nothing", True)]),
        ("ppo", [("all", True), ("all", False)]),
        ("grpo", [("all", True)]),
        ("online-dpo", [("all", True)]),
        # The doctor's, and that of what it began as.
        ("tfpo", [("all", True), ("nothing", True)]),
    ],
)
def test_the_flops_of_a_step_are_those_of_its_models(command, passes, configs, devices, tmp_path):
    config = CASES[command][1](configs, tmp_path / "run")
    step = step_of(command, config, make_mesh(config.mesh, devices[:1]), 16)
    assert [(each.learns, each.head) for each in step.passes] == passes
    rows, counted = step.batch.lengths.size, int(step.batch.mask.sum())
    read = [each for each in step.passes if not each.prefix]
    assert step.flops == sum(each.of_rows([16] * rows, counted) for each in read) > 0
