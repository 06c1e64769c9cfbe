"""MT-bench's figures are means of what the judge said, over what it was asked."""

import math
import re

import numpy as np
import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.judging.mt_bench import BenchQuestion, JudgePrompt
from jaxalign.evaluation.judging.mt_bench_scores import (
    Judged,
    compare_answers,
    pair_scores,
    rate_answers,
    rating_scores,
)

TEMPLATES = {
    "single-v1": "{answer}",
    "single-v1-multi-turn": "{answer_1} {answer_2}",
    "pair-v2": "A={answer_a} B={answer_b}",
    "pair-v2-multi-turn": "A={answer_a_2} B={answer_b_2}",
}
PROMPTS = {
    name: JudgePrompt(
        name=name, system="", template=template, verdict="choice" if name.startswith("pair") else "rating"
    )
    for name, template in TEMPLATES.items()
}
QUESTIONS = [
    BenchQuestion(place="q:1", question_id=81, category="writing", turns=("One?", "Two?")),
    BenchQuestion(place="q:2", question_id=82, category="stem", turns=("One?", "Two?")),
]


def judged(value, *, question=81, turn=1, category="writing", contradicted=False):
    return Judged(question_id=question, category=category, turn=turn, value=value, contradicted=contradicted)


def test_each_turn_is_rated_once_and_its_text_kept():
    asked = []

    def ask(conversations):
        asked.extend(conversation[-1]["content"] for conversation in conversations)
        return ["[[4]]", "[[5]]", "no idea", "[[10]]"]

    found = rate_answers(QUESTIONS, {81: ("a", "b"), 82: ("c", "d"), 83: ("e", "f")}, PROMPTS, ask)
    assert asked == ["a", "a b", "c", "c d"]
    assert [(one.question_id, one.turn, one.value) for one in found] == [
        (81, 1, 4.0),
        (81, 2, 5.0),
        (82, 1, None),
        (82, 2, 10.0),
    ]
    assert found[2].texts == ("no idea",)


def test_both_orders_are_asked_and_a_verdict_counts_where_they_agree():
    # Which answer this judge calls the longer one, but for x, where it takes the first.
    def ask(conversations):
        texts = []
        for conversation in conversations:
            a, b = re.fullmatch("A=(.*) B=(.*)", conversation[-1]["content"]).groups()
            better = "A" if "x" in a + b or len(a) > len(b) else "C" if len(a) == len(b) else "B"
            texts.append("?" if "mute" in a + b else f"[[{better}]]")
        return texts

    ours = {81: ("long", "s"), 82: ("xx", "mute")}
    theirs = {81: ("s", "long"), 82: ("x", "y")}
    found = compare_answers(QUESTIONS, ours, theirs, PROMPTS, ask)
    assert [one.value for one in found] == [1.0, 0.0, 0.5, None]
    assert [one.contradicted for one in found] == [False, False, True, False]
    other = compare_answers(QUESTIONS, theirs, ours, PROMPTS, ask)
    assert [one.value for one in other] == [0.0, 1.0, 0.5, None]
    scores = pair_scores(found)
    assert (scores.wins, scores.ties, scores.losses, scores.contradicted) == (1, 1, 1, 1)
    assert (scores.overall.mean, scores.overall.count, scores.overall.unread) == (0.5, 3, 1)


def test_a_said_tie_is_no_contradiction():
    found = compare_answers(
        QUESTIONS[:1], {81: ("a", "b")}, {81: ("c", "d")}, PROMPTS, lambda c: ["[[C]]"] * len(c)
    )
    assert [(one.value, one.contradicted) for one in found] == [(0.5, False)] * 2


def test_means_are_taken_over_turns_and_categories():
    found = rating_scores(
        [
            judged(2.0),
            judged(4.0, turn=2),
            judged(9.0, question=82, category="stem"),
            judged(None, question=82, category="stem", turn=2),
        ]
    )
    assert found.overall.mean == 5.0 and (found.overall.count, found.overall.unread) == (3, 1)
    assert {turn: score.mean for turn, score in found.turns.items()} == {1: 5.5, 2: 4.0}
    assert {name: score.mean for name, score in found.categories.items()} == {"writing": 3.0, "stem": 9.0}
    assert found.turns[2].unread == found.categories["stem"].unread == 1
    assert found.overall.low <= 5.0 <= found.overall.high


def test_turns_of_a_question_are_drawn_together():
    rng = np.random.default_rng(0)
    values = rng.integers(1, 11, 40).astype(float)
    once = rating_scores([judged(v, question=i) for i, v in enumerate(values)], seed=1).overall
    # The same verdicts twice are no more evidence.
    twice = [judged(v, question=i, turn=turn) for i, v in enumerate(values) for turn in (1, 2)]
    both = rating_scores(twice, seed=1).overall
    assert (both.low, both.high) == pytest.approx((once.low, once.high)) and both.count == 80
    width = 2 * 1.96 * values.std() / math.sqrt(40)
    assert once.high - once.low == pytest.approx(width, rel=0.15)


def test_where_nothing_was_read_there_is_no_mean():
    found = rating_scores([judged(None), judged(None, turn=2)])
    assert math.isnan(found.overall.mean) and (found.overall.count, found.overall.unread) == (0, 2)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="at least one judged turn"):
        rating_scores([])
    with pytest.raises(DataError, match="q:2: question 82 has no answer"):
        rate_answers(QUESTIONS, {81: ("a", "b")}, PROMPTS, lambda c: ["[[1]]"] * len(c))
    with pytest.raises(ValueError, match="asked 2 times and answered 1 times"):
        rate_answers(QUESTIONS[:1], {81: ("a", "b")}, PROMPTS, lambda c: ["[[1]]"])
