"""The reward that a configuration names."""

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ConfigError, ModelError
from jaxalign.mesh import make_mesh
from jaxalign.rewards import ModelReward, RewardRequest, evaluate_reward, load_function
from jaxalign.training.core.reward_source import RewardSource, build_reward


@pytest.fixture
def members(tiny_model_folder):
    base = models.load_pretrained(tiny_model_folder)
    return [models.create_scalar_model(base, key=jax.random.key(seed)) for seed in (1, 2)]


def build(source, reward=None):
    return build_reward(source, reward, mesh=make_mesh(), batch_size=4, vocabulary=259)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "a", "models": ("a", "b")}, r"reward\.model and reward\.models: choose one"),
        ({"models": ("a",)}, r"reward\.models: expected two or more folders, got 1"),
        ({"aggregate": "mean_minus_std", "aggregate_coefficient": -1.0}, "must not be negative, got -1"),
        ({"aggregate": "worst", "aggregate_coefficient": 2.0}, "mean_minus_std only, got worst"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardSource(**settings)


def test_the_reward_model_that_a_critic_starts_from_is_the_first_member(members, tmp_path):
    models.save_reward_ensemble(members, tmp_path / "run" / "export")
    for source in (
        RewardSource(model=str(tmp_path / "run"), aggregate="worst"),
        RewardSource(models=tuple(str(tmp_path / "run" / "export" / f"member-{k}") for k in (0, 1))),
    ):
        _, first = build(source)
        assert (first.params["head"]["score"] == members[0].params["head"]["score"]).all()


def test_a_live_ensemble_is_scored_by_the_rule_of_the_configuration(members):
    rows = [[1, 2, 3], [4, 5]]
    worst, first = build(RewardSource(aggregate="worst"), members)
    assert first is members[0]
    each = [ModelReward(member).score_rows(rows) for member in members]
    np.testing.assert_allclose(worst.score_rows(rows), np.minimum(*each), atol=1e-6)


def test_a_rule_for_ensembles_needs_one(members, tmp_path):
    models.save_reward_model(members[0], tmp_path / "one")
    for source, reward in (
        (RewardSource(model=str(tmp_path / "one"), aggregate="worst"), None),
        (RewardSource(aggregate="worst"), members[0]),
    ):
        with pytest.raises(
            ConfigError, match=r"aggregate=worst needs an ensemble; there is only one reward model"
        ):
            build(source, reward)
    with pytest.raises(ConfigError, match=r"aggregate=worst needs an ensemble, but there is no reward model"):
        build(RewardSource(aggregate="worst", functions=("jaxalign.rewards.verifiable:exact_answer",)))


def test_an_ensemble_among_several_folders_is_one_line(members, tmp_path):
    folder = str(models.save_reward_ensemble(members, tmp_path / "saved"))
    with pytest.raises(ModelError, match="expected one model, but this is a reward ensemble"):
        build(RewardSource(models=(folder, folder)))


def test_no_reward_is_named():
    with pytest.raises(ConfigError, match=r"expected reward\.model, reward\.models or reward\.functions"):
        build(RewardSource())


def test_a_list_of_live_functions_is_a_mix_by_the_weights_of_the_configuration(members):
    def long(completions, **kwargs):
        return [float(len(c)) for c in completions]

    async def early(completion_ids, **kwargs):
        return [float(ids[0]) for ids in completion_ids]

    request = RewardRequest(["p"] * 2, ["ab", "c"], [[1], [2]], [[3], [4]], {}, 1)
    mix, model = build(RewardSource(weights=(1.0, -2.0)), [long, early])
    assert model is None
    np.testing.assert_allclose(evaluate_reward(mix, request).scores, [-4, -7])
    mix, model = build(RewardSource(), [long, long, members[0]])
    assert list(mix.rewards) == ["long", "long_1", "model"]
    assert model is members[0]


@pytest.mark.parametrize(
    ("weights", "reward", "message"),
    [
        ((1.0,), [len, max], "expected one weight for each of the 2 functions, got 1"),
        ((1.0,), None, "no reward.functions to weight"),
        ((), [len, "max"], "expected functions, rewards or scalar models, got 'max'"),
        ((), [], "expected at least one function, got none"),
    ],
)
def test_lists_and_weights_that_do_not_fit_are_named(weights, reward, message):
    with pytest.raises(ConfigError, match=message):
        build(RewardSource(weights=weights), reward)


def test_texts_can_be_asked_for_where_prompts_are_messages(tmp_path):
    path = tmp_path / "letters.py"
    path.write_text(
        "def f(prompts, completions, **kwargs):\n    return [float(len(c)) for c in completions]\n"
    )
    request = RewardRequest(
        ["p"], ["abc"], [[1]], [[3]], {}, 1, messages=[[{"role": "user", "content": "p"}]]
    )
    for texts, score in ((False, 1.0), (True, 3.0)):
        reward, _ = build(RewardSource(functions=(f"{path}:f",), texts=texts))
        live, _ = build(RewardSource(texts=texts), load_function(f"{path}:f"))
        for one in (reward, live):
            assert evaluate_reward(one, request).scores.tolist() == [score]
