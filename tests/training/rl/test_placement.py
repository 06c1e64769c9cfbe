"""Reward models, references and critics on a mesh: each device has its part of the weights and of the rows."""

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.data import ChatFormat
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models import huggingface, reward_folders
from jaxalign.rewards import EnsembleReward, ModelReward, ProcessReward, RewardRequest
from jaxalign.rewards import model as scoring
from jaxalign.training.core import setup
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.reward_source import RewardSource, build_reward
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.rl.actor_critic import build
from jaxalign.training.rl.kl_controller import KLConfig
from jaxalign.training.rl.ppo_config import CriticConfig

# Rows of several lengths, more than one batch of packed rows.
ROWS = [[(7 * i + j) % 250 for j in range(3 + 5 * i % 29)] for i in range(40)]
FSDP = MeshConfig(fsdp=8)


@pytest.fixture(scope="module")
def folders(tiny_model_folder, byte_tokenizer, tmp_path_factory):
    """A reward model, an ensemble, a process reward model and another policy, by name."""
    home = tmp_path_factory.mktemp("scorers")
    base = models.load_pretrained(tiny_model_folder)
    head, steps = models.HeadConfig(init_std=1.0), models.StepConfig(separator=";")

    def scalar(seed, **options):
        trunk = models.create(base.config, key=jax.random.key(seed))
        return models.create_scalar_model(trunk, head, key=jax.random.key(seed), **options)

    models.save_reward_model(scalar(1), home / "one", tokenizer=byte_tokenizer)
    models.save_reward_ensemble([scalar(2), scalar(3)], home / "ensemble")
    models.save_reward_model(scalar(4, steps=steps), home / "process", tokenizer=byte_tokenizer)
    policy = models.create(base.config, key=jax.random.key(5))
    models.save_pretrained(policy, home / "policy", tokenizer=byte_tokenizer)
    return home


@pytest.fixture
def arriving(monkeypatch):
    """Every tree of weights as it comes from a file to the devices."""
    seen = []
    for module in (huggingface, reward_folders):

        def noted(*args, _load=module.to_device, **options):
            seen.append(_load(*args, **options))
            return seen[-1]

        monkeypatch.setattr(module, "to_device", noted)
    return seen


def specs(params):
    return jax.tree.map(lambda x: tuple(x.sharding.spec), params)


def trunks_of(reward):
    """The trunk of each member; of members in one program, their stacked trunk."""
    params = reward._program.params
    return [p["trunk"] for p in params] if isinstance(params, list) else [params["trunk"]]


def scores_of(reward, tokenizer):
    if isinstance(reward, ProcessReward):
        texts = [f"a{i};{'b' * i};c" for i in range(20)]
        ids = [ChatFormat(tokenizer, "plain", ()).continuation_ids(text) for text in texts]
        request = RewardRequest([""] * 20, texts, [[1, 2]] * 20, ids, {}, width=32)
        return reward.score(request).token_rewards
    return reward.score_rows(ROWS)


def nothing(prompts, completions, *, completion_ids, columns):
    return [0.0 for _ in completions]


def source_of(name, home):
    """(section `reward`, live reward) of a way to name a reward model."""
    one, ensemble = home / "one", home / "ensemble"
    if name == "live":
        return RewardSource(), models.load_reward_model(one)
    if name == "live ensemble":
        return RewardSource(), models.load_reward_ensemble(ensemble)
    if name == "live mix":
        return RewardSource(), [models.load_reward_model(one), nothing]
    if name == "several":
        return RewardSource(models=(str(one), str(ensemble / "member-0"))), None
    return RewardSource(model=str(home / name)), None


WAYS = ["one", "ensemble", "several", "process", "live", "live ensemble", "live mix"]


@pytest.mark.long
@pytest.mark.parametrize("name", WAYS)
def test_a_reward_model_has_a_part_on_each_device_and_scores_rows_there(
    name, folders, byte_tokenizer, devices, arriving, monkeypatch
):
    mesh = make_mesh(FSDP, devices)
    policy = models.load_pretrained(folders / "policy", mesh=mesh)
    rows, place = [], scoring.shard_batch

    def noted(batch, mesh):
        rows.append(place(batch, mesh))
        return rows[-1]

    monkeypatch.setattr(scoring, "shard_batch", noted)

    def made(mesh):
        # Five packed rows at once do not divide by eight devices.
        source, live = source_of(name, folders)
        found, _ = build_reward(
            source, live, mesh=mesh, batch_size=5, vocabulary=259, tokenizer=byte_tokenizer
        )
        return found if isinstance(found, (ModelReward, EnsembleReward)) else found.rewards["model"]

    one = scores_of(made(make_mesh(MeshConfig(), devices[:1])), byte_tokenizer)
    assert not rows
    arriving.clear()
    reward = made(mesh)
    np.testing.assert_allclose(scores_of(reward, byte_tokenizer), one, rtol=0, atol=1e-5)
    assert np.std(one) > 0.01

    like = specs({name: leaf for name, leaf in policy.params.items() if name != "head"})
    stacked = isinstance(reward, EnsembleReward)
    for trunk in trunks_of(reward):
        lead = (None,) if stacked else ()
        assert specs(trunk) == jax.tree.map(
            lambda spec, lead=lead: (*lead, *spec), like, is_leaf=lambda x: isinstance(x, tuple)
        )
    assert like["layers"]["up_proj"][1] == "fsdp"
    if not name.startswith("live"):
        for params in arriving:
            assert specs(params["trunk"]) == like
    for batch in rows:
        assert {x.sharding.spec for x in batch} == {jax.P("fsdp", None)}
        assert {x.addressable_shards[0].data.shape[0] for x in batch} == {1}
    assert rows


def test_references_and_critics_have_a_part_on_each_device(configs, folders, tmp_path, devices, arriving):
    config = configs.ppo(
        tmp_path / "run",
        reward=RewardSource(model=str(folders / "one")),
        reference=ModelSource(path=str(folders / "policy")),
        critic=CriticConfig(init="path", path=str(folders / "one")),
        kl=KLConfig(coefficient=0.1),
    )
    lengths = np.asarray([5 + i for i in range(8)], np.int32)
    tokens = np.arange(8 * 16, dtype=np.int32).reshape(8, 16) % 250
    mask = (np.arange(16) >= 2) & (np.arange(16) < lengths[:, None])
    found = {}
    for axes in (MeshConfig(), FSDP):
        arriving.clear()
        mesh = make_mesh(axes, devices)
        policy, tokenizer = setup.load_model(config.model, mesh, seed=0)
        parts = build(config, policy, None, mesh, key=jax.random.key(0), tokenizer=tokenizer)
        rows = setup.on_mesh({"tokens": tokens, "lengths": lengths, "mask": mask}, TokenRows, mesh)
        logps = jax.jit(lambda p, rows, m=parts.models: m.reference_logps(p, rows, temperature=1.0))
        values = jax.jit(
            lambda t, f, rows, m=parts.models: m.score(t, f, rows, temperature=1.0)[1],
        )
        found[axes] = logps(parts.reference, rows), values(parts.trained, parts.frozen, rows)
    for one, eight in zip(*found.values(), strict=True):
        np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
        assert np.std(one) > 0.01
    like = specs({name: leaf for name, leaf in policy.params.items() if name != "head"})
    assert specs(parts.reference) == specs(policy.params)
    assert specs(parts.trained["critic"]["trunk"]) == like
    # Policy, reference, reward and critic: none of them was whole on one device on the way.
    assert len(arriving) == 4
    for params in arriving:
        assert specs(params.get("trunk", params))["layers"] == like["layers"]


def test_a_live_model_of_many_devices_goes_to_the_runs_one(tiny_model_folder, devices):
    one, mesh = make_mesh(MeshConfig(), devices[:1]), make_mesh(FSDP, devices)
    live = setup.placed(models.load_pretrained(tiny_model_folder, mesh=mesh), one)
    assert live.config.mesh is None
    assert {d for x in jax.tree.leaves(live.params) for d in x.devices()} == {devices[0]}
