"""Asks a model the questions of a benchmark, and keeps what it answers as rows of `KeptAnswers`."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.data.records import Message
from jaxalign.evaluation.judging.mt_bench import BenchQuestion
from jaxalign.evaluation.kept_answers import KeptAnswers
from jaxalign.evaluation.likelihood import Likelihoods
from jaxalign.evaluation.subject import Answer, Asked, Subject
from jaxalign.evaluation.tasks.choices import Choices
from jaxalign.evaluation.tasks.written import Written

Tell = Callable[[str], Any]


class Counter:
    """Tells how many questions are done, every few seconds.

    Args:
      task: what they are of.
      total: how many in all.
      done: how many were there before.
      tell: takes a line.
    """

    SECONDS = 10.0

    def __init__(self, task: str, total: int, done: int, tell: Tell) -> None:
        self.task, self.total, self.done, self.tell = task, total, done, tell
        self.began = self.last = time.monotonic()
        self.new = 0

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done, self.new = self.done + count, self.new + count
        now = time.monotonic()
        if now - self.last >= self.SECONDS and self.done < self.total:
            left = (now - self.began) / self.new * (self.total - self.done)
            self.tell(f"{self.task}: {self.done:,} of {self.total:,}, about {_duration(left)} left")
            self.last = now


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def ask_choices(subject: Subject, questions: Sequence[Choices], kept: KeptAnswers, tell: Counter) -> None:
    """Rows with `logps`, of each choice after the context, nats."""
    missing = kept.missing(len(questions))
    pairs = [(questions[i].context, choice) for i in missing for choice in questions[i].choices]
    owner = [(i, k) for i in missing for k in range(len(questions[i].choices))]
    there: dict[int, dict[int, float]] = {i: {} for i in missing}

    def keep(places: Sequence[int], found: Likelihoods) -> None:
        whole = []
        for place, logp in zip(places, found.logps, strict=True):
            index, choice = owner[place]
            there[index][choice] = float(logp)
            if len(there[index]) == len(questions[index].choices):
                logps = [there[index][k] for k in range(len(questions[index].choices))]
                whole.append({"index": index, "logps": logps})
        kept.add(whole)
        tell.add(len(whole))

    if pairs:
        subject.texts.score(pairs, keep)


def ask_texts(subject: Subject, questions: Sequence[Written], kept: KeptAnswers, tell: Counter) -> None:
    """Rows with `logp` of the whole text, nats, and its `tokens`."""
    missing = kept.missing(len(questions))
    for start in range(0, len(missing), subject.batch_size):
        batch = missing[start : start + subject.batch_size]
        logps, tokens = subject.texts.rolling([str(questions[i].prompt) for i in batch])
        kept.add(
            {"index": i, "logp": float(logp), "tokens": int(count)}
            for i, logp, count in zip(batch, logps, tokens, strict=True)
        )
        tell.add(len(batch))


def ask_written(
    subject: Any,
    questions: Sequence[Written],
    kept: KeptAnswers,
    tell: Counter,
    *,
    sampling: Mapping[str, Any],
    stops: Sequence[str],
    system: str,
    seed: int,
) -> None:
    """Rows with `answers` and facts of each: see `_row`."""
    missing = kept.missing(len(questions))
    asked = [_with_system(questions[i].prompt, system) for i in missing]
    for batch, answers in subject.answers(
        asked, sampling=sampling, stops=[stops] * len(asked), seed=seed, places=missing
    ):
        kept.add(_row(missing[i], samples) for i, samples in zip(batch, answers, strict=True))
        tell.add(len(batch))


def ask_turns(
    subject: Any,
    questions: Sequence[BenchQuestion],
    kept: KeptAnswers,
    tell: Counter,
    *,
    sampling: Mapping[str, Any],
    system: str,
    seed: int,
) -> None:
    """Rows with `turns`, an answer to each turn of a question, each after those before it."""
    missing = kept.missing(len(questions))
    size = subject.batch_size
    for start in range(0, len(missing), size):
        batch = missing[start : start + size]
        said: dict[int, list[Message]] = {i: [] for i in batch}
        rows: dict[int, dict[str, Any]] = {i: {"index": i, "turns": [], "prompt_cut": []} for i in batch}
        for turn in range(max(len(questions[i].turns) for i in batch)):
            going = [i for i in batch if len(questions[i].turns) > turn]
            asked = [
                _with_system((*said[i], Message("user", questions[i].turns[turn])), system) for i in going
            ]
            for places, answers in subject.answers(asked, sampling=sampling, seed=seed + turn, places=going):
                for place, (answer, *_) in zip(places, answers, strict=True):
                    i = going[place]
                    said[i] += [
                        Message("user", questions[i].turns[turn]),
                        Message("assistant", answer.text),
                    ]
                    rows[i]["turns"].append(answer.text)
                    rows[i]["prompt_cut"].append(answer.prompt_cut)
        kept.add(rows.values())
        tell.add(len(batch))


def _with_system(asked: Asked, system: str) -> Asked:
    if not system or isinstance(asked, str):
        return asked
    return (Message("system", system), *asked)


def _row(index: int, samples: Sequence[Answer]) -> dict[str, Any]:
    return {
        "index": index,
        "answers": [answer.text for answer in samples],
        "tokens": [list(answer.tokens) for answer in samples],
        "count": [answer.count for answer in samples],
        "logps": [None if np.isnan(answer.logp) else round(answer.logp, 5) for answer in samples],
        "finish_reason": [answer.finish_reason for answer in samples],
        "prompt_cut": samples[0].prompt_cut,
    }
