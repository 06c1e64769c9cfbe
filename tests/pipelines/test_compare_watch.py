"""What a run cost is added up from its records; a curve has the held-out rewards alone."""

import json

import pytest

from jaxalign.pipelines.compare_watch import Curve, Watched, cost_of
from jaxalign.rewards import RewardRequest
from jaxalign.runs import Event


def run_folder(folder, rows, config=None):
    folder.mkdir()
    metadata = {"training": {"trained_parameters": 12}, "final_metrics": {"eval/loss": 1.5}, "config": config}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_records_are_means_over_the_steps_since_the_last_one(tmp_path):
    rows = [
        {"step": 0, "eval/loss": 3.0},
        {"step": 1, "time/step_seconds": 5.0, "time/tokens_per_second": 20.0},
        {"step": 4, "time/step_seconds": 0.5, "time/tokens_per_second": 100.0},
        {"step": 4, "eval/loss": 2.0},
        {"step": 6, "time/step_seconds": 1.0, "time/tokens_per_second": 30.0},
    ]
    found = cost_of(run_folder(tmp_path / "run", rows), sampled=False)
    assert found["seconds"] == 5.0 + 3 * 0.5 + 2 * 1.0
    assert found["tokens"] == 100 + 3 * 50 + 2 * 30
    assert (found["steps"], found["trainable"], found["metrics"]) == (6, 12, {"eval/loss": 1.5})


def test_tokens_of_a_run_that_samples_are_those_of_its_completions(tmp_path):
    times = {"time/sample_seconds": 1.0, "time/score_seconds": 2.0, "time/optimize_seconds": 3.0}
    rows = [
        {"step": 0, "eval/kl": 0.0},
        {"step": 1, "rollout/length": 10.0, **times},
        {"step": 3, "rollout/length": 20.0, **times},
    ]
    config = {"train": {"prompts": 4}, "sampling": {"num_samples": 2}}
    found = cost_of(run_folder(tmp_path / "run", rows, config), sampled=True)
    assert (found["seconds"], found["tokens"], found["steps"]) == (18.0, 8 * 10 + 2 * 8 * 20, 3)


def request(*completions):
    return RewardRequest(
        prompts=["p"] * len(completions),
        completions=list(completions),
        prompt_ids=[[1]] * len(completions),
        completion_ids=[[1]] * len(completions),
        columns={},
        width=1,
    )


def letters(prompts, completions, **columns):
    return [float(len(c)) for c in completions]


def exclamations(prompts, completions, **columns):
    return [float(c.count("!")) for c in completions]


def event(step, **metrics):
    return Event(command="grpo", folder=None, step=step, total=4, metrics=metrics)


def test_the_gold_reward_is_watched_and_has_no_weight():
    reward = Watched({"proxy": letters, "gold": exclamations}, {"proxy": 1.0, "gold": 0.0})
    assert reward.score(request("ab", "cde!")).scores.tolist() == [2.0, 4.0]
    reward.score(request("!"))
    # Means over all three rows: (2 + 4 + 1) / 3 letters, (0 + 1 + 1) / 3 marks.
    assert reward.taken() == {"proxy": pytest.approx(7 / 3), "gold": pytest.approx(2 / 3)}
    assert reward.taken() == {}


def test_a_curve_leaves_out_what_training_sampled_and_survives_a_resume():
    reward = Watched({"proxy": letters}, {"proxy": 1.0})
    curve = Curve(reward)
    reward.score(request("ab"))
    curve.on_eval(event(0, **{"eval/kl": 0.0}))
    reward.score(request("of the rollout"))
    curve.on_step(event(1))
    reward.score(request("abcd"))
    curve.on_eval(event(1, **{"eval/kl": 0.5}))
    assert curve.points == [{"update": 0, "kl": 0.0, "proxy": 2.0}, {"update": 1, "kl": 0.5, "proxy": 4.0}]
    again = Curve(reward)
    again.restore(json.loads(json.dumps(curve.state())))
    reward.score(request("abc"))
    again.on_eval(event(1, **{"eval/kl": 0.4}))  # a resumed run evaluates the step of its checkpoint anew
    assert again.points == [{"update": 0, "kl": 0.0, "proxy": 2.0}, {"update": 1, "kl": 0.4, "proxy": 3.0}]
