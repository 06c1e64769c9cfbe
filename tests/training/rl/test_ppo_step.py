"""What PPO's step minimises is the sum of its parts, with the signs and weights it was given."""

from dataclasses import replace

import numpy as np
import pytest

from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.training.rl.ppo_config import PPOLossConfig
from tests.training.cases import ppo_case


def total(devices, fields=None, **changes):
    """(loss, metrics as means, batch) of the tiny model, whose batch has these fields."""
    mesh = make_mesh(MeshConfig(), devices[:1])
    loss, counts, trained, frozen, batch = ppo_case(mesh, PPOLossConfig(**changes))
    batch = shard_batch(replace(batch, **(fields or {})), mesh)
    value, sums = loss(trained, frozen, batch, None, counts(batch))
    return float(value), {name: float(a / b) for name, (a, b) in sums.items()}, batch


@pytest.mark.long
def test_the_loss_is_policy_loss_plus_weighted_value_loss(devices):
    half, metrics, _ = total(devices, value_weight=0.5)
    assert half == pytest.approx(metrics["policy/loss"] + 0.5 * metrics["value/loss"], rel=1e-5)
    double, _, _ = total(devices, value_weight=2.0)
    assert double - half == pytest.approx(1.5 * metrics["value/loss"], rel=1e-5)


@pytest.mark.long
def test_entropy_is_rewarded(devices):
    plain, metrics, _ = total(devices)
    bonus, _, _ = total(devices, entropy_weight=0.1)
    assert metrics["policy/entropy"] > 1.0
    assert bonus == pytest.approx(plain - 0.1 * metrics["policy/entropy"], rel=1e-4)


@pytest.mark.long
def test_importance_weights_scale_the_policy_loss_and_nothing_else(devices):
    plain, metrics, batch = total(devices, entropy_weight=0.1)
    halves = np.full(batch.mask.shape, 0.5, np.float32)
    weighed, _, _ = total(devices, {"weights": halves}, entropy_weight=0.1, importance_cap=2.0)
    clipped = metrics["policy/loss"] + 0.1 * metrics["policy/entropy"]
    assert abs(clipped) > 1e-3
    assert weighed == pytest.approx(plain - 0.5 * clipped, rel=1e-5)
    # One weight belongs to one token.
    halves[0] = 1.0
    other, _, _ = total(devices, {"weights": halves}, entropy_weight=0.1, importance_cap=2.0)
    assert abs(other - weighed) > 1e-5


def test_rows_weigh_alike_under_the_sequence_reduction(devices):
    tokens, _, batch = total(devices, value_clip=0.0)
    rows, _, _ = total(devices, value_clip=0.0, reduction="sequence")
    assert rows != pytest.approx(tokens, rel=1e-3)
    # Where every row has as many tokens, the two are one: the difference comes from the lengths alone.
    assert len(np.unique(batch.mask.sum(1))) > 1


def test_only_the_value_loss_is_left_while_the_critic_warms_up(devices):
    warming, metrics, _ = total(devices, {"policy_weight": np.zeros(8, np.float32)}, value_weight=0.5)
    assert warming == pytest.approx(0.5 * metrics["value/loss"], rel=1e-5)
    assert abs(metrics["policy/loss"]) > 1e-3
