"""Curves as PNG pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

# Label -> (x, y), or (x, y, low, high) of a line within a band.
Series = Mapping[str, tuple[Sequence[float], ...]]
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")


def curve(
    series: Series, title: str, *, xlabel: str = "step", ylabel: str = "", points: bool = False
) -> bytes:
    """A PNG of lines by label, (x, y) each or with a band from low to high; of `points` alone where x goes back."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (label, (x, y, *band)) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        if band:
            low, high = band
            # One evaluation has no width: its interval is a bar.
            if len(x) < 2:
                axes.vlines(x, low, high, color=colour, alpha=0.4, linewidth=3)
            else:
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            x,
            y,
            label=label,
            color=colour,
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save(picture: bytes, path: Path) -> None:
    """Writes a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)


def data_uri(picture: bytes) -> str:
    """The PNG as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
