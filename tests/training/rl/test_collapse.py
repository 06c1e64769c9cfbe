"""Signs of a collapse are warned of once, with the threshold; every on-policy run logs its learning rate."""

from dataclasses import replace

import numpy as np
import pytest

from jaxalign.rollout import Completions, SamplingConfig
from jaxalign.runs import records
from jaxalign.training.core.optimizer import OptimizerConfig, make_schedule
from jaxalign.training.rl.collapse import CollapseConfig, collapse_signs, repetition
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOTrainConfig
from jaxalign.training.rl.on_policy_config import RolloutTrainConfig
from jaxalign.training.rl.online_dpo import train_online_dpo
from jaxalign.training.rl.online_dpo_config import OnlineDPOConfig
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import CriticConfig, PPOTrainConfig

LINEAR = OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_ratio=0.3)


def metrics_of(folder):
    return list(records.read(folder / "metrics.jsonl"))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ppo", "grpo", pytest.param("online_dpo", marks=pytest.mark.slow)])
def test_the_learning_rate_is_that_of_the_updates_last_step(kind, configs, tmp_path):
    ppo = configs.ppo(
        tmp_path / "run", optimizer=LINEAR, sampling=SamplingConfig(max_new_tokens=6, num_samples=2)
    )
    same = {name: getattr(ppo, name) for name in ("run", "model", "data", "reward", "sampling", "optimizer")}
    if kind == "ppo":
        train = PPOTrainConfig(
            updates=3, prompts=4, epochs=1, minibatches=2, score_batch_size=8, eval_prompts=0
        )
        critic = CriticConfig(warmup_updates=1, optimizer=replace(LINEAR, learning_rate=1e-2))
        train_ppo(replace(ppo, train=train, critic=critic))
    elif kind == "grpo":
        train_grpo(
            GRPOConfig(**same, train=GRPOTrainConfig(updates=3, prompts=4, minibatches=2, eval_prompts=0))
        )
    else:
        config = OnlineDPOConfig(**same, train=RolloutTrainConfig(updates=3, prompts=4, eval_prompts=0))
        train_online_dpo(config, reward=lambda p, c, **_: [float(i) for i in range(len(p))])
    rows = metrics_of(tmp_path / "run")
    found = [row["policy/learning_rate"] for row in rows]
    schedule = make_schedule(LINEAR, {"ppo": 4, "grpo": 6, "online_dpo": 3}[kind])
    taken = {"ppo": [0, 2, 4], "grpo": [2, 4, 6], "online_dpo": [1, 2, 3]}[kind]
    expected = [float(schedule(n - 1)) if n else 0.0 for n in taken]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(set(found)) > 1
    if kind == "ppo":
        critic = make_schedule(replace(LINEAR, learning_rate=1e-2), 6)
        expected = [float(critic(n - 1)) for n in (2, 4, 6)]
        np.testing.assert_allclose([row["value/learning_rate"] for row in rows], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (
            {"objective/entropy": 0.04},
            "objective/entropy is 0.04 nats a token, below collapse.entropy = 0.05",
        ),
        ({"objective/kl": 101.0}, "objective/kl is 101 nats a completion, above collapse.kl = 100"),
        ({"rollout/repetition": 0.6}, "rollout/repetition is 0.6, above collapse.repetition = 0.5"),
    ],
)
def test_a_sign_of_collapse_names_its_threshold(metrics, expected):
    ((name, sign),) = collapse_signs(CollapseConfig(), metrics)
    assert expected in sign
    assert not list(collapse_signs(CollapseConfig(**{name: 0.0}), metrics))
    well = {"objective/entropy": 0.06, "objective/kl": 99.0, "rollout/repetition": 0.4}
    assert not list(collapse_signs(CollapseConfig(), well)) and not list(collapse_signs(CollapseConfig(), {}))


def completions(*rows):
    width = max(map(len, rows))
    tokens = np.asarray([list(row) + [0] * (width - len(row)) for row in rows])
    lengths = np.asarray([len(row) for row in rows])
    mask = np.arange(width) < lengths[:, None]
    zeros = np.zeros(mask.shape, np.float32)
    return Completions(tokens, mask, lengths, zeros, zeros, ["stop"] * len(rows))


def test_repetition_is_the_share_of_phrases_that_a_completion_had_before():
    # 13 phrases of four tokens, all alike; 9 all different; 8 of which 3 came before; and one too short to say.
    rows = ([7] * 16, list(range(12)), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1], [7] * 7)
    assert repetition(completions(*rows)) == pytest.approx((12 / 13 + 0 + 3 / 8) / 3)
    assert repetition(completions([1], [2])) == 0


@pytest.mark.long
def test_a_collapse_is_warned_of_once(configs, tmp_path):
    collapse = CollapseConfig(entropy=100.0, kl=0.0, repetition=0.0)
    config = configs.ppo(tmp_path / "run", collapse=collapse)
    train_ppo(replace(config, train=replace(config.train, updates=2, epochs=1)))
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("below collapse.entropy = 100: the policy hardly varies any more") == 1
    assert "WARNING update 1: objective/entropy" in log


def test_a_negative_threshold_is_refused():
    with pytest.raises(ValueError, match=r"collapse\.kl must not be negative"):
        CollapseConfig(kl=-1.0)
