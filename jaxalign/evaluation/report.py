"""report.html of an evaluation, or of several models' beside each other: one file that needs no other."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.evaluation.items import read_items
from jaxalign.evaluation.report_figures import dot
from jaxalign.evaluation.report_items import SCRIPT, browser
from jaxalign.evaluation.report_style import STYLE
from jaxalign.evaluation.report_tasks import ReportTask, headline_table, note, section
from jaxalign.evaluation.results import Results, differ, labels_of, read_results
from jaxalign.runs.page import escaped, folded, write_page

# Items of a task, and bytes of HTML of all tasks' items.
MOST_ITEMS, ITEM_BYTES = 60, 2_500_000
# Settings whose difference needs no telling: it shows.
OWN_SETTINGS = ("model", "tasks", "output", "out", "name", "run")


def write_report(
    folder: Path | str,
    *,
    others: Sequence[Path | str] = (),
    most_items: int = MOST_ITEMS,
    seed: int = 0,
) -> Path:
    """Writes report.html of an evaluation from results.json and items/*.jsonl in its folder.

    Intervals are called 95% ones unless `settings.confidence` says otherwise. Where items of two models have the same
    prompt and a metric is the mean of its items' scores, the difference to the first model is shown too, with a paired
    bootstrap interval.

    Args:
      folder: of the evaluation.
      others: folders of other models' evaluations, whose figures and answers are shown beside it.
      most_items: items of a task in the page, at least 1; fewer where their texts are long.
      seed: of the items that are drawn.

    Returns:
      The page's path.

    Raises:
      DataError: a file of a folder is missing or not what it should be.
      ValueError: most_items is below 1.
    """
    if most_items < 1:
        raise ValueError(f"most_items must be at least 1, got {most_items}")
    folders = [Path(folder), *map(Path, others)]
    evaluations = [read_results(one) for one in folders]
    labels = labels_of(evaluations)
    names = list(dict.fromkeys(task for one in evaluations for task in one.tasks))
    tasks = [
        ReportTask(
            number=number,
            name=name,
            labels=labels,
            found=[one.tasks.get(name) for one in evaluations],
            items=[
                read_items(place, name) if name in one.tasks else {}
                for place, one in zip(folders, evaluations, strict=True)
            ],
        )
        for number, name in enumerate(names)
    ]
    confidence = evaluations[0].settings.get("confidence")
    confidence = confidence if isinstance(confidence, float) and 0 < confidence < 1 else 0.95
    body = [
        *_opening(evaluations, labels),
        "<h2>Results</h2>",
        headline_table(tasks, confidence=confidence),
        "<h2>Tasks</h2>",
        *map(section, tasks, _browsers(tasks, most_items, seed)),
        "<h2>Settings</h2>",
        _facts("settings", [one.settings for one in evaluations], labels),
        _facts("versions", [one.versions for one in evaluations], labels),
    ]
    title = " · ".join(labels)
    return write_page(folders[0] / "report.html", f"{title} · jaxalign", body, style=STYLE, script=SCRIPT)


def _opening(evaluations: Sequence[Results], labels: Sequence[str]) -> Iterator[str]:
    """Which models, when and where; and what makes them hard to compare."""
    several = len(labels) > 1
    yield f"<h1>Evaluation of {f'{len(labels)} models' if several else escaped(labels[0])}</h1>"
    for place, (label, one) in enumerate(zip(labels, evaluations, strict=True)):
        about = [
            one.device,
            one.created,
            f"jaxalign {one.versions['jaxalign']}" if "jaxalign" in one.versions else "",
        ]
        facts = escaped(" · ".join(filter(None, about)))
        yield (
            f"<p class=dim>{dot(place)}{escaped(label)}: {facts}</p>"
            if several
            else f"<p class=dim>{facts}</p>"
        )
    different = [
        name
        for name in dict.fromkeys(key for one in evaluations for key in one.settings)
        if name.split(".")[0] not in OWN_SETTINGS and differ(one.settings.get(name) for one in evaluations)
    ]
    if different:
        yield note(f"The models' settings differ in {', '.join(different)}.")


def _browsers(tasks: Sequence[ReportTask], most: int, seed: int) -> list[str]:
    """The items of each task; fewer of the tasks that take most room, where all together would take too much."""

    def made(task: ReportTask, budget: float) -> str:
        metrics = task.some.metrics
        return browser(task.name, task.items, task.labels, metrics, most=most, seed=seed, budget=budget)

    found = [made(task, math.inf) for task in tasks]
    share = fair_share([len(one.encode(errors="replace")) for one in found], ITEM_BYTES)
    return [
        one if len(one.encode(errors="replace")) <= share else made(task, share)
        for task, one in zip(tasks, found, strict=True)
    ]


def fair_share(sizes: Sequence[float], total: float) -> float:
    """The largest s with sum min(size, s) <= total; infinite where all sizes fit."""
    left = total
    for place, size in enumerate(sorted(sizes)):
        share = left / (len(sizes) - place)
        if size > share:
            return share
        left -= size
    return math.inf


def _facts(name: str, found: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """Values by key, a column a model; keys whose values differ come first and are marked."""
    keys = list(dict.fromkeys(key for one in found for key in one))
    unequal = {key for key in keys if differ(one.get(key) for one in found)}
    heads = "".join(f"<th>{escaped(label)}</th>" for label in labels) if len(labels) > 1 else "<th></th>"
    rows = []
    for key in sorted(keys, key=lambda key: key not in unequal):
        cells = "".join(f"<td class=text>{_shown(one[key]) if key in one else '–'}</td>" for one in found)
        mark = " class=differs" if key in unequal else ""
        rows.append(f"<tr{mark}><td>{escaped(key)}</td>{cells}</tr>")
    table = f"<div class=wide><table><tr><th></th>{heads}</tr>{''.join(rows)}</table></div>"
    return f"<details><summary>{name}</summary>{table}</details>"


def _shown(value: Any) -> str:
    return folded(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
