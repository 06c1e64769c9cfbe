"""What is wrong with a comparison is told before anything is trained, in one line that names it."""

from dataclasses import replace

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.pipelines.compare_checks import checked, shared_prompts
from jaxalign.pipelines.compare_config import CompareBudget, CompareConfig, CompareData
from jaxalign.training.core.reward_source import RewardSource
from tests.pipelines.compare_files import small, write_rows


def test_without_names_all_methods_are_compared_whose_data_are_there(tmp_path):
    config = small(tmp_path)
    every = ("sft", "feedback", "ppo", "dpo", "kto", "grpo", "rloo", "best_of_n", "tfpo")
    assert checked(config).methods == every
    no_pairs = replace(config, data=replace(config.data, pairs=(), feedback=()))
    assert checked(no_pairs).methods == ("sft", "best_of_n")
    assert checked(replace(config, proxy=RewardSource())).methods == every  # one is trained on the pairs


def test_the_supervised_model_is_always_there_to_compare_with(tmp_path):
    assert checked(small(tmp_path, methods=("dpo",))).methods == ("sft", "dpo")


def test_held_out_prompts_among_the_training_prompts_are_counted(tmp_path):
    # "Tell  3" is a prompt of the pairs but for its spaces and letters' case.
    assert shared_prompts(checked(small(tmp_path))) == (1, 6)


def test_prompts_of_feedback_are_read_by_the_columns_that_its_settings_name(tmp_path):
    rows = [{"question": "held 0", "said": "a", "judgment": 4}]
    config = small(
        tmp_path, settings={"feedback": {"data.columns": {"prompt": "question", "completion": "said"}}}
    )
    config = replace(config, data=replace(config.data, feedback=(write_rows(tmp_path / "f.jsonl", rows),)))
    assert shared_prompts(config) == (2, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("ktto",)}, "methods: no method 'ktto'; did you mean kto"),
        ({"methods": ("sft", "xyz")}, "methods: no method 'xyz'; there are sft, feedback, ppo"),
        ({"model": ""}, "--model: expected a base model"),
        ({"settings": {"dpoo": {}}}, "settings.dpoo: expected a method that trains.*did you mean dpo"),
        (
            {"settings": {"all": {"loss.betta": 1}}},
            "settings.all.loss.betta: no method has this key; did you",
        ),
        (
            {"settings": {"dpo": {"kl.coefficient": 1}}},
            "settings.dpo.kl.coefficient: this method has no such",
        ),
        ({"settings": {"dpo": {"train.steps": 9}}}, "settings.dpo.train.steps: set by the comparison"),
        ({"settings": {"all": {"run": {"output": "x"}}}}, "settings.all.run.output: set by the comparison"),
        ({"settings": {"dpo": {"loss": {"beta": -1}}}}, "settings.dpo: .*loss.beta must be positive"),
        (
            {"settings": {"grpo": {"sampling.num_samples": 3}}},
            "num_samples=3: expected a divisor of budget.rollout",
        ),
    ],
)
def test_what_users_get_wrong_is_told_in_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(small(tmp_path, **changes))


@pytest.mark.parametrize(
    ("method", "lost", "message"),
    [
        ("dpo", ("pairs",), "methods: dpo needs data.pairs"),
        ("feedback", ("feedback",), "methods: feedback needs data.feedback"),
        ("grpo", ("pairs", "prompts"), "methods: grpo needs data.prompts or data.pairs"),
    ],
)
def test_a_method_without_its_data_is_refused(tmp_path, method, lost, message):
    config = small(tmp_path, methods=(method,))
    with pytest.raises(ConfigError, match=message):
        checked(replace(config, data=replace(config.data, **dict.fromkeys(lost, ()))))


def test_a_method_that_optimizes_a_reward_needs_one(tmp_path):
    config = small(tmp_path, methods=("grpo",), proxy=RewardSource())
    prompts = replace(config.data, pairs=(), prompts=config.data.demonstrations)
    with pytest.raises(ConfigError, match=r"grpo needs a reward in proxy, or data\.pairs to train one on"):
        checked(replace(config, data=prompts))


def test_a_gold_reward_that_methods_optimize_is_refused_also_by_another_spelling(tmp_path, monkeypatch):
    config = small(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"gold: .*rewards\.py:letters is the proxy too"):
        checked(replace(config, gold=RewardSource(functions=("./rewards.py:letters",))))


@pytest.mark.parametrize("name", ["demonstrations", "held_out_prompts"])
def test_what_all_methods_need_is_missed_by_name(tmp_path, name):
    config = small(tmp_path)
    with pytest.raises(ConfigError, match=f"data.{name}: expected"):
        checked(replace(config, data=replace(config.data, **{name: "" if "prompts" in name else ()})))


def test_a_file_that_is_not_there_is_named(tmp_path):
    config = small(tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        checked(replace(config, data=replace(config.data, feedback=("nowhere.jsonl",))))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"samples": 100}, "budget.samples = 100 must be a multiple of budget.rollout = 64"),
        ({"rollout": 24, "samples": 48}, "budget.rollout = 24 must be a multiple of budget.batch_size = 16"),
        ({"best_of": 1}, "budget.best_of must be 2 or more"),
        ({"samples": 64, "rounds": 5}, "budget.rounds = 5: more than the 4 optimizer steps"),
    ],
)
def test_a_budget_that_does_not_divide_is_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        CompareBudget(**budget)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 1)}, "seeds: 1 is named twice"),
        ({"seeds": ()}, "seeds: expected at least one"),
        ({"methods": ("dpo", "dpo")}, "methods: dpo is named twice"),
    ],
)
def test_seeds_and_methods_are_named_once(changes, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(data=CompareData(), **changes)
