"""report.html: a run, or a comparison of runs, in one self-contained file."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.runs import plots, records
from jaxalign.runs.page import escaped, table, write_page

# Prompts whose answers are shown.
ANSWERS = 16


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
        f"<h1>{escaped(meta.get('command', 'run'))}: {escaped(folder.name)}</h1><p class=dim>{escaped(facts)}</p>",
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
        f"<details><summary>config.yaml as JSON</summary><pre>{escaped(flat)}</pre></details>",
        f"<details><summary>versions</summary><pre>{escaped(versions)}</pre></details>",
    ]
    return write_page(folder / "report.html", f"{folder.name} · jaxalign", body)


def _opening(meta: Mapping[str, Any]) -> list[str]:
    """The command that started the run, and what it printed at its start."""
    rows = [{"part": part, "details": what} for part, what in meta.get("opening", {}).items()]
    command = shlex.join([meta.get("program") or "jaxalign", *meta.get("arguments", [])])
    shown = [f"<pre class=command>{escaped(command)}</pre>"]
    return [*shown, table(rows)] if rows else shown


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
    body = [f"<h1>{escaped(title)}</h1><p class=dim>{escaped(subtitle)}</p>"]
    body += [f"<p>{escaped(line)}</p>" for line in lead]
    body += ["<h2>Comparison</h2>", table(rows)]
    body += [f"<p class=dim>{escaped(note)}</p>" for note in notes]
    for heading, more in tables:
        body += [f"<h2>{escaped(heading)}</h2>", table(more)]
    if pictures:
        body += ["<h2>Curves</h2>", _picture_grid(pictures)]
    if samples:
        body += ["<h2>Samples</h2>", table(samples)]
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
    """Answers of evaluations by generation, and a table of samples per step: the latest open, earlier ones folded."""
    steps: dict[int, list[dict[str, Any]]] = {}
    answers: list[Mapping[str, Any]] = []
    for row in rows:
        if "source" in row:
            answers.append(row)
        else:
            steps.setdefault(row["step"], []).append({k: v for k, v in row.items() if k != "step"})
    body = _answers(answers)
    if not steps:
        return body
    *earlier, last = sorted(steps)
    body += ["<h2>Samples during training</h2>", f"<p class=dim>step {last}</p>", table(steps[last])]
    for step in reversed(earlier):
        body.append(f"<details><summary>step {step}</summary>{table(steps[step])}</details>")
    return body


def _answers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first and the last evaluation's answers to the same prompts, side by side."""
    if not rows:
        return []
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    # Of a run with several models, each has its own answer to a prompt.
    places: dict[tuple[Any, Any], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["step"] in (first, last) and not row.get("sample"):
            places.setdefault((row.get("dimension"), row["number"]), {})[row["step"]] = row
    shown = []
    for (dimension, number), by_step in places.items():
        if number >= ANSWERS:
            continue
        line = {"dimension": dimension} if dimension is not None else {}
        line |= {"prompt": next(iter(by_step.values()))["prompt"]}
        for step in dict.fromkeys((first, last)):
            row = by_step.get(step, {})
            line[f"step {step}"] = row.get("completion")
            if "score" in row:
                line[f"score at step {step}"] = row["score"]
        shown.append(line)
    prompts = len({number for _, number in places})
    less = f"the first {min(prompts, ANSWERS)} of {prompts} prompts, " if prompts > ANSWERS else ""
    note = f"<p class=dim>{less}one answer each; samples.jsonl has all</p>"
    return ["<h2>Answers to held-out prompts</h2>", note, table(shown)]


def _metric_table(metrics: Mapping[str, Any]) -> str:
    return table([{"metric": k, "value": v} for k, v in sorted(metrics.items()) if not k.startswith("time/")])


def _picture_grid(pictures: Sequence[tuple[str, bytes]]) -> str:
    images = [f'<img alt="{escaped(title)}" src="{plots.data_uri(picture)}">' for title, picture in pictures]
    return f"<div class=grid>{''.join(images)}</div>"
