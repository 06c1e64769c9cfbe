"""Figures, wins and tests, from cells put together by hand."""

import numpy as np
import pytest

from jaxalign.evaluation.metrics.significance import holm, paired_bootstrap
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_report import along, notes_of, pictures_of, seed_rows
from jaxalign.pipelines.compare_results import (
    figure,
    results_of,
    rows_of,
    significance_rows,
    table_of,
    verdicts,
    wins,
)
from jaxalign.training.core.reward_source import RewardSource

GOLD = RewardSource(functions=("f.py:f",))
RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(2, 30))


def cell(method, seed, gold, **others):
    kind = {"sft": None, "best_of_n": None}.get(method, "trained")
    training = {
        "seconds": 2.0 + seed,
        "tokens": 100,
        "steps": 4,
        "trainable": 1234,
        "metrics": {},
        "curve": [],
        "host_bytes": 2**30,
    }
    scores = {
        "gold": list(gold),
        "proxy": [1.0] * len(gold),
        "kl": [0.5] * len(gold),
        "tokens": [8.0] * len(gold),
    }
    return {
        "method": method,
        "seed": seed,
        "training": training if kind else None,
        "scores": scores | others,
        "notes": [],
        "benchmarks": {},
    }


def results(*cells, methods=("sft", "dpo", "kto"), gold=GOLD, **options):
    config = CompareConfig(model="base", seeds=(0, 1), methods=methods, gold=gold, **options)
    return results_of(config, cells, beginnings={}, errors={}, overlap={"shared": 1, "of": 30})


def several(shift=1.0):
    baseline = [cell("sft", seed, BASE[seed]) for seed in (0, 1)]
    dpo = [cell("dpo", seed, BASE[seed] + shift + 0.1 * RNG.normal(size=30)) for seed in (0, 1)]
    kto = [cell("kto", seed, RNG.normal(size=30)) for seed in (0, 1)]
    return [*baseline, *dpo, *kto]


def test_a_figure_is_the_mean_over_prompts_of_means_over_seeds():
    found = figure([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]])
    assert found["value"] == 4.0 and found["seeds"] == [3.0, 5.0]
    assert 2.0 <= found["low"] < 4.0 < found["high"] <= 7.0
    assert found["deviation"] == pytest.approx(np.std([1, 2, 6, 3, 4, 8]))


def test_a_prompt_without_a_score_in_one_seed_counts_in_none():
    assert figure([[1.0, None, 5.0], [3.0, 100.0, 5.0]])["seeds"] == [3.0, 4.0]
    assert figure([[None], [1.0]])["value"] is None


def test_wins_are_over_the_answer_of_the_same_prompt_and_seed():
    one, other = cell("dpo", 0, [1.0, 2.0, 3.0, None]), cell("sft", 0, [2.0, 2.0, 1.0, 1.0])
    assert wins(one, other, "gold") == [0.0, 0.5, 1.0, None]
    assert wins({"scores": {"judge": [1.0, None]}}, other, "judge") == [1.0, None]


def test_tests_are_paired_over_prompts_and_corrected_over_all_of_them():
    cells = several()
    found = results(*cells)["tests"]
    assert [(test["method"], test["measure"]) for test in found] == [("dpo", "gold"), ("kto", "gold")]
    means = [np.mean([c["scores"]["gold"] for c in cells if c["method"] == m], 0) for m in ("dpo", "kto")]
    expected = [paired_bootstrap(mean, BASE.mean(0), seed=0) for mean in means]
    assert [test["mean"] for test in found] == pytest.approx([test.mean for test in expected])
    assert [t["adjusted_p"] for t in found] == pytest.approx(holm([t.p_value for t in expected]).tolist())
    assert found[0]["adjusted_p"] < 0.001 < found[1]["adjusted_p"]


def test_a_method_that_lost_a_seed_is_compared_on_the_others():
    cells = [c for c in several() if (c["method"], c["seed"]) != ("dpo", 0)]
    test = results(*cells)["tests"][0]
    theirs = np.asarray(next(c for c in cells if c["method"] == "dpo")["scores"]["gold"])
    assert test["mean"] == pytest.approx(float((theirs - BASE[1]).mean()))


def test_the_verdict_names_winners_losers_and_what_was_not_shown():
    lines = verdicts(results(*several()))
    assert lines[0].startswith("better than sft by gold: dpo (largest mean difference: dpo, +")
    assert lines[1] == "no difference from sft shown: kto"
    assert "30 prompts (means over 2 seeds); Holm over 2 tests" in lines[2]
    assert verdicts(results(*several(-1.0)))[0] == "worse than sft by gold: dpo"


def test_few_prompts_are_warned_of():
    cells = [cell(m, s, [0.0, 1.0, 2.0]) for m in ("sft", "dpo") for s in (0, 1)]
    assert (
        verdicts(results(*cells, methods=("sft", "dpo")))[-1]
        == "under 20 prompts these intervals are too narrow"
    )


def test_a_benchmark_is_tested_by_its_questions_and_shown_by_its_headline():
    cells = several()
    for c in cells:
        right = [1.0] * 20 if c["method"] == "dpo" else [0.0, 1.0] * 10
        c["benchmarks"] = {
            "medqa": {"measure": "accuracy", "value": np.mean(right), "low": 0.1, "high": 0.9, "better": "higher",
                      "items": right}
        }  # fmt: skip
    found = results(*cells)
    medqa = {test["method"]: test for test in found["tests"] if test["measure"] == "medqa accuracy"}
    assert (medqa["dpo"]["mean"], medqa["kto"]["mean"], medqa["kto"]["p_value"]) == (0.5, 0.0, 1.0)
    assert len(found["tests"]) == 4
    assert rows_of(found)[1]["medqa accuracy"] == "1 [0.1, 0.9]"


def test_a_judge_decides_where_there_is_no_gold_reward_and_is_held_against_a_half():
    from jaxalign.evaluation.judging.config import JudgeConfig

    cells = [cell("sft", s, [None] * 30) for s in (0, 1)]
    cells += [cell("dpo", s, [None] * 30, judge=[1.0] * 24 + [0.0] * 6) for s in (0, 1)]
    found = results(*cells, methods=("sft", "dpo"), gold=RewardSource(), judge=JudgeConfig(model="judge"))
    assert found["decided_by"] == "judge"
    assert found["methods"]["dpo"]["figures"]["win_rate"]["value"] == pytest.approx(0.8)
    assert found["tests"][0]["mean"] == pytest.approx(0.3)
    assert verdicts(found)[0].startswith("better than sft by judge: dpo")


def test_the_table_has_costs_and_a_bound_for_best_of_n():
    cells = [*several()[:4], *(cell("best_of_n", s, BASE[s]) for s in (0, 1))]
    rows = {row["method"]: row for row in rows_of(results(*cells, methods=("sft", "dpo", "best_of_n")))}
    assert (rows["dpo"]["train s"], rows["dpo"]["trainable"], rows["dpo"]["peak GiB"]) == (
        "2.5",
        "1,234",
        "1.00",
    )
    assert (rows["sft"]["train s"], rows["sft"]["win rate"]) == ("-", "-")
    assert rows["best_of_n"]["KL (nats)"] == "<= 0.5"
    assert rows["best_of_n"]["win rate"].startswith("50% [")
    assert len({len(line) for line in table_of(results(*several())).splitlines()}) == 1


def test_the_report_says_what_decides_and_how_many_prompts_were_trained_on():
    notes = notes_of(results(*several()))
    assert any("by the gold reward, which no method saw" in note for note in notes)
    assert "1 of the 30 different held-out prompts are among the training prompts." in notes
    assert seed_rows(results(*several()))[0]["gold"].count("to") == 1
    assert significance_rows(results(*several()))[0]["method"] == "dpo"


def test_a_curve_is_in_deviations_of_the_supervised_model_averaged_over_seeds():
    baseline = {"gold": {"value": 1.0, "deviation": 2.0}, "proxy": {"value": 0.0, "deviation": 0.5}}
    curves = [
        [{"update": u, "kl": u + s, "gold": 1.0 + 2 * u, "proxy": u / 2 + s} for u in (0, 4)]
        for s in (0.0, 1.0)
    ]
    assert along(curves, baseline) == {"proxy": ([0.5, 4.5], [1.0, 5.0]), "gold": ([0.5, 4.5], [0.0, 4.0])}
    curves[0][0]["kl"] = None
    assert along(curves, baseline) == {}


def test_pictures_are_a_frontier_of_each_reward_and_a_curve_of_each_run():
    cells = several()
    for c in cells[2:4]:
        c["training"]["curve"] = [{"update": u, "kl": float(u), "gold": 0.1, "proxy": 2.0} for u in (0, 1)]
        c["scores"]["proxy"] = list(BASE[0])
    for c in cells[:2]:
        c["scores"]["proxy"] = list(BASE[0])
    titles = [title for title, _ in pictures_of(results(*cells))]
    assert titles == ["Frontier: gold reward by KL", "Frontier: proxy reward by KL", "Over-optimisation: dpo"]
