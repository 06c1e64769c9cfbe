"""The pictures of the pages on performance, as PNG: ratios with intervals, and growth curves with their slopes."""

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS, THEIRS, GREY = "#2563eb", "#d97706", "#6b7280"


def ratios(rows: Sequence[tuple[str, float, float, float, float | None]]) -> bytes:
    """A row a case: (name, ratio, lower and upper end of its interval, target or None), on a logarithmic axis."""
    figure = Figure(figsize=(7.2, 0.6 + 0.3 * max(len(rows), 3)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for at, (_, middle, low, high, target) in enumerate(rows):
        axes.plot([low, high], [at, at], color=OURS, linewidth=2)
        axes.plot(middle, at, "o", color=OURS, markersize=5, label="" if at else "measured, 95% interval")
        if target is not None:
            axes.plot(target, at, "|", color=THEIRS, markersize=14, markeredgewidth=2.5)
    axes.plot([], [], "|", color=THEIRS, markersize=12, markeredgewidth=2.5, label="target")
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    axes.set_xscale("log")
    ticks = [t for t in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8) if _within(t, rows)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(
        "time of the peer / time of jaxalign, for as many tokens (above 1: jaxalign is faster)", fontsize=8
    )
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return _png(figure)


def _within(tick: float, rows: Sequence[tuple[str, float, float, float, float | None]]) -> bool:
    values = [1.0, *(v for row in rows for v in row[1:] if v is not None)]
    return min(values) / 1.3 <= tick <= max(values) * 1.3


def slope(points: Sequence[dict[str, float]], name: str) -> float:
    """Exponent of growth: of the last doubling, where what does not grow weighs least."""
    (a, x), (b, y) = ((p["at"], p[name]) for p in points[-2:])
    return math.log(y / x) / math.log(b / a)


def growth(found: dict[str, list[dict[str, float]]], theory: dict[str, str]) -> bytes:
    """A column for each number that was doubled: step time above, memory below, each with a line of slope 1.

    Args:
      found: points by what was doubled, each with `at`, `seconds`, `cpu` (seconds of all threads) and `bytes`.
      theory: how time and memory should grow with it.
    """
    figure = Figure(figsize=(2.7 * len(found), 4.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(2, len(found), squeeze=False)
    kinds = (("seconds", "step, s", 1.0, OURS), ("bytes", "memory, MiB", 2**-20, THEIRS))
    for column, (name, points) in enumerate(found.items()):
        at = [p["at"] for p in points]
        for row, (kind, label, unit, colour) in enumerate(kinds):
            axes = grid[row][column]
            values = [p[kind] * unit for p in points]
            axes.loglog(at, values, "o-", color=colour, markersize=4)
            if kind == "seconds":
                axes.loglog(
                    at, [p["cpu"] for p in points], "--", color=colour, linewidth=0.9, label="CPU time"
                )
            # Through the last point: what is constant bends the curve at its beginning only.
            axes.loglog(at, [values[-1] * a / at[-1] for a in at], ":", color=GREY)
            title = f"slope at the end {slope(points, kind):.2f}"
            title += f" (CPU time {slope(points, 'cpu'):.2f})" if kind == "seconds" else ""
            axes.set_title(title, fontsize=8, loc="left")
            axes.set_xticks(at, [f"{a:,}" for a in at], fontsize=7)
            ends = sorted({min(values), max(values)})
            axes.set_yticks(ends, [f"{v:,.3g}" for v in ends], fontsize=7)
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(label, fontsize=8)
                if row == 0:
                    axes.legend(fontsize=7, frameon=False)
        grid[1][column].set_xlabel(f"{name}\ntheory: {theory[name]}", fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
