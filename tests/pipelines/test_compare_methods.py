"""Every method gets the same budget, and its settings where they may be set."""

from dataclasses import replace
from pathlib import Path

import pytest

from jaxalign.config import parse
from jaxalign.models.lora import LoraConfig
from jaxalign.pipelines.compare_checks import checked
from jaxalign.pipelines.compare_config import CompareBudget, CompareConfig
from jaxalign.pipelines.compare_methods import METHODS, flat, trainer_config, trains_proxy
from jaxalign.training.core.reward_source import RewardSource
from tests.pipelines.compare_files import small

BUDGET = CompareBudget(samples=256, batch_size=8, rollout=32, rounds=3)
TRAINED = [name for name, method in METHODS.items() if method.config]


def made(config, name, **options):
    return trainer_config(config, name, seed=7, folder=Path("run"), start="start", **options)


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_sees_as_many_samples_in_batches_of_one_size(tmp_path, name):
    config = checked(small(tmp_path, budget=BUDGET))
    train = made(config, name).train
    if METHODS[name].kind == "fixed":
        assert (train.steps * train.batch_size, train.batch_size) == (256, 8)
        return
    rows = train.prompts * made(config, name).sampling.num_samples
    assert (rows, rows * train.updates, rows // train.minibatches) == (32, 256, 8)


def test_rounds_share_the_steps_of_the_budget(tmp_path):
    config = checked(small(tmp_path, budget=BUDGET))
    steps = [made(config, "feedback", files=("f",), part=(i, 3)).train.steps for i in range(3)]
    assert sum(steps) == 32 and max(steps) - min(steps) <= 1


@pytest.mark.parametrize("name", TRAINED)
def test_all_start_from_one_model_with_the_seed_and_no_rows_held_out(tmp_path, name):
    found = made(checked(small(tmp_path)), name)
    assert (found.patient if name == "tfpo" else found.model).path == "start"
    assert (found.run.seed, found.run.resume, found.data.validation_fraction) == (7, True, 0.0)


def test_settings_of_all_reach_those_that_have_them_and_a_methods_own_come_last(tmp_path):
    shared = {"loss.beta": 0.3, "sampling": {"top_k": 5}, "optimizer.learning_rate": 1e-3}
    config = checked(small(tmp_path, settings={"all": shared, "dpo": {"loss": {"beta": 0.7}}}))
    assert made(config, "dpo").loss.beta == 0.7
    assert made(config, "kto").loss.beta == made(config, "grpo").loss.beta == 0.3
    assert (made(config, "kto").loss.name, made(config, "rloo").loss.name) == ("kto", "rloo")
    assert made(config, "ppo").sampling.top_k == 5
    assert made(config, "feedback").optimizer.learning_rate == 1e-3


def test_what_all_methods_begin_with_may_be_longer(tmp_path):
    config = checked(small(tmp_path, settings={"sft": {"train.steps": 99}}))
    assert made(config, "sft", beginning=True).train.steps == 99
    assert made(config, "sft", beginning=True).data.train == config.data.demonstrations


def test_the_critic_starts_from_the_reward_model_where_there_is_one(tmp_path):
    config = checked(small(tmp_path))
    assert made(config, "ppo").critic.init == "policy"
    critic = made(config, "ppo", proxy="reward").critic
    assert (critic.init, critic.path) == ("path", "reward")


def test_a_reward_model_is_trained_where_pairs_are_there_and_no_proxy_is_named(tmp_path):
    config = checked(small(tmp_path, proxy=RewardSource(), methods=("dpo",)))
    assert trains_proxy(config)
    assert not trains_proxy(replace(config, proxy=config.gold))
    assert not trains_proxy(replace(config, data=replace(config.data, pairs=())))


def test_adapters_are_of_all_methods(tmp_path):
    config = checked(small(tmp_path, lora=LoraConfig(enabled=True, rank=2)))
    assert {made(config, name).lora.rank for name in TRAINED} == {2}


def test_nested_and_dotted_keys_are_alike_and_a_mapping_can_be_a_value():
    keys = {"loss.beta", "data.columns"}
    tree = {"loss": {"beta": 1}, "data.columns": {"a": "b"}, "data": {"columns": {"c": "d"}}}
    assert list(flat(tree, keys)) == [
        ("loss.beta", 1),
        ("data.columns", {"a": "b"}),
        ("data.columns", {"c": "d"}),
    ]


def test_the_shipped_configuration_suits_every_method(tmp_path):
    shipped, files = parse(CompareConfig, "compare"), small(tmp_path)
    config = checked(replace(shipped, model="m", data=files.data, gold=files.gold))
    assert config.methods == tuple(METHODS)
    assert made(config, "dpo").optimizer.learning_rate == made(config, "ppo").optimizer.learning_rate == 5e-5
