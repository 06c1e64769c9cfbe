"""TensorBoard and Weights & Biases beside metrics.jsonl, where they are asked for."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxalign.errors import ConfigError
from jaxalign.runs.config import RunConfig


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError(
                "run.tensorboard: install the extra first: pip install 'jaxalign[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """Its run is opened with the first numbers: by then configuration, model and data were found to be good."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError("run.wandb: install the extra first: pip install 'jaxalign[wandb]'") from None
        self._wandb, self._folder, self._config = wandb, folder, config
        self._run: Any = None

    def _open(self) -> Any:
        # The same id on every start, so that a resumed run goes on where it was.
        name = self._folder / "wandb-id"
        if not name.exists():
            name.write_text(os.environ.get("WANDB_RUN_ID", secrets.token_hex(4)) + "\n")
        # What else its variables say (entity, mode, tags) wandb reads by itself.
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxalign"),
            name=os.environ.get("WANDB_NAME", self._folder.name),
            id=name.read_text().strip(),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(self._folder)),
            config=dict(self._config),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = self._open()
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def make_trackers(config: RunConfig, folder: Path, full_config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that the configuration asks for.

    Raises:
      ConfigError: a tracker whose package is not installed; names the extra.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(_TensorBoard(folder))
    if config.wandb:
        trackers.append(_WandB(folder, full_config))
    return trackers
