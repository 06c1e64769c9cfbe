"""Saves and restores any tree of arrays, plus JSON data, with Orbax.

A save copies the arrays to the host before it returns (the step donates them) and
writes in the background to a temporary name; the rename is the commit. A checkpoint
without its commit is never seen.
"""

import errno
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from jaxalign.errors import CheckpointError


def _not_raised_later(record: logging.LogRecord) -> bool:
    # absl says "raised an exception" with the traceback in the text, or hands it over as exc_info.
    return not (record.exc_info or "raised an exception" in record.getMessage())


logging.getLogger("absl").setLevel(logging.ERROR)
# Orbax prints what its threads raise, with a traceback, and raises it again where we wait: once is enough.
logging.getLogger("absl").addFilter(_not_raised_later)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
      folder: where; made where it is not there.
      keep_last: newest checkpoints kept.
      best_metric: also keep the checkpoint that is best by this metric; None for none.
      best_mode: whether the smallest or the largest is best.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_last: int = 3,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
    ) -> None:
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        keep: list[Any] = [policies.LatestN(max(keep_last, 1))]
        worst = float("inf") if best_mode == "min" else -float("inf")
        if best_metric:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: float((metrics or {}).get(best_metric, worst)),
                    reverse=best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            # What is kept is the policy's to say; but without this metrics stay in memory, and a resumed run would
            # forget which checkpoint was best.
            best_fn=lambda metrics: float((metrics or {}).get(best_metric, worst)),
            best_mode=best_mode,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        # Handlers by name: a manager that has not saved yet could not tell what a checkpoint holds without them.
        handlers = {"arrays": ocp.StandardCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(
        self, step: int, arrays: Any, extra: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts saving; the arrays may be donated once it returns.

        Args:
          step: name of the checkpoint.
          arrays: any tree of JAX or NumPy arrays.
          extra: what JSON can hold.
          metrics: numbers by name, for `best_metric`.

        Raises:
          CheckpointError: the disk is full, here or in the save before; earlier checkpoints are whole.
        """
        clean = {k: float(v) for k, v in (metrics or {}).items() if np.isfinite(v)}
        with self._disk_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays), extra=ocp.args.JsonSave(dict(extra))
                ),
                metrics=clean or None,
                force=True,
            )

    def latest_step(self) -> int | None:
        """The newest whole checkpoint, or None."""
        with self._disk_errors():
            self._manager.wait_until_finished()
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All whole checkpoints, oldest first; a save in progress is waited for."""
        with self._disk_errors():
            self._manager.wait_until_finished()
        return sorted(self._manager.all_steps(read=True))

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(arrays, extra) of a checkpoint.

        Args:
          step: which.
          like: a tree of arrays (or ShapeDtypeStructs with shardings) of the same shapes; the arrays
            come back with its dtypes and shardings.

        Raises:
          CheckpointError: no such checkpoint, a tree that does not fit (names the leaf), or damaged files.
        """
        there = self.steps()
        if step not in there:
            raise CheckpointError(f"{self.folder}: no checkpoint at step {step}; saved steps: {there}")
        self._check(step, like)
        target = jax.tree.map(_abstract, like)
        try:
            result = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            others = [s for s in there if s != step]
            raise CheckpointError(
                f"{self.folder / str(step)}: the checkpoint cannot be read ({_first_line(error)}); "
                f"other checkpoints: {others or 'none'}"
            ) from error
        return result["arrays"], dict(result["extra"])

    def wait(self) -> None:
        """Returns when the save in progress is on disk.

        Raises:
          CheckpointError: it could not be written; earlier checkpoints are whole.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits, and frees the threads."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Lets the save in progress end, whatever else went wrong; an error under way is not covered by another."""
        try:
            self.close()
        except Exception:
            if error is None:
                raise

    def _check(self, step: int, like: Any) -> None:
        """Names the first leaf whose shape differs; Orbax's own message lists whole trees."""
        try:
            saved = self._manager.item_metadata(step)["arrays"]
            saved = getattr(saved, "tree", saved)
            here = dict(_named(like))
            kept = dict(_named(saved))
        except Exception as error:
            raise CheckpointError(
                f"{self.folder / str(step)}: the checkpoint cannot be read ({_first_line(error)})"
            ) from error
        for name, leaf in here.items():
            if name not in kept:
                raise CheckpointError(
                    f"{self.folder / str(step)}: the checkpoint has no array {name}; it was saved with a different "
                    "configuration"
                )
            if tuple(kept[name].shape) != tuple(leaf.shape):
                raise CheckpointError(
                    f"{self.folder / str(step)}: {name} has shape {list(kept[name].shape)}, but this run's has "
                    f"{list(leaf.shape)}; the checkpoint was saved with a different configuration"
                )
        more = [name for name in kept if name not in here]
        if more:
            raise CheckpointError(
                f"{self.folder / str(step)}: the checkpoint has arrays that this run lacks, such as {more[0]}; it "
                "was saved with a different configuration"
            )

    def _disk_errors(self) -> "_DiskErrors":
        return _DiskErrors(self.folder)


class _DiskErrors:
    """A full disk becomes one line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        cause = error
        while cause is not None:
            full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or any(
                s in str(cause) for s in ("No space left on device", "ENOSPC", "Disk quota exceeded")
            ):
                for half_written in self.folder.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(half_written, ignore_errors=True)
                raise CheckpointError(
                    f"{self.folder}: no space left on the disk; the checkpoint was not saved, earlier ones are "
                    "intact"
                ) from error
            cause = cause.__cause__ or cause.__context__


def _named(tree: Any):
    """(path, leaf) with attribute, key and index written alike, so that classes and dicts compare."""

    def part(entry: Any) -> str:
        for attribute in ("name", "key", "idx"):
            if hasattr(entry, attribute):
                return str(getattr(entry, attribute))
        return str(entry)

    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield "/".join(part(p) for p in path), leaf


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return leaf


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
