"""Reads a run's checkpoints without disturbing the run: steps, metrics, and parts of their trees.

`CheckpointStore` cleans up behind saves that were cut off, and so must not be opened beside a run that is training.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxalign.checkpoints.integrity import check_whole, unreadable
from jaxalign.errors import CheckpointError

COMMITTED = "_CHECKPOINT_METADATA"


def saved_steps(folder: str | Path) -> list[int]:
    """The steps of all whole checkpoints in a folder, oldest first."""
    markers = Path(folder).glob(f"*/{COMMITTED}")
    return sorted(int(file.parent.name) for file in markers if file.parent.name.isdigit())


def saved_metrics(folder: str | Path, step: int) -> dict[str, float]:
    """The metrics that were saved with a checkpoint, by name; none where it was not evaluated."""
    file = Path(folder) / str(step) / "metrics" / "metrics"
    try:
        return {name: float(value) for name, value in json.loads(file.read_text()).items()}
    except (OSError, ValueError):
        return {}


def saved_at(folder: str | Path, step: int) -> int:
    """When a checkpoint was committed, nanoseconds since 1970, by which two of one step differ; 0 where it is
    gone."""
    try:
        body = json.loads((Path(folder) / str(step) / COMMITTED).read_text())
        return int(body.get("commit_timestamp_nsecs") or 0)
    except (OSError, ValueError):
        return 0


def best_step(folder: str | Path, metric: str, mode: str, without: Collection[int] = ()) -> int | None:
    """The checkpoint that is best by a metric, of equals the newest, `without` some; None where none was saved with
    it."""
    steps = [step for step in saved_steps(folder) if step not in without]
    values = {step: saved_metrics(folder, step).get(metric) for step in steps}
    known = [
        (value if mode == "max" else -value, step) for step, value in values.items() if value is not None
    ]
    return max(known)[1] if known else None


def saved_tree(folder: str | Path, step: int) -> Any:
    """A checkpoint's tree, with what Orbax has noted of each array in its place.

    Raises:
      DamagedCheckpointError: damaged files.
      CheckpointError: no such checkpoint.
    """
    where = Path(folder).absolute() / str(step)
    if step not in saved_steps(folder):
        raise CheckpointError(
            f"{folder}: no checkpoint at step {step}; saved steps: {saved_steps(folder) or 'none'}"
        )
    try:
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        return getattr(reader.metadata(where / "arrays").item_metadata, "tree", None)
    except Exception as error:
        raise unreadable(where, error) from error


def read_part(folder: str | Path, step: int, path: Sequence[str]) -> Any:
    """One part of a checkpoint's tree, on the host; the rest is not read.

    Args:
      folder: of all checkpoints.
      step: which.
      path: names from the root of the tree, such as ("params", "policy").

    Returns:
      Nested dicts of NumPy arrays, with the shapes and dtypes that were saved.

    Raises:
      DamagedCheckpointError: damaged files, of all arrays.
      CheckpointError: no such checkpoint or part.
    """
    where = Path(folder).absolute() / str(step)
    if step in saved_steps(folder):
        check_whole(where, ("arrays",))
    tree = saved_tree(folder, step)
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            raise CheckpointError(f"{where}: the checkpoint has no {'/'.join(path)}")
        tree = tree[name]
    item = tree
    for name in reversed(path):
        item = {name: item}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    try:
        part = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
            where / "arrays",
            args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True),
        )
    except Exception as error:
        raise unreadable(where, error) from error
    for name in path:
        part = part[name]
    return part
