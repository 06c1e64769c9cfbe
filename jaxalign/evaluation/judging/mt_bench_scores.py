"""MT-bench's figures: mean rating of each turn and category, and win rates of pairs that are shown in both orders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.errors import DataError
from jaxalign.evaluation.judging.mt_bench import (
    BenchQuestion,
    JudgePrompt,
    Message,
    Turns,
    pair_messages,
    rating_messages,
)
from jaxalign.evaluation.judging.verdicts import agreed_win, read_choice, read_rating, unread
from jaxalign.uncertainty import bootstrap_interval

# Conversations -> a judge's texts, in the same order.
Ask = Callable[[Sequence[Sequence[Message]]], Sequence[str]]
Answers = Mapping[int | str, Turns]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict on one turn.

    Attributes:
      question_id, category, turn: on what.
      value: a rating, or of a pair 1 (win), 0.5 (tie), 0 (loss); None where the judge's text had no verdict.
      texts: what the judge said; of a pair in both orders.
      contradicted: the two orders of a pair chose different answers, or one of them a tie.
    """

    question_id: int | str
    category: str
    turn: int
    value: float | None
    texts: Turns = ()
    contradicted: bool = False


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean of verdicts.

    Attributes:
      mean: NaN where there is no verdict.
      low, high: bootstrap interval over questions, whose turns stay together.
      count: verdicts.
      unread: texts without a verdict, which no mean counts.
    """

    mean: float
    low: float
    high: float
    count: int
    unread: int


@dataclass(frozen=True, kw_only=True)
class BenchScores:
    """The figures of a model.

    Attributes:
      overall: over all turns of all questions.
      turns: of each turn.
      categories: of each category, both turns.
    """

    overall: Score
    turns: Mapping[int, Score]
    categories: Mapping[str, Score]


@dataclass(frozen=True, kw_only=True)
class PairScores(BenchScores):
    """Win rates in [0, 1], a tie a half.

    Attributes:
      wins, ties, losses: turns with a verdict in both orders.
      contradicted: those ties in which the orders disagreed: how far the judge goes by the place.
    """

    wins: int
    ties: int
    losses: int
    contradicted: int


def rate_answers(
    questions: Sequence[BenchQuestion],
    answers: Answers,
    prompts: Mapping[str, JudgePrompt],
    ask: Ask,
) -> list[Judged]:
    """Has a judge rate each turn from 1 to 10.

    Args:
      questions, answers, prompts: as `mt_bench` reads them; every question must be answered.
      ask: the judge; asked once for all.

    Raises:
      DataError: a question without an answer or a reference.
    """
    turns = _turns(questions)
    texts = _asked(ask, [rating_messages(q, _answer(answers, q), turn, prompts) for q, turn in turns])
    return [_judged(q, turn, read_rating(text), text) for (q, turn), text in zip(turns, texts, strict=True)]


def compare_answers(
    questions: Sequence[BenchQuestion],
    answers: Answers,
    baseline_answers: Answers,
    prompts: Mapping[str, JudgePrompt],
    ask: Ask,
) -> list[Judged]:
    """Has a judge compare each turn with a baseline's, in both orders; a verdict counts where both agree.

    For arguments and errors see `rate_answers`.
    """
    turns = _turns(questions)
    asked = []
    for question, turn in turns:
        ours, theirs = _answer(answers, question), _answer(baseline_answers, question)
        for a, b in ((ours, theirs), (theirs, ours)):
            asked.append(pair_messages(question, a, b, turn, prompts))
    texts = _asked(ask, asked)
    found = []
    for (question, turn), first, second in zip(turns, texts[::2], texts[1::2], strict=True):
        choices = read_choice(first), read_choice(second)
        win = agreed_win(*choices)
        against = win == 0.5 and choices != ("tie", "tie")
        found.append(_judged(question, turn, win, first, second, contradicted=against))
    return found


def rating_scores(judged: Sequence[Judged], *, confidence: float = 0.95, seed: int = 0) -> BenchScores:
    """Mean ratings. Every turn counts the same, as in FastChat's `show_result.py`.

    Args:
      judged: of one model.
      confidence: of the intervals, in (0, 1).
      seed: of the bootstrap.

    Raises:
      ValueError: nothing was judged.
    """
    if not judged:
        raise ValueError("expected at least one judged turn")

    def score(part: Sequence[Judged]) -> Score:
        return _score(part, confidence, seed)

    return BenchScores(
        overall=score(judged),
        turns={n: score([x for x in judged if x.turn == n]) for n in sorted({x.turn for x in judged})},
        categories={
            name: score([x for x in judged if x.category == name])
            for name in dict.fromkeys(x.category for x in judged)
        },
    )


def pair_scores(judged: Sequence[Judged], *, confidence: float = 0.95, seed: int = 0) -> PairScores:
    """Win rates over the baseline; for arguments and errors see `rating_scores`."""
    scores = rating_scores(judged, confidence=confidence, seed=seed)
    values = [one.value for one in judged]
    return PairScores(
        overall=scores.overall,
        turns=scores.turns,
        categories=scores.categories,
        wins=values.count(1.0),
        ties=values.count(0.5),
        losses=values.count(0.0),
        contradicted=sum(one.contradicted for one in judged),
    )


def _score(part: Sequence[Judged], confidence: float, seed: int) -> Score:
    """A mean and its interval; questions are drawn, for two turns of one are not independent."""
    sums: dict[int | str, list[float]] = {}
    for one in part:
        if one.value is not None:
            total = sums.setdefault(one.question_id, [0.0, 0.0])
            total[0] += one.value
            total[1] += 1
    without = unread([one.value for one in part])
    if not sums:
        return Score(mean=np.nan, low=np.nan, high=np.nan, count=0, unread=without)
    rows = np.asarray(list(sums.values()))

    def mean(drawn: np.ndarray) -> float:
        return float(drawn[:, 0].sum() / drawn[:, 1].sum())

    low, high = bootstrap_interval(rows, seed=seed, statistic=mean, confidence=confidence)
    return Score(mean=mean(rows), low=low, high=high, count=int(rows[:, 1].sum()), unread=without)


def _judged(
    question: BenchQuestion, turn: int, value: float | None, *texts: str, contradicted: bool = False
) -> Judged:
    return Judged(
        question_id=question.question_id,
        category=question.category,
        turn=turn,
        value=value,
        texts=texts,
        contradicted=contradicted,
    )


def _turns(questions: Sequence[BenchQuestion]) -> list[tuple[BenchQuestion, int]]:
    return [(question, turn) for question in questions for turn in range(1, len(question.turns) + 1)]


def _answer(answers: Answers, question: BenchQuestion) -> Turns:
    if question.question_id not in answers:
        raise DataError(f"{question.place}: question {question.question_id} has no answer")
    return answers[question.question_id]


def _asked(ask: Ask, conversations: Sequence[Sequence[Message]]) -> list[str]:
    texts = list(ask(conversations))
    if len(texts) != len(conversations):
        raise ValueError(f"the judge was asked {len(conversations)} times and answered {len(texts)} times")
    return texts
