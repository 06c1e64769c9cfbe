"""What lies on the device: the reference and reward models only while they are used, and nothing that is not read."""

import gc
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.host_memory import HOST
from jaxalign.models.lora import LoraConfig
from jaxalign.rewards import EnsembleReward, ModelReward, RewardRequest, WeightedMix
from jaxalign.rollout import SamplingConfig
from jaxalign.training.core.loop import Loop
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.reward_model.trainer import train_reward
from jaxalign.training.rl import offload
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.on_policy_config import OnPolicyConfig
from jaxalign.training.rl.online_dpo import JudgeSource, OnlineDPOConfig, train_online_dpo
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.sft import train_sft
from tests.training.test_resume import assert_same_run


def kinds(tree):
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


@pytest.fixture
def apart(monkeypatch):
    """A CPU stands for a device with memory of its own."""
    monkeypatch.setattr(offload, "accelerated", lambda mesh: True)


@pytest.fixture
def seen(monkeypatch):
    """The reference's memory kinds: while the policy is updated, and in the program that scores a rollout."""
    found = {"updating": [], "scoring": []}
    passes, score_rows = OnPolicyTrainer.passes, OnPolicyTrainer.score_rows

    def noting_passes(self, *args, **options):
        found["updating"].append(kinds(self.reference))
        return passes(self, *args, **options)

    def noting_rows(self, rows, score):
        plain = self._score
        self._score = lambda params, frozen, reference, *args, **options: (
            found["scoring"].append(kinds(reference)) or plain(params, frozen, reference, *args, **options)
        )
        try:
            return score_rows(self, rows, score)
        finally:
            self._score = plain

    monkeypatch.setattr(OnPolicyTrainer, "passes", noting_passes)
    monkeypatch.setattr(OnPolicyTrainer, "score_rows", noting_rows)
    return found


def scalar(configs, seed=0):
    return models.create_scalar_model(models.load_pretrained(configs.model.path), key=jax.random.key(seed))


@pytest.mark.slow
def test_ppo_learns_the_same_bits_with_reference_and_reward_model_on_the_host(configs, tmp_path, apart, seen):
    train = replace(configs.ppo("x").train, updates=1, epochs=1)
    plain = configs.ppo(tmp_path / "plain", train=train)
    train_ppo(plain, reward=ModelReward(scalar(configs)))
    assert seen["updating"] == [{"device"}]
    reward = ModelReward(scalar(configs))
    train_ppo(configs.ppo(tmp_path / "host", train=replace(train, offload=True)), reward=reward)
    assert_same_run(tmp_path / "host", tmp_path / "plain")
    assert seen["updating"][1:] == [{HOST}]
    assert set(map(frozenset, seen["scoring"])) == {frozenset({"device"})}
    assert kinds(reward._program.params) == {HOST}


def grpo(configs, output, **changes):
    ppo = configs.ppo(output)
    parts = {
        "train": GRPOTrainConfig(updates=1, prompts=4, score_batch_size=16, offload=True),
        "sampling": SamplingConfig(max_new_tokens=6, num_samples=2),
        "loss": GRPOLossConfig(beta=0.1),
        "reward": replace(ppo.reward, missing_stop_penalty=0.0),
    }
    return GRPOConfig(run=ppo.run, model=ppo.model, data=ppo.data, **(parts | changes))


@pytest.mark.long
def test_on_a_cpu_nothing_is_moved_and_one_line_says_so(configs, tmp_path, seen, capsys):
    train = GRPOTrainConfig(updates=2, prompts=4, score_batch_size=16, offload=True)
    train_grpo(grpo(configs, tmp_path / "run", train=train))
    assert seen["updating"] == [{"device"}] * 2
    text = "train.offload=true: no effect on a CPU, where device and host share memory"
    assert (tmp_path / "run" / "run.log").read_text().count(text) == 1


@pytest.mark.long
def test_the_base_of_an_adapter_stays_and_is_held_once(configs, tmp_path, apart, monkeypatch):
    held, plain = [], OnPolicyTrainer.passes

    def passes(self, *args, **options):
        held.append((self.reference, self.frozen["policy"]))
        return plain(self, *args, **options)

    monkeypatch.setattr(OnPolicyTrainer, "passes", passes)
    train_grpo(grpo(configs, tmp_path / "run", lora=LoraConfig(enabled=True, rank=2)))
    ((reference, base),) = held
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (reference, base)), strict=True))
    assert kinds(reference) == {"device"}
    assert "the reference is the policy's base model" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.slow
def test_a_judge_compares_with_samples_of_a_reference_on_the_host(configs, tmp_path, apart, seen):
    def judge(prompts, first, second, *, columns):
        return [len(a) >= len(b) for a, b in zip(first, second, strict=True)]

    def run(name, offload):
        base = configs.ppo(tmp_path / name)
        train = replace(OnPolicyConfig().train, updates=2, prompts=4, score_batch_size=8, offload=offload)
        config = OnlineDPOConfig(
            run=base.run, model=base.model, data=base.data, sampling=base.sampling, train=train,
            judge=JudgeSource(reference_prompts=2),
        )  # fmt: skip
        train_online_dpo(config, judge=judge)

    run("plain", False)
    run("host", True)
    assert_same_run(tmp_path / "host", tmp_path / "plain")
    assert seen["updating"][-1] == {HOST}


def test_every_reward_with_models_keeps_them_on_the_host_and_scores_the_same(configs):
    request = RewardRequest(
        prompts=["a"] * 3, completions=["b"] * 3, prompt_ids=[[5, 6]] * 3, completion_ids=[[7], [8, 9], [4]],
        columns={}, width=2,
    )  # fmt: skip
    one, two = scalar(configs), scalar(configs, seed=1)
    for make in (
        lambda: ModelReward(one),
        lambda: EnsembleReward([one, two]),
        lambda: WeightedMix({"model": ModelReward(two), "function": lambda p, c, **_: [1.0] * len(p)}),
    ):
        reward = make()
        before = np.asarray(reward.score(request).scores)
        assert np.ptp(before) > 0
        reward.offload()
        inner = reward.rewards["model"] if isinstance(reward, WeightedMix) else reward
        assert kinds(inner._program.params) == {HOST}
        np.testing.assert_array_equal(reward.score(request).scores, before)


def device_bytes():
    """Of distinct buffers: `jax.device_put` makes two arrays of one where nothing has to move."""
    arrays = [x for x in jax.live_arrays() if x.sharding.memory_kind == "device"]
    return sum({x.unsafe_buffer_pointer(): x.nbytes for x in arrays}.values())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "copies"),
    [
        ("sft", 3),
        pytest.param("reward", 3, marks=pytest.mark.slow),
        pytest.param("dpo", 4, marks=pytest.mark.slow),
        ("precomputed", 3),
        pytest.param("lora", 1.3, marks=pytest.mark.slow),
    ],
)
def test_only_what_a_step_reads_lies_on_the_device(name, copies, configs, tmp_path, monkeypatch):
    """Parameters and two moments; the reference where it is live; with LoRA the base and an adapter's own."""
    config = {
        "sft": lambda: configs.sft(tmp_path / "run"),
        "reward": lambda: configs.reward(tmp_path / "run"),
        "dpo": lambda: configs.dpo(tmp_path / "run"),
        "precomputed": lambda: configs.dpo(tmp_path / "run", reference_logps="precomputed"),
        "lora": lambda: configs.sft(tmp_path / "run", lora=LoraConfig(enabled=True, rank=1)),
    }[name]()
    train = {"sft": train_sft, "reward": train_reward, "lora": train_sft}.get(name, train_dpo)
    params = models.load_pretrained(configs.model.path).params
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    del params
    held, plain = [], Loop._log
    monkeypatch.setattr(
        Loop, "_log", lambda self, *args: held.append(device_bytes() - before) or plain(self, *args)
    )
    gc.collect()  # what earlier tests left in cycles would leave in between
    before = device_bytes()
    train(config)
    assert (copies - 0.5) * size < held[1] < (copies + 0.4) * size, [x / size for x in held]
