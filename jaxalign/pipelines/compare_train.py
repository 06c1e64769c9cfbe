"""Trains a cell of a comparison, and counts what it cost."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxalign import models
from jaxalign.data.files import rows_of
from jaxalign.errors import DataError
from jaxalign.mesh import MeshConfig, devices_of, make_mesh
from jaxalign.models.folders import model_folder
from jaxalign.pipelines.compare_cell import Cell, proxy_source, start_folder, write_json
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_methods import METHODS, flat, load, trainer_config
from jaxalign.pipelines.compare_watch import Curve, Watched, cost_of
from jaxalign.training.core.reward_source import RewardSource, build_reward

# Columns of a feedback file that may hold an answer.
ANSWERS = ("completion", "answer", "response", "output", "chosen")


def train_cell(config: CompareConfig, cell: Cell, folder: Path) -> dict[str, Any]:
    """What the training of a cell cost, and its curve; goes on where it was stopped.

    Raises:
      UserError: what its trainer raises.
    """
    file = folder / "training.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    train, runs, curve = load(cell.about.function), [], None
    start = config.model if cell.beginning and cell.method == "sft" else start_folder(config)
    given = {"seed": cell.seed, "beginning": cell.beginning, "start": start}
    if cell.method == "feedback":
        for i, part in enumerate(feedback_parts(config, folder)):
            run, of = folder / f"round-{i + 1}", (i, config.budget.rounds)
            given |= {"files": (str(part),), "part": of, "start": start if i == 0 else str(runs[-1])}
            train(trainer_config(config, cell.method, folder=run, **given))
            runs.append(run)
    else:
        runs.append(folder / "run")
        source, live = proxy_source(config), {}
        proxy = source.model if METHODS.get(cell.method, cell.about).proxy else ""
        settings = trainer_config(config, cell.method, folder=runs[0], proxy=proxy, **given)
        if cell.about.kind == "sampled":
            reward = _watched(config, source)
            curve = Curve(reward)
            shaping = ("missing_stop_penalty", "missing_stop_score", "clip", "normalize", "whiten")
            shaped = replace(settings.reward, **{name: getattr(source, name) for name in shaping})
            settings = replace(settings, reward=shaped)
            live = {"reward": reward, "callbacks": [curve]}
        train(settings, **live)
    costs = [cost_of(run, sampled=cell.about.kind == "sampled") for run in runs]
    found = {
        "seconds": sum(cost["seconds"] for cost in costs),
        "tokens": sum(cost["tokens"] for cost in costs),
        "steps": sum(cost["steps"] for cost in costs),
        "trainable": costs[-1]["trainable"],
        "metrics": costs[-1]["metrics"],
        "curve": curve.points if curve else [],
        **(peaks() if config.isolated else {}),
    }
    write_json(file, found)
    return found


def _watched(config: CompareConfig, source: RewardSource) -> Watched:
    """The proxy, and beside it, without weight, the gold reward."""
    folder = model_folder(start_folder(config))
    options = {
        "mesh": make_mesh(MeshConfig(), devices_of(config.device)),
        "batch_size": 64,
        "vocabulary": models.load_config(folder).vocab_size,
        "tokenizer": models.load_tokenizer(folder),
    }
    parts = {"proxy": build_reward(source, None, **options)[0]}
    if config.gold.named:
        parts["gold"] = build_reward(config.gold, None, **options)[0]
    return Watched(parts, {"proxy": 1.0, "gold": 0.0})


def feedback_parts(config: CompareConfig, folder: Path) -> list[Path]:
    """The rows of the feedback in as many parts as there are rounds, in order, with what people edited in place.

    Raises:
      DataError: fewer rows than rounds, or an edited answer in a row that has none.
    """
    settings = dict(flat(config.settings.get("feedback", {}), {"data.columns"}))
    columns = settings.get("data.columns", {})
    rows = []
    for file in config.data.feedback:
        for place, row in rows_of(file):
            if isinstance(row, DataError):
                raise row
            rows.append(_as_edited(place, dict(row), columns, settings))
    rounds = config.budget.rounds
    if len(rows) < rounds:
        raise DataError(f"{', '.join(config.data.feedback)}: {len(rows)} rows for {rounds} rounds")
    parts = []
    for i in range(rounds):
        parts.append(folder / f"feedback-{i + 1}.jsonl")
        part = rows[len(rows) * i // rounds : len(rows) * (i + 1) // rounds]
        parts[-1].write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return parts


def _as_edited(
    place: str, row: dict[str, Any], columns: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    edited = row.pop("edited", None)
    if not (isinstance(edited, str) and edited.strip()):
        return row
    answer = columns.get("completion") or next((name for name in ANSWERS if name in row), "")
    if not isinstance(row.get(answer), str):
        raise DataError(
            f"{place}: expected a text in {answer or 'completion'}, which 'edited' takes the place of"
        )
    row[answer] = edited
    if "label" in row:
        row["label"] = True
    least, field = settings.get("data.min_score"), settings.get("data.score_field", "score")
    if least is not None and field in row:
        row[field] = least
    return row


def peaks() -> dict[str, int]:
    """The most memory that this process has held, bytes: on the host (Linux), and on its first accelerator."""
    import jax

    found = {}
    status = Path("/proc/self/status")
    if status.is_file() and (held := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        found["host_bytes"] = int(held[1]) * 1024
    stats = jax.local_devices()[0].memory_stats() or {}
    if jax.default_backend() != "cpu" and "peak_bytes_in_use" in stats:
        found["device_bytes"] = int(stats["peak_bytes_in_use"])
    return found
