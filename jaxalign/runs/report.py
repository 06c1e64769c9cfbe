"""report.html: a run, or a comparison of runs, in one self-contained file."""

import html
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.runs import plots, records

# Letters of a long text that are shown before it is opened.
FOLDED = 400

STYLE = """
:root { color-scheme: light; --ink: #1f2937; --dim: #6b7280; --line: #e5e7eb; --soft: #f9fafb; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1180px; padding: 28px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 34px 0 10px; }
p.dim, .dim { color: var(--dim); margin: 0 0 8px; } .wide + p { margin-top: 12px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
.grid img { width: 100%; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; } b.best { color: #047857; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; } pre.command { background: var(--soft); padding: 8px 10px; }
details summary { cursor: pointer; color: var(--dim); }
td details summary { color: inherit; } td details[open] summary { color: var(--dim); font-size: 0; }
td details[open] summary::after { content: "fold"; font-size: 13px; } .wide { overflow-x: auto; }
"""


def write_report(folder: Path) -> Path:
    """Writes report.html and plots/*.png of a run from the files in its folder."""
    folder = Path(folder)
    meta = json.loads((folder / "metadata.json").read_text())
    series = metric_series(records.read(folder / "metrics.jsonl"))
    pictures, panels = [], _panels(series)
    banded = any(len(line) > 2 for lines in panels.values() for line in lines.values())
    for title, lines in panels.items():
        picture = plots.curve(lines, title)
        plots.save(picture, folder / "plots" / f"{title.replace('/', '_').replace(' ', '_')}.png")
        pictures.append((title, picture))
    facts = f"seed {meta.get('seed')} · {', '.join(meta.get('devices', [])[:2])} · {meta.get('started', '')}"
    body = [
        f"<h1>{_text(meta.get('command', 'run'))}: {_text(folder.name)}</h1><p class=dim>{_text(facts)}</p>",
        *_opening(meta),
        "<h2>Final metrics</h2>",
        _metric_table(meta.get("final_metrics", {})),
        "<h2>Curves</h2>",
        "<p class=dim>Bands are 95% intervals.</p>" if banded else "",
        _picture_grid(pictures),
        *_samples(records.read(folder / "samples.jsonl")),
    ]
    versions = json.dumps(meta.get("versions", {}), indent=2)
    flat = json.dumps(meta.get("config", {}), indent=2, ensure_ascii=False)
    body += [
        "<h2>Configuration</h2>",
        f"<details><summary>config.yaml as JSON</summary><pre>{_text(flat)}</pre></details>",
        f"<details><summary>versions</summary><pre>{_text(versions)}</pre></details>",
    ]
    return write_page(folder / "report.html", f"{folder.name} · jaxalign", body)


def _opening(meta: Mapping[str, Any]) -> list[str]:
    """The command that started the run, and what it printed at its start."""
    rows = [{"part": part, "details": what} for part, what in meta.get("opening", {}).items()]
    command = shlex.join([meta.get("program") or "jaxalign", *meta.get("arguments", [])])
    shown = [f"<pre class=command>{_text(command)}</pre>"]
    return [*shown, _table(rows)] if rows else shown


def write_comparison_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[str, bytes]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    tables: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] = (),
    lead: Sequence[str] = (),
) -> Path:
    """Writes a report that compares methods.

    Args:
      path: the HTML file.
      title, subtitle: what is compared, and on which data.
      rows: the table: a mapping of column to text or number per method; all with the same columns.
      pictures: (title, PNG) each.
      samples: texts side by side: a mapping of column to text per prompt.
      notes: paragraphs to show below the table.
      tables: (title, rows) each, after the notes.
      lead: paragraphs to show before the table: what the reader came for.
    """
    body = [f"<h1>{_text(title)}</h1><p class=dim>{_text(subtitle)}</p>"]
    body += [f"<p>{_text(line)}</p>" for line in lead]
    body += ["<h2>Comparison</h2>", _table(rows)]
    body += [f"<p class=dim>{_text(note)}</p>" for note in notes]
    for heading, more in tables:
        body += [f"<h2>{_text(heading)}</h2>", _table(more)]
    if pictures:
        body += ["<h2>Curves</h2>", _picture_grid(pictures)]
    if samples:
        body += ["<h2>Samples</h2>", _table(samples)]
    return write_page(path, f"{title} · jaxalign", body)


def metric_series(rows: Any) -> dict[str, tuple[list[float], list[float]]]:
    """name -> (steps, values) of all finite numbers in metrics.jsonl."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                steps, values = series.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(float(value))
    return series


def _panels(series: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Curves that belong in one picture: train/x beside eval/x; wall-clock but the speeds left out.

    `x_low` and `x_high` are a band around x.
    """
    panels: dict[str, dict[str, Any]] = {}
    # Two curves of one form: the share of the peak says more.
    speeds = ("time/tokens_per_second", "time/mfu" if "time/mfu" in series else "time/model_flops_per_second")
    for name, line in _banded(series).items():
        group, _, rest = name.partition("/")
        if group == "time" and name not in speeds:
            continue
        title = rest if group in ("train", "eval") else name
        panels.setdefault(title, {})[group if group in ("train", "eval") else name] = line
    order = [
        "loss",
        "objective/score",
        "objective/rlhf_reward",
        "objective/kl",
        "accuracy",
        "margin",
        "entropy",
    ]
    return dict(
        sorted(panels.items(), key=lambda item: (order.index(item[0]) if item[0] in order else 99, item[0]))
    )


def _banded(series: Mapping[str, Any]) -> dict[str, Any]:
    """name -> (steps, values), or (steps, values, low, high) where the interval of each value is known."""
    panels: dict[str, Any] = dict(series)
    for name, (steps, values) in series.items():
        bounds = [f"{name}_low", f"{name}_high"]
        if all(bound in series and series[bound][0] == steps for bound in bounds):
            low, high = (panels.pop(bound)[1] for bound in bounds)
            panels[name] = (steps, values, low, high)
    return panels


def _samples(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A table of samples per step: the latest open, earlier ones folded."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append({k: v for k, v in row.items() if k != "step"})
    if not steps:
        return []
    *earlier, last = sorted(steps)
    body = ["<h2>Samples during training</h2>", f"<p class=dim>step {last}</p>", _table(steps[last])]
    for step in reversed(earlier):
        body.append(f"<details><summary>step {step}</summary>{_table(steps[step])}</details>")
    return body


def _metric_table(metrics: Mapping[str, Any]) -> str:
    return _table(
        [{"metric": k, "value": v} for k, v in sorted(metrics.items()) if not k.startswith("time/")]
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p class=dim>none</p>"
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {
        c for c in columns if all(isinstance(r.get(c), (int, float)) or r.get(c) is None for r in rows)
    }
    head = "".join(f"<th{' class=number' if c in numeric else ''}>{_text(c)}</th>" for c in columns)
    lines = []
    for row in rows:
        cells = [
            f"<td class=number>{_text(_value(row.get(c)))}</td>"
            if c in numeric
            else f"<td class=text>{_folded(_value(row.get(c)))}</td>"
            for c in columns
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _picture_grid(pictures: Sequence[tuple[str, bytes]]) -> str:
    images = [f'<img alt="{_text(title)}" src="{plots.data_uri(picture)}">' for title, picture in pictures]
    return f"<div class=grid>{''.join(images)}</div>"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _folded(text: str) -> str:
    """A text as HTML; of a long one the beginning, and the whole to be opened."""
    start = "\n".join(text[:FOLDED].split("\n")[:12])
    if len(text) <= len(start) + 100 and text.count("\n") < 15:
        return _text(text)
    return f"<details><summary>{_text(start)} …</summary>{_text(text)}</details>"


def _text(value: Any) -> str:
    return html.escape(str(value))


def write_page(path: Path, title: str, body: Sequence[str], *, style: str = "") -> Path:
    """Writes an HTML page that needs no other file; it appears whole or not at all.

    Args:
      path: the file.
      title: of the page, plain text.
      body: pieces of HTML.
      style: CSS beyond that of all pages.
    """
    page = (
        f"<!doctype html><html lang=en><head><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{_text(title)}</title><style>{STYLE}{style}</style></head><body>{''.join(body)}</body></html>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path
