"""Optional trackers in addition to metrics.jsonl: TensorBoard, Weights & Biases, MLflow and Trackio."""

import html
import importlib
import os
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxalign.errors import ConfigError
from jaxalign.runs import records
from jaxalign.runs.config import RunConfig

# What completions are called in every tracker.
SAMPLES = "completions"


class Tracker(Protocol):
    """Takes the numbers of a step.

    One that also has `log_samples(step, rows)` gets the completions that a run samples: mappings of column to value,
    with `prompt`, `completion` and, where there is one, `score`.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table in Markdown; nothing in a text is taken for markup."""

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        # Letters with a meaning in Markdown as their numbers in HTML.
        text = re.sub(r"[|\\`*_\[\]#~$]", lambda match: f"&#{ord(match[0])};", html.escape(text))
        return text.replace("\n", "<br>")

    columns = columns_of(rows)
    lines = [columns, ["---"] * len(columns), *([cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _kept(file: Path, make: Callable[[], str]) -> str:
    """What a file of the run folder holds, made at first: a resumed run continues under the same name."""
    if not file.exists():
        file.write_text(make() + "\n")
    return file.read_text().strip()


class _Late(ABC):
    """A tracker whose run is opened with the first numbers: by then configuration, model and data are known to be
    good.

    Args:
      module: the tracker's package.
      folder: the run folder.
      config: the whole configuration.
    """

    def __init__(self, module: Any, folder: Path, config: Mapping[str, Any]) -> None:
        self._module, self._folder, self._config = module, folder, config
        self._opened: Any = None

    @abstractmethod
    def _open(self) -> Any:
        """Opens the run."""

    @property
    def _run(self) -> Any:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.finish()


class _TensorBoard(_Late):
    def _open(self) -> Any:
        return self._module.SummaryWriter(str(self._folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._run.add_scalar(name, value, step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._run.add_text(SAMPLES, markdown_table(rows), step)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


class _WandB(_Late):
    def _open(self) -> Any:
        # What else its variables say (entity, mode, tags) wandb reads by itself.
        return self._module.init(
            project=os.environ.get("WANDB_PROJECT", "jaxalign"),
            name=os.environ.get("WANDB_NAME", self._folder.name),
            id=_kept(self._folder / "wandb-id", lambda: os.environ.get("WANDB_RUN_ID", secrets.token_hex(4))),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(self._folder)),
            config=dict(self._config),
        )

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = columns_of(rows)
        data = [[row.get(name) for name in columns] for row in rows]
        self._run.log({SAMPLES: self._module.Table(columns=columns, data=data)}, step=step)


class _Trackio(_Late):
    def _open(self) -> Any:
        # It knows a run by its name alone. What else its variables say (TRACKIO_SPACE_ID, ...) it reads by itself.
        name = _kept(self._folder / "trackio-name", lambda: f"{self._folder.name}-{secrets.token_hex(2)}")
        return self._module.init(
            project=os.environ.get("TRACKIO_PROJECT", "jaxalign"),
            name=name,
            resume="allow",
            config=dict(self._config),
            embed=False,
        )

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        import pandas

        self._run.log({SAMPLES: self._module.Table(dataframe=pandas.DataFrame(rows))}, step=step)


class _MLflow(_Late):
    """By the client, which leaves the run that a user's own program may have open alone."""

    def _open(self) -> str:
        """Opens the run; `_run` is its id. Where it is, MLFLOW_TRACKING_URI says."""
        client = self._module.MlflowClient()
        self._client, file = client, self._folder / "mlflow-id"
        if file.exists() or "MLFLOW_RUN_ID" in os.environ:
            number = _kept(file, lambda: os.environ["MLFLOW_RUN_ID"])
            client.update_run(number, status="RUNNING")
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxalign")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if experiment is None:
            existing = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if existing is None else existing.experiment_id
        run = client.create_run(experiment, run_name=os.environ.get("MLFLOW_RUN_NAME", self._folder.name))
        param, pairs = self._module.entities.Param, _flat(self._config)
        for start in range(0, len(pairs), 100):  # as many as a request may have
            some = [param(key, str(value)[:500]) for key, value in pairs[start : start + 100]]
            client.log_batch(run.info.run_id, params=some)
        return _kept(file, lambda: run.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        number, metric, now = self._run, self._module.entities.Metric, int(1000 * time.time())
        # The letters that its names may have.
        names = {name: re.sub(r"[^\w.\- :/]", "_", name) for name in values}
        self._client.log_batch(number, [metric(names[n], float(v), now, step) for n, v in values.items()])

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        number = self._run
        data = {name: [row.get(name) for row in rows] for name in columns_of(rows)}
        # A table a step: one that grows would be fetched for each addition.
        self._client.log_table(number, records.clean(data), f"{SAMPLES}/step-{step}.json")

    def close(self) -> None:
        if self._opened is not None:
            self._client.set_terminated(self._opened)


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of a configuration."""
    if isinstance(tree, Mapping) and tree:
        return [pair for name, value in tree.items() for pair in _flat(value, f"{prefix}{name}.")]
    return [(prefix.rstrip("."), tree)]


# Key of the section `run`, and extra -> package, tracker.
TRACKERS: dict[str, tuple[str, type[_Late]]] = {
    "tensorboard": ("tensorboardX", _TensorBoard),
    "wandb": ("wandb", _WandB),
    "mlflow": ("mlflow", _MLflow),
    "trackio": ("trackio", _Trackio),
}


def make_trackers(config: RunConfig, folder: Path, full_config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that the configuration asks for; nothing is written before their first numbers.

    Raises:
      ConfigError: a tracker whose package is not installed; names the extra.
    """
    trackers: list[Any] = []
    for key, (package, tracker) in TRACKERS.items():
        if getattr(config, key):
            try:
                module = importlib.import_module(package)
            except ImportError:
                message = f"run.{key}: install the extra first: pip install 'jaxalign[{key}]'"
                raise ConfigError(message) from None
            trackers.append(tracker(module, folder, full_config))
    return trackers
