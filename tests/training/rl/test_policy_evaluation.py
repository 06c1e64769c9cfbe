"""The policy is measured on prompts that it never learns from."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign.runs import records
from jaxalign.training.core.eval_prompts import spread
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.on_policy_config import RolloutTrainConfig
from jaxalign.training.rl.online_dpo import train_online_dpo
from jaxalign.training.rl.online_dpo_config import JudgeSource, OnlineDPOConfig
from jaxalign.training.rl.policy_evaluation import evaluate_policy
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import PPOTrainConfig
from jaxalign.uncertainty import bootstrap_interval

SIZE = {"updates": 2, "prompts": 4, "score_batch_size": 8}
MEASURED = ("score", "kl", "length", "stop_rate")


def held_out_rows(folder):
    """(step, its evaluation) of the records that have one."""
    found = [(row["step"], {k: v for k, v in row.items() if k.startswith("eval/")}) for row in
             records.read(folder / "metrics.jsonl")]  # fmt: skip
    return [(step, row) for step, row in found if row]


@pytest.fixture
def trained(configs, tmp_path):
    """Trains with evaluations at 0, 1 and 2; gives the run's folder and the texts that rewards saw."""

    def run(name, reward=None, judge=None, loss=None, **changes):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        ppo = configs.ppo(folder)
        shared = {part: getattr(ppo, part) for part in ("model", "data", "optimizer", "sampling")}
        shared |= {"run": configs.run(folder, eval_every=1)}
        size = SIZE | changes
        if name == "ppo":
            config = replace(ppo, run=shared["run"], train=PPOTrainConfig(**size))
            train_ppo(config, reward=reward)
        elif name == "grpo":
            loss = GRPOLossConfig(beta=0.1) if loss is None else loss
            train_grpo(GRPOConfig(**shared, train=GRPOTrainConfig(**size), loss=loss), reward=reward)
        else:
            asked = {"judge": JudgeSource(reference_prompts=1)} if judge else {}
            config = OnlineDPOConfig(**shared, train=RolloutTrainConfig(**size), **asked)
            train_online_dpo(config, reward=reward, judge=judge)
        return folder

    return run


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param("ppo", marks=pytest.mark.slow), "grpo", "online_dpo"])
def test_every_trainer_logs_reward_kl_and_length_on_held_out_prompts_with_intervals(name, trained):
    learnt: set[str] = set()
    held: set[str] = set()

    def reward(prompts, completions, **kwargs):
        # A rollout has two completions of each prompt.
        (held if len(set(prompts)) == len(prompts) else learnt).update(prompts)
        return [float(len(completion)) for completion in completions]

    rows = held_out_rows(trained(name, reward))
    assert [step for step, _ in rows] == [0, 1, 2]
    assert held
    assert learnt
    assert not learnt & held
    for _, row in rows:
        assert row["eval/prompts"] == len(held)
        for measure in MEASURED:
            low, mean, high = (row[f"eval/{measure}{end}"] for end in ("_low", "", "_high"))
            assert low <= mean <= high
    # The reference is the policy as it starts; one update moves it away.
    assert rows[0][1]["eval/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rows[1][1]["eval/kl"]) > 1e-4


@pytest.mark.long
def test_what_is_trained_does_not_depend_on_evaluations(trained):
    def reward(prompts, completions, **kwargs):
        return [float(len(completion)) for completion in completions]

    with_them = list(records.read(trained("grpo", reward) / "metrics.jsonl"))[-1]
    without = list(records.read(trained("grpo", reward, eval_prompts=0) / "metrics.jsonl"))[-1]
    assert not [name for name in without if name.startswith("eval/")]
    for name, value in without.items():
        if not name.startswith("time"):
            assert with_them[name] == value


@pytest.mark.long
def test_a_trainer_without_a_reference_measures_no_kl(trained):
    rows = held_out_rows(trained("grpo", lambda p, c, **_: [1.0] * len(p), loss=GRPOLossConfig(beta=0.0)))
    assert rows
    assert all("eval/score" in row and "eval/kl" not in row for _, row in rows)


@pytest.mark.long
def test_with_a_judge_the_policy_is_held_against_the_reference(trained):
    def judge(prompts, first, second, *, columns):
        return [
            0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in zip(first, second, strict=True)
        ]

    for _, row in held_out_rows(trained("online_dpo", judge=judge)):
        assert 0 <= row["eval/win_rate_low"] <= row["eval/win_rate"] <= row["eval/win_rate_high"] <= 1
        assert "eval/score" not in row


def fake_trainer(scores, size=2, most=5):
    """A trainer of whom only what an evaluation asks is there; each prompt's score is known."""
    asked = []

    def generate(prompts, **_):
        asked.append([p[0] for p in prompts])
        n = len(prompts)
        return SimpleNamespace(
            tokens=np.ones((n, 2), np.int32),
            lengths=np.full(n, 2),
            finish_reason=["stop", "length"][:n],
        )

    trainer = SimpleNamespace(
        config=SimpleNamespace(
            train=SimpleNamespace(prompts=size, eval_prompts=most),
            sampling=SimpleNamespace(num_samples=1, arguments=lambda **_: {}),
            run=SimpleNamespace(seed=3),
        ),
        state=SimpleNamespace(params={"policy": None}),
        key=jax.random.key(0),
        generator=SimpleNamespace(refresh=lambda _: SimpleNamespace(generate=generate), stop_tokens=()),
        held_out=[
            SimpleNamespace(prompt_tokens=(i,), prompt_text=str(i), prompt=str(i), columns={})
            for i in range(len(scores))
        ],
        request_of=lambda batch, *_: SimpleNamespace(prompt_ids=batch["prompts"]),
        held_out_scores=lambda request, key: {"score": np.array([scores[p[0]] for p in request.prompt_ids])},
        held_out_kl=lambda rows: None,
        row_multiple=16,
    )
    return trainer, asked


def test_the_interval_is_of_all_rows_to_which_a_reward_applies_and_no_call_is_larger_than_a_rollout():
    trainer, asked = fake_trainer([1.0, np.nan, 3.0, 8.0, 2.0])
    found = evaluate_policy(trainer, 1)
    assert [len(part) for part in asked] == [2, 2, 1]
    assert found["eval/score"] == (1 + 3 + 8 + 2) / 4
    assert (found["eval/score_low"], found["eval/score_high"]) == bootstrap_interval([1.0, 3, 8, 2], seed=3)
    assert found["eval/stop_rate"] == 3 / 5


def test_so_many_prompts_are_taken_evenly():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 4) == [1, 2]
    trainer, asked = fake_trainer([1.0] * 9, most=3, size=8)
    assert evaluate_policy(trainer, 1)["eval/prompts"] == 3
    assert asked == [[0, 3, 6]]


@pytest.mark.parametrize(("scores", "most"), [([], 4), ([1.0], 0)])
def test_without_prompts_nothing_is_measured(scores, most):
    assert evaluate_policy(fake_trainer(scores, most=most)[0], 1) == {}
