"""Resolves the names of runs and their checkpoints."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jaxalign.checkpoints import best_step, saved_steps
from jaxalign.errors import CheckpointError, ConfigError


def read_metadata(run: Path) -> dict[str, Any]:
    """The metadata of a run.

    Raises:
      ConfigError: the folder holds no run, or a damaged one.
    """
    path = run / "metadata.json"
    try:
        return json.loads(path.read_text())
    except OSError:
        raise ConfigError(f"{run}: expected a run folder, but it has no {path.name}") from None
    except ValueError:
        raise ConfigError(f"{path}: not valid JSON; the run folder is damaged") from None


def find_step(run: Path, name: str, config: Any, without: Collection[int] = ()) -> int:
    """The step of the checkpoint of that name; best and latest are those `without` some.

    Raises:
      ConfigError: the name means none.
      CheckpointError: it is not there.
    """
    folder = run / "checkpoints"
    steps = saved_steps(folder)
    if not steps:
        raise CheckpointError(f"{run}: the run has no checkpoint yet; set run.save_every to save them")
    name = name or ("best" if config.best_metric else "latest")
    if name == "latest":
        return [step for step in steps if step not in without][-1]
    if name == "best":
        if not config.best_metric:
            raise ConfigError(
                f"{run}: run.best_metric was not set, so no checkpoint is marked best; name a step: "
                f"{', '.join(map(str, steps))}"
            )
        best = best_step(folder, config.best_metric, config.best_mode, without)
        if best is None:
            raise CheckpointError(
                f"{run}: no checkpoint was evaluated by {config.best_metric}; name a step: {', '.join(map(str, steps))}"
            )
        return best
    if not name.isdigit():
        raise ConfigError(
            f"--checkpoint={name}: expected a step, best or latest; steps: {', '.join(map(str, steps))}"
        )
    if int(name) not in steps:
        raise CheckpointError(
            f"{run}: no checkpoint at step {name}; saved steps: {', '.join(map(str, steps))}"
        )
    return int(name)
