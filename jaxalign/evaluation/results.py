"""results.json of an evaluation's folder: its figures."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError
from jaxalign.evaluation.fields import Fields

# How far an interval by the normal distribution may reach beyond a rate's ends.
SLACK = 0.1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric of a task, or of one of its groups.

    Attributes:
      value: NaN where there is none.
      low, high: its interval; NaN where there is none.
      count: what the value is taken over.
      chance: value of a guess; None where there is no such thing.
      better: higher, lower, or empty where neither is.
      about: one line.
      unit: `rate` for a fraction of 1, else what stands behind the number (nats, %); None where nobody says.
    """

    value: float
    low: float
    high: float
    count: int
    chance: float | None = None
    better: str = ""
    about: str = ""
    unit: str | None = None


Figures = Mapping[str, Figure]


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """One task of an evaluation.

    Attributes:
      about: what is asked and how it is scored, one line.
      source: of the task.
      file, sha256: what its rows were read from.
      kind: choices, written, text or pairs.
      items: rows that were evaluated, `of` those of the file.
      seconds: that it took.
      judge: who judged; may be empty.
      notes: what a reader of the figures must know.
      metrics: by name, the first one the headline.
      groups: metrics by group; may be empty.
    """

    about: str
    source: str
    file: str
    sha256: str
    kind: str
    items: int
    of: int
    seconds: float
    judge: str
    notes: tuple[str, ...]
    metrics: Figures
    groups: Mapping[str, Figures]


@dataclass(frozen=True, kw_only=True)
class Results:
    """An evaluation of one model; for the fields see results.json."""

    model: str
    created: str
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    device: str
    tasks: Mapping[str, TaskResults]


def read_results(folder: Path | str) -> Results:
    """Reads results.json of a folder.

    Raises:
      DataError: no such file, or a field that is not what it should be.
    """
    path = Path(folder) / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file; expected a folder that `jaxalign evaluate` wrote") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON ({str(error).splitlines()[0]})") from None
    return parse_results(found, str(path))


def parse_results(found: Any, place: str = "results") -> Results:
    """The object of results.json, checked.

    Args:
      found: the object.
      place: what messages begin with.

    Raises:
      DataError: a field that is not what it should be.
    """
    fields = Fields(place, found)
    tasks = fields.object("tasks")
    return Results(
        model=fields.text("model"),
        created=fields.text("created", ""),
        settings=fields.object("settings", {}).fields,
        versions=fields.object("versions", {}).fields,
        device=fields.text("device", ""),
        tasks={name: _task(tasks.object(name), name) for name in tasks.fields},
    )


def labels_of(evaluations: Iterable[Results]) -> list[str]:
    """A name for each evaluation that no other has: its model's, numbered where two are of one model."""
    names = [one.model for one in evaluations]
    return [
        name if names.count(name) == 1 else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def notes_of(labels: Sequence[str], found: Sequence[TaskResults | None]) -> list[str]:
    """What a reader of one task's figures must know: the notes, each once, and what the models were asked unlike.

    Args:
      labels: name of each model.
      found: results of each model; None where it was not asked.
    """
    asked = [(label, one) for label, one in zip(labels, found, strict=True) if one]
    whose: dict[str, list[str]] = {}
    for label, one in asked:
        for text in dict.fromkeys(one.notes):
            whose.setdefault(text, []).append(label)
    told = [text if len(who) == len(asked) else f"{', '.join(who)}: {text}" for text, who in whose.items()]
    if differ(one.sha256 for _, one in asked):
        told.append("The models were not asked the rows of the same file.")
    elif differ(one.items for _, one in asked):
        told.append("The models were not asked the same number of rows.")
    if differ(one.judge for _, one in asked):
        judges = (f"{one.judge or 'nobody'} judged {label}" for label, one in asked)
        told.append(f"The models did not have the same judge: {', '.join(judges)}.")
    return told


def differ(values: Iterable[Any]) -> bool:
    """Whether any two values differ."""
    first, *rest = values
    return any(value != first for value in rest)


def is_rate(figures: Iterable[Figure]) -> bool:
    """Whether one metric's figures, of all models and groups, are fractions of 1: as said, else as they look."""
    figures = list(figures)
    said = [figure.unit for figure in figures if figure.unit is not None]
    if said:
        return said[0] == "rate"
    middle = [x for f in figures for x in (f.value, f.chance) if x is not None and not math.isnan(x)]
    ends = [x for f in figures for x in (f.low, f.high) if not math.isnan(x)]
    return bool(middle) and all(0 <= x <= 1 for x in middle) and all(-SLACK <= x <= 1 + SLACK for x in ends)


def _task(fields: Fields, name: str) -> TaskResults:
    if Path(name).name != name:
        raise DataError(f"{fields.place}: expected a task's name, which names its file too, got {name!r}")
    groups = fields.object("groups", {})
    return TaskResults(
        about=fields.text("about", ""),
        source=fields.text("source", ""),
        file=fields.text("file", ""),
        sha256=fields.text("sha256", ""),
        kind=fields.text("kind", ""),
        items=fields.whole("items"),
        of=fields.whole("of"),
        seconds=fields.number("seconds", math.nan),
        judge=fields.text("judge", ""),
        notes=fields.texts("notes"),
        metrics=_figures(fields.object("metrics")),
        groups={group: _figures(groups.object(group)) for group in groups.fields},
    )


def _figures(fields: Fields) -> dict[str, Figure]:
    return {name: _figure(fields.object(name)) for name in fields.fields}


def _figure(fields: Fields) -> Figure:
    better = fields.text("better", "")
    if better not in ("higher", "lower", ""):
        raise DataError(f"{fields.place}: expected higher, lower or nothing in 'better', got {better!r:.60}")
    return Figure(
        value=fields.number("value"),
        low=fields.number("low", math.nan),
        high=fields.number("high", math.nan),
        count=fields.whole("count"),
        chance=fields.number("chance", None),
        better=better,
        about=fields.text("about", ""),
        unit=fields.text("unit", None),
    )
