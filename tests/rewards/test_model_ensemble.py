"""Several reward models as one reward."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.kernels import cudnn_attention
from jaxalign.models import attention
from jaxalign.models.heads import HeadConfig
from jaxalign.rewards import EnsembleReward, ModelReward, RewardRequest
from jaxalign.rewards.model import of_one_shape, same_arrays

ROWS = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10], [11, 12, 13, 14]]
REQUEST = RewardRequest([""] * 4, [""] * 4, [r[:1] for r in ROWS], [r[1:] for r in ROWS], {}, width=4)
LINEAR, MLP = HeadConfig(init_std=1.0), HeadConfig(kind="mlp", hidden_size=5, init_std=1.0)


def scalar(folder, seed, head=LINEAR, *, trunk_seed=None):
    """A reward model with gain and bias of its own, on the folder's trunk or on one of a seed."""
    base = models.load_pretrained(folder)
    if trunk_seed is not None:
        base = models.create(base.config, key=jax.random.key(trunk_seed))
    definition, params = models.split(models.create_scalar_model(base, head, key=jax.random.key(seed)))
    return models.merge(definition, models.with_normalizer(params, gain=1.0 + seed, bias=-0.5 * seed))


def heads(folder):
    return [scalar(folder, seed) for seed in (1, 2, 3)]


def whole_models(folder):
    return [scalar(folder, seed, trunk_seed=seed) for seed in (1, 2, 3)]


def mixed(folder):
    return [scalar(folder, 1), scalar(folder, 2, MLP), scalar(folder, 3)]


@pytest.mark.long
@pytest.mark.parametrize("make", [heads, whole_models, mixed])
def test_members_score_as_they_do_alone(make, tiny_model_folder):
    members = make(tiny_model_folder)
    assert of_one_shape(members) == (make is not mixed)
    trunks = [models.split(member)[1]["trunk"] for member in members]
    assert same_arrays(trunks[0], trunks[2]) == (make is not whole_models)
    alone = np.stack([ModelReward(member).score_rows(ROWS) for member in members])
    # Three rows a batch: the last batch is filled up.
    scores = EnsembleReward(members, batch_size=3, pad_multiple=8).score_members(ROWS)
    np.testing.assert_allclose(scores, alone, rtol=2e-5, atol=1e-5)
    assert alone.std(axis=0).min() > 0.01


@pytest.mark.long
@pytest.mark.parametrize("trained_in", ["auto", "cudnn"])
def test_where_cudnn_is_fast_members_in_one_program_take_a_form_that_can_be_mapped(
    trained_in, tiny_model_folder, monkeypatch
):
    members = whole_models(tiny_model_folder)
    expected = EnsembleReward(members).score_members(ROWS)
    monkeypatch.setitem(attention.REFUSALS, "cudnn", lambda config, device: "")
    monkeypatch.setitem(attention.FASTEST, "cpu", "cudnn")
    # Here cuDNN's program would not even compile.
    members = [models.with_config(member, attention=trained_in) for member in members]
    np.testing.assert_allclose(EnsembleReward(members).score_members(ROWS), expected, rtol=2e-5, atol=1e-5)


def test_a_model_trained_in_cudnn_scores_packed_rows_where_cudnn_cannot(tiny_model_folder, monkeypatch):
    member = scalar(tiny_model_folder, 1)
    expected = ModelReward(member).score_rows(ROWS)
    monkeypatch.setitem(attention.REFUSALS, "cudnn", lambda config, device: "")
    monkeypatch.setitem(attention.FASTEST, "cpu", "cudnn")
    monkeypatch.setattr(cudnn_attention, "_capability", lambda device: (8, 0))
    monkeypatch.setattr(
        attention, "_device", lambda config: SimpleNamespace(platform="cpu", compute_capability="8.0")
    )
    found = ModelReward(models.with_config(member, attention="cudnn")).score_rows(ROWS)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["mean", "mean_minus_std", "worst"])
def test_the_score_is_the_members_made_one(mode, tiny_model_folder):
    members = whole_models(tiny_model_folder)
    each = np.stack([ModelReward(member).score_rows(ROWS) for member in members]).astype(np.float64)
    mean, std = each.mean(0), np.sqrt(np.square(each - each.mean(0)).mean(0))
    expected = {"mean": mean, "mean_minus_std": mean - 0.7 * std, "worst": each.min(0)}[mode]
    reward = EnsembleReward(members, aggregate=mode, coefficient=0.7)
    found = reward.score(REQUEST)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.scores, reward.score_rows(ROWS))
    assert found.metrics["disagreement"] == pytest.approx(std.mean(), rel=1e-4)
    for k in range(3):
        assert found.metrics[f"member-{k}"] == pytest.approx(each[k].mean(), rel=1e-4, abs=1e-5)


def test_the_worst_is_never_above_the_mean(tiny_model_folder):
    members = heads(tiny_model_folder)
    worst, mean = (EnsembleReward(members, aggregate=a).score_rows(ROWS) for a in ("worst", "mean"))
    assert (worst < mean).all()


def test_no_rows_give_no_scores(tiny_model_folder):
    assert EnsembleReward(heads(tiny_model_folder)).score_rows([]).shape == (0,)


def test_a_member_that_knows_fewer_tokens_than_the_policy_is_refused(tiny_model_folder):
    with pytest.raises(UserError, match=r"its vocabulary has 259 tokens, the policy's 300"):
        EnsembleReward(heads(tiny_model_folder), vocabulary=300)


def test_a_member_that_scores_steps_is_refused(tiny_model_folder):
    base = models.load_pretrained(tiny_model_folder)
    steps = models.StepConfig(separator=";")
    process = models.create_scalar_model(base, LINEAR, key=jax.random.key(1), steps=steps)
    with pytest.raises(UserError, match="it scores the steps of a completion, not the whole"):
        EnsembleReward([*heads(tiny_model_folder)[:1], process])
