"""What an evaluation's answers and figures come from: settings, files, versions, devices."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import jaxalign
from jaxalign.evaluation.benchmarks import benchmark_of
from jaxalign.evaluation.evaluate_config import EvaluateConfig
from jaxalign.models.folders import model_folder

PACKAGES = ("jax", "flax", "transformers", "sacrebleu", "rouge-score")
# Of a file, what is read to tell it from others: so many pieces of so many bytes.
PIECES, PIECE = 64, 2**16
# What answers do not depend on.
_FREE = {
    "tasks",
    "limit",
    "batch_size",
    "output",
    "name",
    "compare",
    "training",
    "shots",
    "num_shots",
    "reference",
    "reward",
    "gold",
    "best_of",
    "encoder",
    "words",
    "toxicity",
    "judge",
}


def identity(config: EvaluateConfig, task: str) -> dict[str, Any]:
    """What the answers of a task depend on."""
    settings = {name: value for name, value in plain(config).items() if name.split(".")[0] not in _FREE}
    if benchmark_of(task).kind in ("choices", "text", "pairs"):
        settings = {name: value for name, value in settings.items() if not name.startswith("sampling.")}
    if config.best_of > 1:
        chosen = {f"reward.{name}": value for name, value in plain(config.reward).items()}
        settings |= {"best_of": config.best_of, **chosen}
        rewards = [name for name in (config.reward.model, *config.reward.models) if name]
        settings["reward files"] = [_fingerprint(name) for name in rewards]
    if benchmark_of(task).kind == "pairs" and config.reference:
        settings |= {"reference": config.reference, "reference files": _fingerprint(config.reference)}
    if file := config.shots.get(task):
        settings |= {"shots": file, "shots sha256": sha256(file), "num_shots": config.num_shots}
    named = [name for name in (config.model, config.adapter, config.patient, *config.doctor) if name]
    files = [_fingerprint(name) for name in named]
    return {**settings, "model files": files, "file sha256": sha256(config.tasks[task])}


def _fingerprint(model: str) -> str:
    """A word for the content of a model's files; empty where it is no folder or file here.

    Of a large file a few pieces are read: training changes all of its weights, and a copy none.
    """
    if model.startswith(("http://", "https://")):
        return ""
    place = Path(model_folder(model))
    if not place.exists():
        return ""
    files = [place] if place.is_file() else sorted(x for x in place.iterdir() if x.is_file())
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(json.dumps([file.name, size]).encode())
        with file.open("rb") as content:
            for piece in range(PIECES):
                content.seek(size * piece // PIECES)
                found.update(content.read(PIECE))
    return found.hexdigest()[:16]


def plain(config: Any, prefix: str = "") -> dict[str, Any]:
    """The settings by dotted name, as they can be written."""
    found: dict[str, Any] = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if hasattr(value, "__dataclass_fields__"):
            found |= plain(value, f"{prefix}{one.name}.")
        else:
            found[f"{prefix}{one.name}"] = dict(value) if isinstance(value, Mapping) else value
    return found


def sha256(file: str) -> str:
    """Of a file's bytes, in hex."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Of jaxalign, and of the packages that figures depend on, as far as they are there."""
    found = {"jaxalign": jaxalign.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """The devices, in words."""
    import jax

    devices = jax.devices()
    return f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})"
