"""Answers in the eyes of a judge: AlpacaEval's win rates, MT-bench's ratings, ratings of answers to any prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.evaluation.benchmarks import BENCHMARKS, Measure
from jaxalign.evaluation.judging.judges import ModelJudge, RewardModelJudge
from jaxalign.evaluation.judging.length_control import length_controlled_win_rate
from jaxalign.evaluation.judging.mt_bench import BenchQuestion, JudgePrompt
from jaxalign.evaluation.judging.mt_bench_scores import Score, rate_answers, rating_scores
from jaxalign.evaluation.summary import Figure, Item, figure
from jaxalign.evaluation.tasks.written import Written

Row = Mapping[str, Any]
# A length-controlled rate is an extrapolation where nearly all answers are longer, or shorter, than the baseline's.
ONE_SIDED = 0.9


def prompt_text(question: Written) -> str:
    """A question as the judge reads it: a text, or what the user said last."""
    return question.prompt if isinstance(question.prompt, str) else question.prompt[-1].content


def judge_pairs(
    questions: Sequence[Written], items: Sequence[Item], judge: ModelJudge | RewardModelJudge, *, seed: int
) -> list[str]:
    """Adds `win_rate` to each item: the judge prefers its first answer to the baseline's; sides are random.

    Returns:
      What a reader must know: how many verdicts could not be read.
    """
    swapped = np.random.default_rng(seed).random(len(items)) < 0.5
    pairs = [
        (item["answers"][0], question.references[0]) for item, question in zip(items, questions, strict=True)
    ]
    shown = [(b, a) if swap else (a, b) for (a, b), swap in zip(pairs, swapped, strict=True)]
    said = judge(
        [prompt_text(question) for question in questions],
        [a for a, _ in shown],
        [b for _, b in shown],
        columns={},
    )
    for item, swap, first in zip(items, swapped, said, strict=True):
        item["scores"]["win_rate"] = None if first is None else float(1 - first if swap else first)
        item["judge"] = {"first_shown": "baseline" if swap else "model", "prefers_first": first}
    return _unread(judge)


def length_controlled_figure(
    items: Sequence[Item], questions: Sequence[Written], *, seed: int = 0
) -> tuple[Figure, list[str]]:
    """AlpacaEval's win rate at equal lengths, as a part of 1; and what a reader must know of it."""
    measure = BENCHMARKS["alpaca_eval"].measures["length_controlled"]
    judged = [
        (item["scores"]["win_rate"], len(item["answers"][0]), len(question.references[0]))
        for item, question in zip(items, questions, strict=True)
        if item["scores"]["win_rate"] is not None
    ]
    if len(judged) < 2:
        return figure([], measure), []
    found = length_controlled_win_rate(*zip(*judged, strict=True), seed=seed)
    value = figure([], measure) | {
        "value": found.win_rate / 100,
        "low": found.low / 100,
        "high": found.high / 100,
        "count": len(judged),
    }
    notes = [
        "length_controlled is fitted without AlpacaEval's instruction difficulty: not the leaderboard's figure"
    ]
    longer = float(np.mean([ours > theirs for _, ours, theirs in judged]))
    if not 1 - ONE_SIDED <= longer <= ONE_SIDED:
        notes.append(
            f"{longer:.0%} of the answers are longer than the baseline's: length_controlled extrapolates"
        )
    return value, notes


def judge_turns(
    questions: Sequence[BenchQuestion],
    rows: Mapping[int, Row],
    prompts: Mapping[str, JudgePrompt],
    ask: Callable[[Any], Sequence[str]],
    *,
    seed: int = 0,
) -> tuple[list[Item], dict[str, Any], list[str]]:
    """MT-bench's items, figures (of all and by category) and what a reader must know."""
    answers = {q.question_id: tuple(rows[i]["turns"]) for i, q in enumerate(questions)}
    judged = rate_answers(questions, answers, prompts, ask)
    scores = rating_scores(judged, seed=seed)
    by_question: dict[Any, list[Any]] = {}
    for one in judged:
        by_question.setdefault(one.question_id, []).append(one)
    items = []
    for i, question in enumerate(questions):
        verdicts = by_question[question.question_id]
        read = [one.value for one in verdicts if one.value is not None]
        turns = zip(question.turns, rows[i]["turns"], strict=True)
        items.append(
            {
                "index": i,
                "place": question.place,
                "group": question.category,
                "prompt": [{"role": "user", "content": text} for text in question.turns],
                "answers": ["\n\n".join(f"[{said}]\n{answer}" for said, answer in turns)],
                "references": list(question.reference),
                "scores": {"rating": float(np.mean(read)) if read else None},
                "judge": {
                    "ratings": [one.value for one in verdicts],
                    "texts": [t for one in verdicts for t in one.texts],
                },
            }
        )
    about = BENCHMARKS["mt_bench"].measures["rating"]
    metrics = {"rating": _figure(scores.overall, about)}
    for turn, score in scores.turns.items():
        metrics[f"rating_turn_{turn}"] = _figure(score, Measure(f"mean rating of turn {turn}"))
    groups = {name: {"rating": _figure(score, about)} for name, score in sorted(scores.categories.items())}
    notes = [f"{scores.overall.unread} of the judge's {len(judged)} texts had no rating"] * bool(
        scores.overall.unread
    )
    if cut := sum(any(rows[i]["prompt_cut"]) for i in range(len(questions))):
        notes.append(f"{cut} questions were longer than the context: their beginning was left out")
    return items, {"metrics": metrics, "groups": groups}, notes


def rate(
    questions: Sequence[Written], items: Sequence[Item], judge: ModelJudge | RewardModelJudge
) -> list[str]:
    """Adds `rating`, 1 to 10, to each item: the judge's of its first answer; see `judge_pairs` for what it returns."""
    said = judge.rate(
        [prompt_text(question) for question in questions], [item["answers"][0] for item in items]
    )
    for item, rating in zip(items, said, strict=True):
        item["scores"]["rating"] = rating
    return _unread(judge)


def _figure(score: Score, measure: Measure) -> Figure:
    read = score.count > 0
    return figure([], measure) | {
        "value": score.mean if read else None,
        "low": score.low if read else None,
        "high": score.high if read else None,
        "count": score.count,
    }


def _unread(judge: ModelJudge | RewardModelJudge) -> list[str]:
    return [f"{judge.unread} of the judge's {judge.asked} texts had no verdict"] * bool(judge.unread)
