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
    "words",
    "toxicity",
    "judge",
}


def identity(config: EvaluateConfig, task: str) -> dict[str, Any]:
    """What the answers of a task depend on."""
    settings = {name: value for name, value in plain(config).items() if name.split(".")[0] not in _FREE}
    if benchmark_of(task).kind in ("choices", "text"):
        settings = {name: value for name, value in settings.items() if not name.startswith("sampling.")}
    if file := config.shots.get(task):
        settings |= {"shots": file, "shots sha256": sha256(file), "num_shots": config.num_shots}
    named = [name for name in (config.model, config.adapter, config.patient, *config.doctor) if name]
    files = [_fingerprint(name) for name in named]
    return {**settings, "model files": files, "file sha256": sha256(config.tasks[task])}


def _fingerprint(model: str) -> str:
    """Names, sizes and times of a model's files, as one word; empty where it is no folder or file here."""
    if (
        not model
        or model.startswith(("http://", "https://"))
        or not (place := Path(model_folder(model))).exists()
    ):
        return ""
    files = [place] if place.is_file() else sorted(x for x in place.iterdir() if x.is_file())
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


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
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    found = {"jaxalign": jaxalign.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    import jax

    devices = jax.devices()
    return f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})"
