"""The tasks of a report as HTML: their figures, what they are, their groups."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxalign.evaluation.paired import paired_difference
from jaxalign.evaluation.report_choice import Items
from jaxalign.evaluation.report_figures import Block, Line, axis_of, breakable, metric_head, table_of
from jaxalign.evaluation.results import Figure, TaskResults, is_rate, notes_of
from jaxalign.runs.page import escaped

# More groups than these are folded.
OPEN_GROUPS = 12


@dataclass(frozen=True, kw_only=True)
class ReportTask:
    """One task in all evaluations of a report.

    Attributes:
      number: of the task, for links.
      name: of the task.
      labels: name of each model.
      found: results of each model, None where it was not asked; at least one was.
      items: of each model.
    """

    number: int
    name: str
    labels: Sequence[str]
    found: Sequence[TaskResults | None]
    items: Sequence[Items]

    @property
    def some(self) -> TaskResults:
        """The results of the first model that has any."""
        return next(one for one in self.found if one is not None)

    @property
    def several(self) -> bool:
        """Whether there are several models."""
        return len(self.labels) > 1


def headline_table(tasks: Sequence[ReportTask], *, confidence: float) -> str:
    """The figures of all tasks, with what a reader must know of them, and how they are to be read."""
    if not tasks:
        return "<p class=dim>No task was evaluated.</p>"
    blocks: list[Block | str] = []
    for task in tasks:
        link = f"<a href='#task{task.number}'>{escaped(task.name)}</a>"
        judge = f" · judged by {task.some.judge}" if task.some.judge else ""
        told = escaped(f"{_rows_told(task.some)}{judge}")
        blocks.append(f"{link} <span class=dim>{told}</span>{_notes(task)}")
        blocks += _metric_blocks(task, confidence)
    labels = tasks[0].labels
    baseline = (
        labels[0] if any(isinstance(b, Block) and any(x.difference for x in b.lines) for b in blocks) else ""
    )
    table = table_of(blocks, first="metric", several=len(labels) > 1, baseline=baseline)
    return table + _legend(baseline, confidence)


def section(task: ReportTask, items: str) -> str:
    """What a task is, its groups, and its items, which are HTML."""
    some = task.some
    seconds = [
        f"{found.seconds:,.0f} s" + (f" ({label})" if task.several else "")
        for label, found in zip(task.labels, task.found, strict=True)
        if found and not math.isnan(found.seconds)
    ]
    abouts = {name: figure.about for found in task.found if found for name, figure in found.metrics.items()}
    digest = f", sha256 {some.sha256[:12]}" if some.sha256 else ""
    facts = [
        ("source", some.source),
        ("file", f"{some.file}, {_rows_told(some)}{digest}" if some.file else ""),
        ("judge", some.judge),
        ("time", ", ".join(seconds)),
        *abouts.items(),
    ]
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(told)}</dd>" for name, told in facts if told)
    return "".join(
        [
            f"<section id=task{task.number}><h3>{escaped(task.name)}</h3><p>{escaped(some.about)}</p>",
            f"<dl class=facts>{rows}</dl>{_notes(task)}",
            *_groups(task),
            items,
            "</section>",
        ]
    )


def note(text: str) -> str:
    """What a reader must know, marked."""
    return f"<p class=note>{escaped(text)}</p>"


def _metric_blocks(task: ReportTask, confidence: float) -> Iterator[Block]:
    names = dict.fromkeys(name for found in task.found if found for name in found.metrics)
    for name in names:
        figures = [found.metrics.get(name) if found else None for found in task.found]
        known = [figure for figure in figures if figure]
        rate = is_rate(known)
        axis = axis_of(known, rate=rate)
        lines = []
        for model, (label, figure) in enumerate(zip(task.labels, figures, strict=True)):
            difference = None
            if model and figure and figures[0]:
                ours, baseline = (figure, task.items[model]), (figures[0], task.items[0])
                difference = paired_difference(name, ours, baseline, confidence=confidence)
            lines.append(Line(model=model, label=label, figure=figure, difference=difference))
        yield Block(head=metric_head(name, known, rate=rate, axis=axis), lines=lines, rate=rate, axis=axis)


def _legend(baseline: str, confidence: float) -> str:
    percent = f"{100 * confidence:.3g}%"
    told = f"Brackets, and the lines on the bars, are {percent} intervals; a dashed line is a guess. "
    told += "↑: higher is better; ↓: lower is better."
    if baseline:
        told += (
            f" less {baseline}: the difference on the items that both have, with its paired {percent} interval; bold "
            "where that leaves out 0, which by chance some of many do."
        )
    return f"<p class=dim>{escaped(told)}</p>"


def _rows_told(found: TaskResults) -> str:
    return f"{found.items:,} rows" if found.items == found.of else f"{found.items:,} of {found.of:,} rows"


def _notes(task: ReportTask) -> str:
    return "".join(map(note, notes_of(task.labels, task.found)))


def _groups(task: ReportTask) -> Iterator[str]:
    """A table a metric with all groups, the highest first; the first is open where there are few groups."""
    by_model = [found.groups if found else {} for found in task.found]
    groups = dict.fromkeys(group for one in by_model for group in one)
    metrics = dict.fromkeys(name for one in by_model for figures in one.values() for name in figures)
    for place, metric in enumerate(metrics):
        rows = {group: [one.get(group, {}).get(metric) for one in by_model] for group in groups}
        known = [figure for row in rows.values() for figure in row if figure]
        rate = is_rate(known)
        axis = axis_of(known, rate=rate)
        blocks = [
            Block(
                head=breakable(group or "(no group)"),
                lines=[
                    Line(model=model, label=label, figure=figure)
                    for model, (label, figure) in enumerate(zip(task.labels, rows[group], strict=True))
                ],
                rate=rate,
                axis=axis,
            )
            for group in sorted(groups, key=lambda group: (_rank(rows[group]), group))
        ]
        is_open = " open" if place == 0 and len(groups) <= OPEN_GROUPS else ""
        head = metric_head(metric, known, rate=rate, axis=axis)
        table = table_of(blocks, first="group", several=task.several)
        yield f"<details class=groups{is_open}><summary>{head} by group ({len(groups)})</summary>{table}</details>"


def _rank(figures: Sequence[Figure | None]) -> float:
    """By which groups are sorted: the first value that there is, the highest first."""
    values = [figure.value for figure in figures if figure and not math.isnan(figure.value)]
    return -values[0] if values else math.inf
