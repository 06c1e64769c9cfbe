"""Evaluation by generation, in every trainer that has text to generate."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxalign.config import parse
from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.llmdoctor.tfpo_config import TFPOLossConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import Callback, EarlyStopping, records
from jaxalign.training.core.eval_config import EvalConfig, GenerateEvalConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.step import Update
from jaxalign.training.distill.config import DistillConfig
from jaxalign.training.distill.trainer import train_distill
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.reward_model.trainer import RewardConfig, train_reward
from jaxalign.training.rl.grpo import Trainer as GRPOTrainer
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.on_policy_config import RolloutTrainConfig
from jaxalign.training.rl.online_dpo import train_online_dpo
from jaxalign.training.rl.online_dpo_config import OnlineDPOConfig
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import PPOTrainConfig
from jaxalign.training.sft import SFTConfig, train_sft

REWARDS = """
import random

def early(prompts, completions, **columns):
    "1 for an answer that begins with a letter of the first half of the bytes."
    return [float(text[:1] < "a") for text in completions]

def drawn(prompts, completions, log_extra, **columns):
    "A reward with randomness of its own."
    values = [random.random() for _ in completions]
    log_extra("draw", values)
    return values

def longer(prompts, first, second, *, columns):
    "A judge."
    return [None if len(a) == len(b) else len(a) > len(b) for a, b in zip(first, second)]
"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "answers_of.py"
    path.write_text(REWARDS)
    return lambda name: f"{path}:{name}"


@pytest.fixture
def asked(functions):
    """The section `eval`: four prompts, two answers each, two rewards."""

    def made(**changes):
        settings = {
            "every": 2,
            "count": 4,
            "sampling": SamplingConfig(max_new_tokens=6, num_samples=2),
            "reward": RewardSource(functions=(functions("early"), functions("drawn")), weights=(1.0, 0.5)),
        }
        return EvalConfig(generate=GenerateEvalConfig(**(settings | changes)))

    return made


def evaluated(folder):
    """step -> its metrics of answers, without their prefix."""
    rows = records.read(folder / "metrics.jsonl")
    prefix = "eval/generate/"
    found = {
        row["step"]: {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        for row in rows
        if f"{prefix}prompts" in row
    }
    return found


def answered(folder):
    """step -> its answers, as samples.jsonl has them."""
    found = {}
    for row in records.read(folder / "samples.jsonl"):
        if row.get("source") == "eval.generate":
            found.setdefault(row["step"], []).append(row)
    return found


def lasting(folder):
    """What metrics.jsonl and samples.jsonl hold, but for wall-clock times."""
    rows = list(records.read(folder / "metrics.jsonl")) + list(records.read(folder / "samples.jsonl"))
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_sft_answers_held_out_prompts_and_logs_what_the_answers_are(configs, asked, tmp_path):
    result = train_sft(configs.sft(tmp_path / "run", eval=asked()))
    measures, rows = evaluated(result.folder), answered(result.folder)
    assert list(measures) == list(rows) == [0, 2, 4]
    for step, found in measures.items():
        these = rows[step]
        assert [(row["number"], row["sample"]) for row in these] == [(i, j) for i in range(4) for j in (0, 1)]
        early = np.array([float(row["completion"][:1] < "a") for row in these])
        drawn = np.array([row["draw"] for row in these])
        assert [row["score/early"] for row in these] == early.tolist()
        assert found["reward/early"] == found["mean_at_2/early"] == early.mean()
        assert found["pass_at_2/early"] == early.reshape(4, 2).max(1).mean()
        assert found["reward/drawn"] == pytest.approx(drawn.mean(), rel=1e-6)
        assert found["reward"] == pytest.approx((early + 0.5 * drawn).mean(), rel=1e-6)
        assert found["prompts"] == 4
        words = " ".join(row["completion"] for row in these).split()
        if words:
            assert found["distinct_1"] == len(set(words)) / len(words)
        assert 0 < found["length"] <= 6
        # Nothing to measure it from: all weights are trained.
        assert "kl" not in found
    assert result.metrics["eval/generate/reward"] == measures[4]["reward"]
    assert result.metrics["eval/loss"]
    page = (result.folder / "report.html").read_text()
    assert "Answers to held-out prompts" in page
    assert "generate/reward" in page


class Seen(Callback):
    """What callbacks are told of evaluations."""

    def __init__(self):
        self.events = []

    def on_eval(self, event):
        self.events.append(
            (event.step, {name.split("/")[1] for name in event.metrics} - {"generate_seconds"})
        )


@pytest.mark.long
def test_training_has_the_same_bits_with_and_without(configs, asked, tmp_path):
    with_it = train_sft(configs.sft(tmp_path / "with", eval=asked(every=1)))
    without = train_sft(configs.sft(tmp_path / "without"))
    assert exported(with_it.folder) == exported(without.folder)
    ours, theirs = (
        [
            {k: v for k, v in row.items() if not k.startswith(("time/", "eval/generate/"))}
            for row in records.read(run.folder / "metrics.jsonl")
        ]
        for run in (with_it, without)
    )
    shared = [row for row in ours if len(row) > 1]
    merged = {}
    for row in (*theirs, *shared):
        merged.setdefault(row["step"], {}).update(row)
    for row in shared:
        assert row.items() <= merged[row["step"]].items()
    for row in theirs:
        assert any(row.items() <= other.items() for other in shared)


def exported(folder):
    return (folder / "export" / "model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_killed_and_resumed_run_writes_the_same_answers_and_metrics(
    name, configs, asked, functions, tmp_path, monkeypatch
):
    train, settings = {"sft": (train_sft, configs.sft), "dpo": (train_dpo, configs.dpo)}[name]
    section = asked(every=1, judge=functions("longer"))
    whole = train(settings(tmp_path / "whole", eval=section))
    plain, seen = Update.__call__, []

    def killed(self, *arguments):
        seen.append(1)
        if len(seen) == 4:
            raise RuntimeError("killed")
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Update, "__call__", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(settings(tmp_path / "parts", eval=section))
    # It died in step 4; the checkpoint is of step 2, the answers go on to step 3.
    assert max(answered(tmp_path / "parts")) == 3
    config = settings(tmp_path / "parts", eval=section)
    train(replace(config, run=replace(config.run, resume=True)))
    assert lasting(tmp_path / "parts") == lasting(whole.folder)
    assert exported(tmp_path / "parts") == exported(whole.folder)
    # Against the answers of step 0, which the resumed run has read back.
    rows, found = answered(whole.folder), evaluated(whole.folder)
    assert found[0]["win_rate"] == 0.5
    for step in (1, 4):
        pairs = [
            (len(a["completion"]), len(b["completion"])) for a, b in zip(rows[step], rows[0], strict=True)
        ]
        assert found[step]["win_rate"] == np.mean([(np.sign(a - b) + 1) / 2 for a, b in pairs])


@pytest.mark.long
def test_a_metric_of_answers_chooses_the_checkpoint(configs, asked, tmp_path):
    # A reward that is drawn anew at every step.
    best = "eval/generate/reward/drawn"
    run = configs.run(tmp_path / "run", save_every=1, eval_every=0, best_metric=best, best_mode="max")
    result = train_sft(replace(configs.sft(tmp_path / "run", eval=asked(every=1)), run=run))
    rewards = {step: found["reward/drawn"] for step, found in evaluated(result.folder).items() if step}
    chosen = json.loads((result.folder / "metadata.json").read_text())["exported_step"]
    assert len(set(rewards.values())) == 4
    assert chosen == max(rewards, key=lambda step: rewards[step])


@pytest.mark.long
def test_a_metric_of_answers_stops_a_run_and_other_evaluations_do_not_disturb_it(configs, asked, tmp_path):
    seen = Seen()
    config = configs.sft(tmp_path / "run", eval=asked(every=2, metrics=("length",)))
    config = replace(
        config, run=replace(config.run, eval_every=1), train=replace(config.train, steps=20), lora=config.lora
    )
    # Nothing is an improvement: two evaluations of answers after the first end the run.
    stopping = EarlyStopping("eval/generate/length", patience=2, min_delta=100.0)
    result = train_sft(config, callbacks=[seen, stopping])
    assert list(evaluated(result.folder)) == [0, 2, 4]
    both, loss = {"generate", "loss"}, {"loss"}
    kinds = [(step, {"generate", "loss"} & names) for step, names in seen.events]
    assert kinds == [(0, both), (1, loss), (2, both), (3, loss), (4, both)]
    assert json.loads((result.folder / "metadata.json").read_text())["stopped"]["step"] == 4


@pytest.mark.long
def test_a_run_that_answers_end_has_its_loss_measured_at_its_last_step(configs, asked, tmp_path):
    config = configs.sft(tmp_path / "run", eval=asked(every=1, metrics=("length",)))
    config = replace(config, run=replace(config.run, eval_every=4), train=replace(config.train, steps=20))
    stopping = EarlyStopping("eval/generate/length", patience=1, min_delta=100.0)
    result = train_sft(config, callbacks=[stopping])
    losses = [row["step"] for row in records.read(result.folder / "metrics.jsonl") if "eval/loss" in row]
    assert losses == [0, 1]


@pytest.mark.long
@pytest.mark.parametrize("name", ["dpo", "sft with lora"])
def test_the_kl_is_from_the_model_at_the_start(name, configs, asked, tmp_path):
    if name == "dpo":
        result = train_dpo(configs.dpo(tmp_path / "run", eval=asked(metrics=("kl",))))
    else:
        lora = replace(configs.sft(tmp_path / "run").lora, enabled=True, rank=2)
        result = train_sft(configs.sft(tmp_path / "run", eval=asked(metrics=("kl",)), lora=lora))
    found = evaluated(result.folder)
    assert found[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert found[4]["kl"] > 1e-3
    assert found[4]["kl_low"] <= found[4]["kl"] <= found[4]["kl_high"]


@pytest.mark.long
def test_distillation_answers_and_its_student_samples_as_before(configs, asked, tmp_path):
    parts = {name: getattr(configs, name) for name in ("model", "data", "train", "optimizer")}
    shared = {"sampling": SamplingConfig(max_new_tokens=4), "teacher": configs.model, **parts}
    runs = {
        name: train_distill(DistillConfig(run=configs.run(tmp_path / name), **shared, **section))
        for name, section in (("with", {"eval": asked()}), ("without", {}))
    }
    assert list(evaluated(runs["with"].folder)) == [0, 2, 4]
    assert exported(runs["with"].folder) == exported(runs["without"].folder)


@pytest.mark.long
def test_a_doctor_answers_by_itself(configs, asked, tmp_path):
    loss = TFPOLossConfig(preset="tilted")  # which reads the doctor's start
    runs = {
        name: train_tfpo(configs.tfpo(tmp_path / name, loss=loss, **section))
        for name, section in (("with", {"eval": asked()}), ("without", {}))
    }
    found = evaluated(runs["with"].folder)
    assert list(found) == [0, 2, 4]
    assert found[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert found[4]["kl"] > 1e-3
    assert exported(runs["with"].folder) == exported(runs["without"].folder)


@pytest.mark.long
def test_each_of_several_doctors_answers_by_its_own_name(configs, asked, functions, tmp_path):
    config = configs.tfpo(tmp_path / "run", eval=asked(judge=functions("longer")))
    rewards = replace(
        config.rewards,
        positive="",
        negative="",
        instructions={"helpfulness": ("be good", "be bad"), "safety": ("be safe", "be wild")},
    )
    lora = replace(config.lora, enabled=True, rank=2)
    config = replace(config, rewards=rewards, lora=lora, dimensions=("helpfulness", "safety"))
    result = train_tfpo(config)
    rows = answered(result.folder)
    assert [row["dimension"] for row in rows[4]] == ["helpfulness"] * 8 + ["safety"] * 8
    found = [
        row for row in records.read(result.folder / "metrics.jsonl") if "eval/generate/safety/reward" in row
    ]
    assert [row["step"] for row in found] == [0, 2, 4]
    for row in found:
        for name in ("helpfulness", "safety"):
            its = [r["score"] for r in rows[row["step"]] if r["dimension"] == name]
            assert row[f"eval/generate/{name}/reward"] == pytest.approx(np.mean(its))
    # At the start both are the base model, and draw by the same random numbers.
    texts = [[r["completion"] for r in rows[0] if r["dimension"] == d] for d in ("helpfulness", "safety")]
    assert texts[0] == texts[1]
    assert found[-1]["eval/generate/safety/kl"] != found[-1]["eval/generate/helpfulness/kl"]
    page = (result.folder / "report.html").read_text()
    assert "<th>dimension</th><th>prompt</th><th>step 0</th>" in page


@pytest.mark.long
@pytest.mark.parametrize("name", ["ppo", "grpo", "online_dpo"])
def test_rl_evaluates_by_its_own_reward_once_and_learns_the_same(name, configs, asked, tmp_path):
    seen = []

    def reward(prompts, completions, **columns):
        seen.append(len(completions))
        return [float(len(text) % 2) for text in completions]

    def run(folder, **section):
        config = configs.ppo(folder)
        shared = {part: getattr(config, part) for part in ("run", "model", "data", "optimizer", "sampling")}
        size = {"updates": 2, "prompts": 4, "score_batch_size": 8}
        if name == "ppo":
            result = train_ppo(replace(config, train=PPOTrainConfig(**size), **section), reward=reward)
        elif name == "grpo":
            loss = GRPOLossConfig(beta=0.1)
            train = GRPOTrainConfig(**size)
            result = train_grpo(GRPOConfig(**shared, train=train, loss=loss, **section), reward=reward)
        else:
            train = RolloutTrainConfig(**size)
            result = train_online_dpo(OnlineDPOConfig(**shared, train=train, **section), reward=reward)
        return result.folder

    section = asked(every=1, reward=RewardSource(), sampling=SamplingConfig(max_new_tokens=5, num_samples=3))
    whole = run(tmp_path / "with", eval=section)
    # Two rollouts of 4 x 2 completions, three evaluations of 4 x 3, and nothing beside.
    assert sorted(seen) == [8, 8, 12, 12, 12]
    found, rows = evaluated(whole), answered(whole)
    assert list(found) == [0, 1, 2]
    for step, measures in found.items():
        scores = np.array([row["score"] for row in rows[step]])
        assert measures["reward"] == measures["mean_at_3"] == pytest.approx(scores.mean())
        assert measures["pass_at_3"] == pytest.approx(scores.reshape(4, 3).max(1).mean())
    assert found[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert abs(found[2]["kl"]) > 1e-4
    names = {key for row in records.read(whole / "metrics.jsonl") for key in row}
    assert not [key for key in names if key.startswith("eval/") and not key.startswith("eval/generate/")]
    assert exported(whole) == exported(run(tmp_path / "without"))


@pytest.mark.long
def test_a_killed_and_resumed_rl_run_writes_the_same_answers(
    configs, asked, functions, tmp_path, monkeypatch
):
    def config(folder, **run):
        ppo = configs.ppo(folder)
        shared = {part: getattr(ppo, part) for part in ("model", "data", "optimizer", "sampling", "reward")}
        train = GRPOTrainConfig(updates=4, prompts=4, score_batch_size=8)
        section = asked(every=1, judge=functions("longer"))
        # Checkpoints at updates 2 and 4.
        where = configs.run(folder, eval_every=0, **run)
        return GRPOConfig(run=where, train=train, eval=section, **shared)

    whole = train_grpo(config(tmp_path / "whole"))
    plain = GRPOTrainer.update

    def killed(self, number):
        if number == 4:
            raise RuntimeError("killed")
        return plain(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "update", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train_grpo(config(tmp_path / "parts"))
    assert max(answered(tmp_path / "parts")) == 3
    train_grpo(config(tmp_path / "parts", resume=True))
    assert lasting(tmp_path / "parts") == lasting(whole.folder)
    assert exported(tmp_path / "parts") == exported(whole.folder)
    # The section's own reward: the trainer's is another.
    assert "reward/drawn" in evaluated(whole.folder)[4]


def test_rl_has_one_evaluation_of_held_out_prompts(configs, asked, tmp_path):
    config = configs.ppo(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run.eval_every and eval.generate.every: choose one"):
        replace(config, run=configs.run(tmp_path / "run", eval_every=5), eval=asked())
    cold = asked(metrics=("kl",), sampling=SamplingConfig(temperature=0.5))
    with pytest.raises(ValueError, match=r"temperature = sampling.temperature = 1, .*; got 0.5"):
        replace(config, eval=cold)


def test_a_live_reward_scores_the_answers(configs, asked, tmp_path):
    seen = []

    def reward(prompts, completions, **columns):
        seen.append(len(completions))
        return [len(text) / 4 for text in completions]

    section = asked(every=4, reward=RewardSource())
    result = train_sft(configs.sft(tmp_path / "run", eval=section), eval_reward=reward)
    assert seen == [8, 8]
    for step, found in evaluated(result.folder).items():
        lengths = [len(row["completion"]) / 4 for row in answered(result.folder)[step]]
        assert found["reward"] == pytest.approx(np.mean(lengths))
    with pytest.raises(ConfigError, match=r"eval_reward needs eval\.generate\.every above 0$"):
        train_sft(configs.sft(tmp_path / "no"), eval_reward=reward)
    with pytest.raises(ConfigError, match="reward models do not have: they write no text"):
        train_reward(configs.reward(tmp_path / "no"), eval_reward=reward)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"every": -1}, "every must not be negative"),
        ({"count": 0}, "count must be 1 or more"),
        ({"metrics": ("lenght",)}, "no metric 'lenght'; expected some of length, "),
        ({"metrics": ("pass_at_k",), "sampling": SamplingConfig()}, "num_samples of 2 or more"),
        ({"metrics": ("kl",), "sampling": SamplingConfig(temperature=0)}, "temperature above 0"),
        ({"metrics": ("kl",), "sampling": SamplingConfig(top_p=0.9)}, "top_k, top_p"),
        ({"reward": RewardSource(clip=1.0)}, "eval.generate.reward.clip shapes"),
        ({"reward": RewardSource(whiten=True)}, "eval.generate.reward.whiten shapes"),
    ],
)
def test_a_section_that_cannot_be_is_refused(asked, changes, said):
    with pytest.raises(ValueError, match=said):
        asked(**changes)


def test_the_section_is_read_from_the_command_line(functions):
    config = parse(
        SFTConfig,
        None,
        [
            "--eval.generate.every=50",
            "--eval.generate.sampling.num_samples=8",
            "--eval.generate.metrics=[length, pass_at_k]",
            f"--eval.generate.reward.functions=[{functions('early')}]",
        ],
    )
    generate = config.eval.generate
    assert (generate.every, generate.sampling.num_samples) == (50, 8)
    assert generate.metrics == ("length", "pass_at_k")
    assert generate.rewarded


def test_a_reward_model_has_no_text_to_generate():
    with pytest.raises(ConfigError, match=r"eval: .*a reward model writes no text"):
        parse(RewardConfig, None, ["--eval.generate.every=50"])


def test_a_run_without_prompts_or_the_evaluation_that_it_is_chosen_by_does_not_start(
    configs, asked, tmp_path
):
    config = configs.sft(tmp_path / "a", eval=asked())
    nothing = replace(config, data=replace(config.data, validation_fraction=0.0))
    with pytest.raises(
        ConfigError, match=r"eval\.generate\.every=2: no held-out prompts; set eval\.generate\.prompts"
    ):
        train_sft(nothing)
    best = configs.run(tmp_path / "b", best_metric="eval/generate/reward")
    with pytest.raises(ConfigError, match=r"best_metric=eval/generate/reward needs eval\.generate\.every"):
        train_sft(replace(configs.sft(tmp_path / "b"), run=best))
    best = configs.run(tmp_path / "c", best_metric="eval/generate/rewrad")
    with pytest.raises(
        ConfigError, match=r"expected one of eval/generate/distinct_1, .*eval/generate/reward,"
    ):
        train_sft(replace(configs.sft(tmp_path / "c", eval=asked()), run=best))
    with pytest.raises(ConfigError, match="no prompt leaves room"):
        train_sft(configs.sft(tmp_path / "d", eval=asked(sampling=SamplingConfig(max_new_tokens=60))))
