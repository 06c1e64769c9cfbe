"""Figures of a report as HTML: values with intervals, in numbers and as bars."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxalign.evaluation.metrics.significance import Difference
from jaxalign.evaluation.results import Figure
from jaxalign.evaluation.tables import interval, measured, number
from jaxalign.runs.page import escaped

ARROWS = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better")}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One model's figure of a metric.

    Attributes:
      model: place of the model, which has a colour.
      label: name of the model; empty where there is only one.
      figure: None where the model has none.
      difference: to the first model; None where there is none.
    """

    model: int
    label: str
    figure: Figure | None
    difference: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """Lines that belong together: a metric, or a group, with a line a model.

    Attributes:
      head: HTML of the first cell.
      lines: one a model.
      rate: whether the figures are fractions of 1.
      axis: ends of the bars.
    """

    head: str
    lines: Sequence[Line]
    rate: bool
    axis: tuple[float, float]


def axis_of(figures: Iterable[Figure], *, rate: bool) -> tuple[float, float]:
    """The ends of the bars of one metric: 0 to 1 of a rate, else from 0 to a round number that no value is beyond."""
    if rate:
        return 0.0, 1.0
    found = [x for f in figures for x in (f.value, f.low, f.high, f.chance) if x is not None]
    found = [x for x in found if math.isfinite(x)]
    low, high = -_rounded(-min([0.0, *found])), _rounded(max([0.0, *found]))
    return (low, high) if high > low else (0.0, 1.0)


def _rounded(value: float) -> float:
    """1, 2 or 5 times a power of 10 that is not below a value; 0 of 0."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next((step * unit for step in (1, 2, 5) if value <= step * unit), 10 * unit)


def bar(figure: Figure, axis: tuple[float, float], *, rate: bool) -> str:
    """A value as a bar from 0, its interval as a line with ends, a guess as a dashed line across."""
    low, high = axis
    if not math.isfinite(figure.value):
        return ""

    def at(value: float) -> str:
        return f"{100 * min(max((value - low) / (high - low), 0.0), 1.0):.2f}%"

    def width(start: float, end: float) -> str:
        return f"{float(at(end)[:-1]) - float(at(start)[:-1]):.2f}%"

    start, end = sorted((min(max(0.0, low), high), figure.value))
    marks = [
        "<rect class=track y=6 width=100% height=8 rx=2 />",
        f"<rect class=fill x={at(start)} y=6 width={width(start, end)} height=8 rx=2 />",
    ]
    if low < 0:
        marks.append(f"<line class=zero x1={at(0.0)} x2={at(0.0)} y1=2 y2=18 />")
    if figure.chance is not None and math.isfinite(figure.chance):
        marks.append(f"<line class=chance x1={at(figure.chance)} x2={at(figure.chance)} y1=0 y2=20 />")
    if math.isfinite(figure.low) and math.isfinite(figure.high):
        ends = (figure.low, figure.high)
        marks.append(f"<line class=reach x1={at(ends[0])} x2={at(ends[1])} y1=10 y2=10 />")
        marks += [f"<line class=reach x1={at(x)} x2={at(x)} y1=6.5 y2=13.5 />" for x in ends]
    told = " ".join(filter(None, (measured(figure, rate=rate), interval(figure, rate=rate))))
    if figure.chance is not None:
        told += f", chance {number(figure.chance, rate=rate)}{'%' if rate else ''}"
    return f'<svg class=bar role=img aria-label="{escaped(told)}"><title>{escaped(told)}</title>{"".join(marks)}</svg>'


def table_of(blocks: Sequence[Block | str], *, first: str, several: bool, baseline: str = "") -> str:
    """A table with a row a line.

    Args:
      blocks: the lines; a text is HTML of a row across the table.
      first: head of the first column.
      several: whether there are several models, which then are named.
      baseline: name of the model to which differences are; empty for none.
    """
    columns = [("head", first), ("model", "model"), ("number value", "value"), ("bars", "")]
    columns += [("number less", f"less {baseline}"), ("number n", "n")]
    kept = {"head", "number value", "bars", "number n", "model" * several, "number less" * bool(baseline)}
    columns = [(kind, name) for kind, name in columns if kind in kept]
    heads = "".join(f'<th class="{kind}">{escaped(name)}</th>' for kind, name in columns)
    rows = [
        f"<tr class=across><td colspan={len(columns)}>{block}</td></tr>"
        if isinstance(block, str)
        else _rows(block, several, bool(baseline))
        for block in blocks
    ]
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class=wide><table class=figures>{body}</table></div>"


def metric_head(name: str, figures: Sequence[Figure], *, rate: bool, axis: tuple[float, float]) -> str:
    """A metric's name, which way is better, and how far its bars reach where that is not 100%."""
    better = next((figure.better for figure in figures if figure.better), "")
    arrow, told = ARROWS.get(better, ("", ""))
    mark = f' <span class=dim title="{told}">{arrow}</span>' if arrow else ""
    reach = "" if rate else f"<small class=dim>bars: {axis[0] + 0.0:,g} to {axis[1]:,g}</small>"
    return f"{breakable(name)}{mark}{reach}"


def breakable(name: str) -> str:
    """A name as HTML whose line may break behind an underscore or a slash."""
    return escaped(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _rows(block: Block, several: bool, differences: bool) -> str:
    rows = []
    for place, line in enumerate(block.lines):
        figure = line.figure
        cells = [f"<td class=head rowspan={len(block.lines)}>{block.head}</td>"] if place == 0 else []
        if several:
            cells.append(
                f'<td class=model title="{escaped(line.label)}">{dot(line.model)}{escaped(line.label)}</td>'
            )
        if figure is None:
            cells.append("<td class='number value dim'>not evaluated</td><td class=bars></td>")
        else:
            value = f"<b>{escaped(measured(figure, rate=block.rate))}</b>"
            reach = f"<span class=dim>{interval(figure, rate=block.rate)}</span>"
            cells.append(f"<td class='number value'>{value} {reach}</td>")
            cells.append(f"<td class=bars>{bar(figure, block.axis, rate=block.rate)}</td>")
        if differences:
            cells.append(f"<td class='number less'>{_difference(line.difference, rate=block.rate)}</td>")
        count = f"{figure.count:,}" if figure else ""
        cells.append(f"<td class='number n'>{count}</td>")
        last = " last" if place == len(block.lines) - 1 else ""
        rows.append(f"<tr class='m{line.model % 8}{last}'>{''.join(cells)}</tr>")
    return "".join(rows)


def dot(model: int) -> str:
    """The colour of a model."""
    return f"<i class='dot m{model % 8}'></i>"


def _difference(found: Difference | None, *, rate: bool) -> str:
    if found is None:
        return ""

    def show(x: float) -> str:
        return ("+" if x > 0 else "") + number(x, rate=rate)

    clear = found.low > 0 or found.high < 0
    told = f"{show(found.mean)} <span class=dim>[{show(found.low)}, {show(found.high)}]</span>"
    return f"<b title='its interval leaves out 0'>{told}</b>" if clear else told
