"""From what a model answered to figures: items with scores, and their means with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxalign.evaluation.benchmarks import Measure
from jaxalign.evaluation.tasks.choices import Choices, chance, choice_scores
from jaxalign.evaluation.tasks.written import Written
from jaxalign.uncertainty import bootstrap_interval, wilson_interval

Row = Mapping[str, Any]
Item = dict[str, Any]
Figure = dict[str, Any]
# Of groups with fewer questions nothing is told.
LEAST_GROUP = 5


def choice_items(questions: Sequence[Choices], rows: Mapping[int, Row]) -> list[Item]:
    """Items of questions with choices, which `asking.ask_choices` has answered."""
    return [
        {
            "index": index,
            "place": question.place,
            "group": question.group,
            "prompt": question.context,
            "choices": list(question.choices),
            "right": list(question.right),
            "logps": rows[index]["logps"],
            "scores": choice_scores(question, np.asarray(rows[index]["logps"])),
        }
        for index, question in enumerate(questions)
    ]


def written_items(
    questions: Sequence[Written],
    rows: Mapping[int, Row],
    score: Callable[[Written, str], Mapping[str, float]],
) -> list[Item]:
    """Items of written answers; a score is the mean over a question's samples, and pass@k with k samples is there too.

    pass@k is of scores that are 0 or 1.
    """
    found = []
    for index, question in enumerate(questions):
        row = rows[index]
        by_sample = [dict(score(question, answer)) for answer in row["answers"]]
        scores = {name: float(np.mean([one[name] for one in by_sample])) for name in by_sample[0]}
        for name in [*scores] if len(by_sample) > 1 else ():
            right = [one[name] for one in by_sample]
            if {*right} <= {0.0, 1.0}:
                scores[f"{name}_pass@{len(right)}"] = max(right)
        found.append(
            {
                "index": index,
                "place": question.place,
                "group": question.group,
                "prompt": question.prompt
                if isinstance(question.prompt, str)
                else [{"role": turn.role, "content": turn.content} for turn in question.prompt],
                "answers": row["answers"],
                "references": list(question.references),
                "scores": scores | _facts(row),
            }
        )
    return found


def _facts(row: Row) -> dict[str, float | None]:
    """Tokens of the answers, where they were counted, and how many ended by themselves."""
    counts = [count for count in row["count"] if count is not None]
    return {
        "tokens": float(np.mean(counts)) if counts else None,
        "stopped": float(np.mean([reason == "stop" for reason in row["finish_reason"]])),
    }


FACTS = {
    "tokens": Measure("tokens of an answer", better=""),
    "stopped": Measure("the answer ended before its longest length", better="", rate=True),
}


def measures_of(
    known: Mapping[str, Measure], items: Sequence[Item], *, leading: Sequence[str] = ()
) -> dict[str, Measure]:
    """Those of the known figures that items have, and their pass@k, with the `leading` ones first."""
    there = dict.fromkeys(name for item in items for name in item["scores"])
    found = {name: known[name] for name in (*leading, *known) if name in there}
    for name in there:
        base, _, count = name.partition("_pass@")
        if count and base in known and known[base].better == "higher":
            found[name] = replace(known[base], about=f"{known[base].about}, in one of {count} samples")
    return found


def figures(items: Sequence[Item], measures: Mapping[str, Measure], *, seed: int = 0) -> dict[str, Figure]:
    """Each figure's mean over the items that have it, with its interval (95%), and the mean of guesses.

    Proportions have Wilson's interval, other numbers that of the bootstrap.
    """
    found = {}
    for name, measure in measures.items():
        values = np.asarray([item["scores"][name] for item in items if item["scores"].get(name) is not None])
        guesses = [item["chance"][name] for item in items if name in item.get("chance", {})]
        found[name] = figure(values, measure, chance=float(np.mean(guesses)) if guesses else None, seed=seed)
    return found


def figure(
    values: Sequence[float] | np.ndarray,
    measure: Measure,
    *,
    chance: float | None = None,
    seed: int = 0,
) -> Figure:
    """A mean with its interval; of no value null."""
    array = np.asarray(values, np.float64)
    if not array.size:
        value = low = high = None
    else:
        value = float(array.mean())
        # Of a number that happened to be 0 or 1 every time, the bootstrap says so too.
        if np.isin(array, (0.0, 1.0)).all() and (measure.rate or np.ptp(array) > 0):
            low, high = wilson_interval(float(array.sum()), array.size)
        else:
            low, high = bootstrap_interval(array, seed=seed)
    return {
        "value": value,
        "low": low,
        "high": high,
        "count": int(array.size),
        "chance": chance,
        "better": measure.better,
        "about": measure.about,
        "unit": "rate" if measure.rate else measure.unit,
    }


def text_figures(
    questions: Sequence[Written], rows: Mapping[int, Row], measures: Mapping[str, Measure], *, seed: int = 0
) -> dict[str, Figure]:
    """Perplexity over all tokens of all texts, and bits per byte; texts are drawn for their intervals."""
    logps = np.asarray([rows[i]["logp"] for i in range(len(questions))])
    units = {
        "perplexity": np.asarray([rows[i]["tokens"] for i in range(len(questions))], np.float64),
        "bits_per_byte": np.asarray([len(str(q.prompt).encode()) for q in questions], np.float64),
    }
    turned: dict[str, Callable[[float], float]] = {
        "perplexity": lambda nats: math.exp(min(nats, 700.0)),
        "bits_per_byte": lambda nats: nats / math.log(2),
    }
    found = {}
    for name, counts in units.items():

        def ratio(drawn: np.ndarray, name: str = name) -> float:
            return turned[name](-drawn[:, 0].sum() / max(drawn[:, 1].sum(), 1.0))

        both = np.stack([logps, counts], 1)
        low, high = bootstrap_interval(both, seed=seed, statistic=ratio)
        about = measures[name]
        found[name] = {
            "value": ratio(both),
            "low": low,
            "high": high,
            "count": int(counts.sum()),
            "chance": None,
            "better": about.better,
            "about": about.about,
            "unit": about.unit,
        }
    return found


def by_group(
    items: Sequence[Item], measures: Mapping[str, Measure], *, seed: int = 0
) -> dict[str, dict[str, Figure]]:
    """The figures of each group with enough items; none where there is one group alone."""
    names = dict.fromkeys(str(item["group"]) for item in items)
    if len(names) < 2:
        return {}
    parts = {name: [item for item in items if item["group"] == name] for name in sorted(names) if name}
    return {
        name: figures(part, measures, seed=seed) for name, part in parts.items() if len(part) >= LEAST_GROUP
    }


def with_chance(items: Sequence[Item], questions: Sequence[Choices]) -> list[Item]:
    """The items with what a guess would score."""
    return [item | {"chance": chance(question)} for item, question in zip(items, questions, strict=True)]
