"""Items and figures from answers."""

import numpy as np
import pytest

from jaxalign.evaluation import summary
from jaxalign.evaluation.benchmarks import Measure
from jaxalign.evaluation.tasks.written import Written
from jaxalign.uncertainty import wilson_interval

QUESTIONS = [Written("x:1", "one"), Written("x:2", "two", group="b")]


def row(*answers):
    return {
        "answers": list(answers),
        "tokens": [[1] * len(answer) for answer in answers],
        "count": [len(answer) for answer in answers],
        "finish_reason": ["stop"] * (len(answers) - 1) + ["length"],
        "prompt_cut": 0,
    }


def test_scores_of_several_answers_are_their_mean_and_the_best_of_0_and_1():
    rows = {0: row("a", "bb", "a", "bb"), 1: row("a", "a", "a", "a")}
    items = summary.written_items(
        QUESTIONS,
        rows,
        lambda question, answer: {"even": float(len(answer) % 2 == 0), "length": len(answer) / 2},
    )
    assert [item["scores"]["even"] for item in items] == [0.5, 0.0]
    assert [item["scores"]["even_pass@4"] for item in items] == [1.0, 0.0]
    assert [item["scores"]["length"] for item in items] == [0.75, 0.5]
    # Lengths are no 0 or 1.
    assert "length_pass@4" not in items[0]["scores"]
    assert items[0]["scores"]["tokens"] == 1.5 and items[0]["scores"]["stopped"] == 0.75


def test_rates_have_wilsons_interval_also_where_all_are_alike_and_other_numbers_none_then():
    rate = summary.figure([1.0] * 8, Measure("", rate=True))
    assert (rate["low"], rate["high"]) == wilson_interval(8, 8)
    number = summary.figure([1.0] * 8, Measure(""))
    assert number["low"] == number["high"] == 1.0
    assert summary.figure([], Measure(""))["value"] is None


def test_items_without_a_score_are_left_out_of_its_figure():
    items = [
        {"scores": {"x": 1.0}, "group": ""},
        {"scores": {"x": None}, "group": ""},
        {"scores": {}, "group": ""},
    ]
    found = summary.figures(items, {"x": Measure("")})["x"]
    assert found["value"] == 1.0 and found["count"] == 1


def test_groups_of_a_few_questions_are_not_told():
    items = [{"scores": {"x": float(i)}, "group": "large" if i < 6 else "small"} for i in range(8)]
    groups = summary.by_group(items, {"x": Measure("")})
    assert groups.keys() == {"large"} and groups["large"]["x"]["value"] == np.mean(range(6))
    assert summary.by_group(items[:6], {"x": Measure("")}) == {}


def test_perplexity_counts_tokens_and_bits_count_bytes():
    texts = [Written("x:1", "ab"), Written("x:2", "é")]
    rows = {0: {"logp": -2.0, "tokens": 1}, 1: {"logp": -4.0, "tokens": 2}}
    found = summary.text_figures(texts, rows, {"perplexity": Measure(""), "bits_per_byte": Measure("")})
    assert found["perplexity"]["value"] == pytest.approx(np.exp(6 / 3))
    assert found["bits_per_byte"]["value"] == pytest.approx(6 / np.log(2) / 4)
