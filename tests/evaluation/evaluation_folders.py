"""Folders as `jaxalign evaluate` writes them, small ones."""

import json


def figure(value=0.5, **changes):
    """A metric's object in results.json."""
    return {
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "count": 4,
        "chance": None,
        "better": "higher",
        "about": "",
    } | changes


def task(metrics=None, **changes):
    """A task's object in results.json."""
    return {
        "about": "What it asks.",
        "source": "A paper",
        "file": "rows.jsonl",
        "sha256": "ab" * 32,
        "kind": "choices",
        "items": 4,
        "of": 4,
        "seconds": 3.0,
        "judge": "",
        "notes": [],
        "metrics": {"accuracy": figure()} if metrics is None else metrics,
        "groups": {},
    } | changes


def results(model="mine", tasks=None, **changes):
    """results.json."""
    return {
        "model": model,
        "created": "2026-01-02T03:04:05+00:00",
        "settings": {"model": model, "shots": 5},
        "versions": {"jaxalign": "1.2.3"},
        "device": "cpu",
        "tasks": {"quiz": task()} if tasks is None else tasks,
    } | changes


def item(index=0, score=None, **changes):
    """A row of items/TASK.jsonl."""
    scores = {} if score is None else {"accuracy": score}
    row = {
        "index": index,
        "place": f"rows.jsonl:{index + 1}",
        "prompt": f"question {index}",
        "scores": scores,
    }
    return row | changes


def write(folder, found, items=None):
    """Writes a folder and returns it; `items` are rows by task."""
    (folder / "items").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))
    for name, rows in (items or {}).items():
        path = folder / "items" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
