"""Tables as aligned text, for the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.evaluation.results import Figure, is_rate, labels_of, notes_of, parse_results
from jaxalign.runs import records


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as aligned text: the first column to the left, the others to the right."""
    if not rows:
        return ""
    columns = list(rows[0])
    widths = {c: max(len(c), *(len(r[c]) for r in rows)) for c in columns}

    def line(cells: Mapping[str, str]) -> str:
        return "  ".join(
            cells[c].ljust(widths[c]) if i == 0 else cells[c].rjust(widths[c]) for i, c in enumerate(columns)
        ).rstrip()

    rule = "  ".join("-" * widths[c] for c in columns)
    return "\n".join([line({c: c for c in columns}), rule, *(line(r) for r in rows)])


def number(value: float | None, *, rate: bool = False) -> str:
    """Three significant digits, of a rate in percent (without the sign); a dash where there is no number."""
    if value is None or math.isnan(value):
        return "–"
    value = 100 * value if rate else value
    if value == 0 or math.isinf(value):
        return "0" if value == 0 else "∞" if value > 0 else "-∞"
    if 999.5 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:.3g}"


def measured(figure: Figure, *, rate: bool) -> str:
    """A figure's value with its unit."""
    unit = "%" if rate else figure.unit or ""
    return number(figure.value, rate=rate) + (f" {unit}" if len(unit) > 1 else unit)


def interval(figure: Figure, *, rate: bool) -> str:
    """A figure's interval in brackets; empty where it has none."""
    if math.isnan(figure.low) or math.isnan(figure.high):
        return ""
    return f"[{number(figure.low, rate=rate)}, {number(figure.high, rate=rate)}]"


def results_table(results: Mapping[str, Any], *, others: Sequence[Mapping[str, Any]] = ()) -> str:
    """The figures of an evaluation as aligned text, and below them what a reader must know of them.

    Args:
      results: the object of results.json.
      others: the same of other models, for a column each.

    Raises:
      DataError: a field that is not what it should be.
    """
    evaluations = [parse_results(records.clean(one)) for one in (results, *others)]
    labels = [_plain(label) for label in labels_of(evaluations)] if others else ["value"]
    tasks = list(dict.fromkeys(task for one in evaluations for task in one.tasks))
    width = max((len(_plain(task)) for task in ("task", *tasks)), default=0)
    rows, notes = [], []
    for task in tasks:
        found = [one.tasks.get(task) for one in evaluations]
        for metric in dict.fromkeys(name for one in found if one for name in one.metrics):
            figures = [one.metrics.get(metric) if one else None for one in found]
            rows.append(_row(f"{_plain(task):<{width}}  {_plain(metric)}", figures, labels, width))
        notes += [f"  {_plain(task)}: {_plain(note)}" for note in notes_of(labels, found)]
    table = format_table(rows)
    return "\n".join([table, "", "notes", *notes]) if notes else table


def _row(name: str, figures: Sequence[Figure | None], labels: Sequence[str], width: int) -> dict[str, str]:
    rate = is_rate(figure for figure in figures if figure)
    row = {f"{'task':<{width}}  metric": name}
    for label, figure in zip(labels, figures, strict=True):
        parts = (measured(figure, rate=rate), interval(figure, rate=rate)) if figure else ("–",)
        row[label] = " ".join(filter(None, parts))
    chances = dict.fromkeys(number(f.chance, rate=rate) for f in figures if f and f.chance is not None)
    row["chance"] = " / ".join(f"{chance}%" if rate else chance for chance in chances)
    row["n"] = " / ".join(dict.fromkeys(f"{figure.count:,}" for figure in figures if figure))
    return row


def _plain(text: str) -> str:
    """A text of one line, whose escape sequences no terminal obeys."""
    return "".join(x if x.isprintable() else " " for x in text)
