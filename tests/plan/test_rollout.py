"""A plan compiles the programs that a rollout runs: the same shapes in the same places, and the bytes of a sampler."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.lora import LoraConfig
from jaxalign.plan.report import decoding_speed
from jaxalign.plan.rollout import Sampled, rollout_of, sampled
from jaxalign.plan.steps import step_of
from jaxalign.plan.targets import Target
from jaxalign.rollout import Sampler, continuous_batching, decode
from jaxalign.rollout.decode import RowSampling
from jaxalign.training.core import setup
from jaxalign.training.core.generator import Generator
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.on_policy_config import RolloutConfig
from jaxalign.training.rl.online_dpo import train_online_dpo
from jaxalign.training.rl.ppo import train_ppo
from tests.plan.test_steps import NF4, Seen, grpo, online_dpo

INT8 = RolloutConfig(weights="int8", cache="int8")
ONE, TWO = MeshConfig(), MeshConfig(fsdp=2)
LORA = LoraConfig(enabled=True, rank=2)


def int8_grpo(configs, output):
    config = grpo(configs, output)
    return replace(config, rollout=INT8, loss=replace(config.loss, importance_cap=2.0))


CASES = {
    "grpo": (train_grpo, grpo, TWO),
    "grpo, LoRA": (train_grpo, lambda configs, output: grpo(configs, output, lora=LORA), TWO),
    "grpo, int8": (train_grpo, int8_grpo, TWO),
    "online-dpo": (train_online_dpo, online_dpo, ONE),
    "ppo": (train_ppo, lambda configs, output: configs.ppo(output), MeshConfig(tensor=2)),
}


def described(tree):
    """Path -> (shape, dtype, what a device has of it), of every leaf; a host array is whole."""
    return {
        jax.tree_util.keystr(path): (
            np.shape(x),
            str(x.dtype),
            x.sharding.shard_shape(x.shape) if hasattr(x, "sharding") else np.shape(x),
        )
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def rollout_for(command, config, devices, tokens):
    mesh = make_mesh(config.mesh, devices)
    step = step_of(command, config, mesh, tokens)
    return rollout_of(config, step.policy, step.trained["policy"], step.frozen["policy"], mesh, tokens)


@pytest.mark.parametrize("case", CASES)
def test_what_prefill_and_decoding_take_is_what_a_run_gives_them(
    case, configs, devices, tmp_path, monkeypatch
):
    train, make, mesh = CASES[case]
    config = replace(make(configs, tmp_path / "run"), mesh=mesh)
    calls = {}

    def watched(name):
        original = getattr(decode, name)

        def call(definition, *arguments, **options):
            calls[name] = (definition, arguments, options)
            if name == "decode_block":
                raise Seen
            return original(definition, *arguments, **options)

        monkeypatch.setattr(decode, name, call)

    for name in ("read_prompts", "decode_weights", "decode_block"):
        watched(name)
    with pytest.raises(Seen):
        train(config)
    monkeypatch.undo()
    longest = int(np.max(calls["read_prompts"][1][3]))
    tokens = longest + config.sampling.max_new_tokens
    rollout = rollout_for(case.partition(",")[0], config, devices, tokens)
    for name, (given, options) in {
        "read_prompts": rollout.reading(),
        "decode_weights": ((None, rollout.params, rollout.adapter), {}),
        # The first block of a run; the shapes of later ones differ in columns alone.
        "decode_block": rollout.decoding(rollout.first),
    }.items():
        definition, arguments, asked = calls[name]
        assert described(given[1:]) == described(arguments), name
        assert options == asked, name
        if name == "decode_block":
            config = definition.config
            assert replace(given[0].config, attention=config.attention, products=config.products) == config


@pytest.mark.parametrize(
    ("lora", "int8"), [(LORA, False), (LORA, True), (NF4, False), (None, True), (None, False)]
)
def test_the_sampler_keeps_the_parameters_that_a_plan_says(lora, int8, configs, devices, tmp_path):
    changes = {} if lora is None else {"lora": lora}
    config = grpo(configs, tmp_path / "run", **changes)
    if int8:
        config = replace(config, rollout=INT8, loss=replace(config.loss, importance_cap=2.0))
    mesh = make_mesh(config.mesh, devices[:1])
    model, tokenizer = setup.load_model(config.model, mesh, seed=0)
    policy, trained, frozen = setup.policy_of(model, config.lora, mesh, key=jax.random.key(0))
    storage = {"weights": config.rollout.weights, "cache": config.rollout.cache}
    generator = Generator(policy, frozen, config.sampling, tokenizer, jax.random.key(0), storage=storage)
    engine = generator.refresh(trained)
    own = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((trained, frozen))}
    kept = sum(x.nbytes for x in jax.tree.leaves(engine.params) if x.unsafe_buffer_pointer() not in own)
    planned = rollout_for("grpo", config, devices, 14).copies
    said = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(planned))
    # An adapter's scale is a number a layer and target.
    assert said <= kept <= said + 200
    assert bool(said) == (int8 or lora is LORA)


@pytest.mark.parametrize("mesh", [ONE, TWO])
def test_bytes_of_weights_and_cache_are_those_that_the_sampler_tells(mesh, configs, devices, tmp_path):
    config = replace(grpo(configs, tmp_path / "run"), mesh=mesh)
    config = replace(config, model=replace(config.model, compute_dtype="bfloat16"))
    found = sampled(rollout_for("grpo", config, devices, 32), Target("cpu", 2))
    on = make_mesh(mesh, devices)
    model, _ = setup.load_model(config.model, on, seed=0)
    told = Sampler(model).decoding_bytes(8, 26, max_new_tokens=6, num_samples=2)
    assert (found.cache, found.weights) == told
    assert found.own == 0
    assert found.most >= found.stages["decoding"] > found.cache + found.weights
    # Each group of devices has all weights: a token needs nothing of another.
    assert found.token == []


def test_a_table_of_embeddings_that_is_not_the_head_is_not_read(configs, devices, tmp_path):
    config = grpo(configs, tmp_path / "run")
    rollout = rollout_for("grpo", config, devices, 14)
    shape = rollout.definition.config
    assert shape.tied_head
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(rollout.weights()))
    assert rollout.read() == whole
    # With a head of its own as large as the table, as much is read.
    untied = models.Definition(replace(shape, tied_head=False))
    params = dict(rollout.params) | {"head": {"weight": rollout.params["embed"]["tokens"]}}
    assert replace(rollout, definition=untied, params=params).read() == whole


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("prompts", "copies", "length"),
    [(1, 1, 5), (7, 3, 5), (8, 2, 5), (40, 8, 5), (9, 1, 7000), (64, 4, 1000)],
)
def test_the_first_prompts_are_as_many_as_are_read(prompts, copies, length, groups, monkeypatch):
    total = prompts * copies
    job = continuous_batching.Job(
        definition=SimpleNamespace(config=SimpleNamespace(mesh=None, max_positions=8192)),
        params=None,
        adapter=None,
        prompts=[[1] * length] * prompts,
        copies=copies,
        new_tokens=4,
        draws=RowSampling(*[np.zeros(total, np.float32)] * 5),
        stops=np.zeros(1, np.int32),
        key=jax.random.key(0),
        features=None,
        max_rows=64,
        block=4,
    )

    def read(definition, params, adapter, tokens, *rest, **options):
        raise Seen(tokens.shape)

    monkeypatch.setattr(decode, "read_prompts", read)
    monkeypatch.setattr(continuous_batching, "row_shards", lambda mesh, rules: groups)
    monkeypatch.setattr(continuous_batching.sharding, "mesh_of", lambda config: SimpleNamespace())
    monkeypatch.setattr(continuous_batching.sharding, "by_rows", lambda tree, mesh: tree)
    slots = continuous_batching._Slots(job)
    with pytest.raises(Seen) as seen:
        slots.admit()
    rows, width = seen.value.args[0]
    assert rows == continuous_batching.prompts_read(prompts, copies, len(slots.alive), width, groups)


def test_a_row_without_room_for_a_prompt_is_refused(configs, devices, tmp_path):
    config = grpo(configs, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"tokens=6: sampling.max_new_tokens=6 leaves no room"):
        rollout_for("grpo", config, devices, 6)
    with pytest.raises(ConfigError, match=r"tokens=9999: the model's context is \d+"):
        rollout_for("grpo", config, devices, 9999)


def told(**changes):
    rollout = SimpleNamespace(slots=4, completions=10, new_tokens=100, rounds=3)
    fields = {"rollout": rollout, "own": 0, "weights": 0, "read": int(3e9), "cache": int(350e6), "stages": {}}
    found = Sampled(**(fields | {"prompts": [], "token": [], "seconds": 0.0} | changes))
    return list(decoding_speed(found, Target("h100", 1), "NVIDIA H100 80GB HBM3"))


def test_a_tokens_time_is_what_its_bytes_take_at_the_memorys_bandwidth():
    lines = told()
    assert lines[1] == "  at 3,350 GB/s: 1 ms (an estimate, not measured)"
    # Three times the slots are filled, for 100 tokens each.
    assert lines[2].startswith("  10 completions of 100 tokens: 0.3 s (an estimate, not measured")
    assert told(read=int(6.35e9))[1].startswith("  at 3,350 GB/s: 2 ms")
