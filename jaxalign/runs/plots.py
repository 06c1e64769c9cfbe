"""Curves as PNG pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
# Where the axes lie, before there is room for their numbers; what stays free at the edge, and the height of a factor
# above the axes. All are parts of the picture.
LEFT, BOTTOM, RIGHT, TOP, EDGE, FACTOR = 0.1, 0.15, 0.98, 0.89, 0.01, 0.05


def curve(
    series: Series, title: str, *, xlabel: str = "step", ylabel: str = "", points: bool = False
) -> bytes:
    """A PNG of lines by label, (x, y) each; of `points` alone where x goes back and forth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - BOTTOM))
    for index, (label, (x, y)) in enumerate(series.items()):
        axes.plot(
            x,
            y,
            label=label,
            color=COLOURS[index % len(COLOURS)],
            linewidth=0 if points else 1.6,
            marker="o" if points or len(x) < 3 else None,
            markersize=4,
        )
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)
    # Room for the numbers at the left, as wide as they are, and for what they are times of, between plot and title. A
    # layout engine finds it by drawing everything twice more.
    numbers = axes.yaxis.get_tightbbox(canvas.get_renderer())
    left = LEFT + EDGE - (numbers.x0 if numbers else 0.0) / figure.bbox.width
    top = TOP - FACTOR if axes.yaxis.get_offset_text().get_text() else TOP
    axes.set_position((left, BOTTOM, RIGHT - left, top - BOTTOM))
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def save(picture: bytes, path: Path) -> None:
    """Writes a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)


def data_uri(picture: bytes) -> str:
    """The PNG as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
