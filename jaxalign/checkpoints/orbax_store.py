"""Saves and restores any tree of arrays, plus JSON data, with Orbax.

A save copies the arrays to the host before it returns (the step donates them) and
writes in the background to a temporary name; the rename is the commit. A checkpoint
without its commit is never seen. What was damaged later is told by its checksums, see
`integrity`.
"""

import errno
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from jaxalign.checkpoints.integrity import check_whole, set_aside, unreadable, write_checksums
from jaxalign.errors import CheckpointError, DamagedCheckpointError
from jaxalign.processes import by_first, first

TEMPORARY = ".orbax-checkpoint-tmp"


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
      warn: takes a line about a checkpoint that is damaged; None logs it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_last: int = 3,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._warn, self._saving = warn or logging.getLogger(__name__).warning, -1
        # Orbax deletes them when it opens the folder.
        self._cut_off = by_first(lambda: sorted(path.name for path in self.folder.glob(f"*{TEMPORARY}")))
        by_first(self._set_bad_metrics_aside)
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
            # Called when all files are written, before the rename.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._note_checksums),
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
            self._manager.wait_until_finished()
            self._saving = step
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
          DamagedCheckpointError: damaged files.
          CheckpointError: no such checkpoint, or a tree that does not fit (names the leaf).
        """
        there = self.steps()
        if step not in there:
            raise CheckpointError(f"{self.folder}: no checkpoint at step {step}; saved steps: {there}")
        by_first(lambda: check_whole(self.folder / str(step)))
        return self._restored(step, like)

    def restore_newest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, arrays, extra) of the newest checkpoint that is whole; None where none was ever saved.

        Newer ones that are damaged are renamed to STEP.damaged, with a warning, and can be saved again.

        Args:
          like: see `restore`.

        Raises:
          CheckpointError: checkpoints, but none that is whole, and nothing is renamed; or a tree that does not fit.
        """
        there, damaged = self.steps(), dict[int, str]()
        while True:
            # The first process reads the files for all, which must go on from the same step.
            step, damaged = by_first(lambda damaged=damaged: _newest_whole(self.folder, there, damaged))
            if step is None:
                break
            try:
                arrays, extra = self._restored(step, like)
            except DamagedCheckpointError as error:  # of a version without checksums
                damaged[step] = str(error)
                continue
            for bad, message in damaged.items():
                aside = by_first(lambda bad=bad: set_aside(self.folder / str(bad)))
                self._warn(f"{message}; it is now {aside.name}, and the run goes on from step {step}")
            if damaged:
                self._manager.reload()
            self._warn_of_cut_off(f"the run goes on from step {step}")
            return step, arrays, extra
        aside = by_first(lambda: sorted(path.name for path in self.folder.glob("*.damaged*")))
        if damaged or aside:
            every = "; ".join([*damaged.values(), *aside])
            raise CheckpointError(f"{self.folder}: no checkpoint is whole; nothing was deleted: {every}")
        self._warn_of_cut_off("no checkpoint was saved before, and the run begins anew")
        return None

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

    def _restored(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
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
            raise unreadable(self.folder / str(step), error) from error
        return result["arrays"], dict(result["extra"])

    def _note_checksums(self) -> None:
        name = str(self._saving)
        if first():
            # A store of objects has no rename: there Orbax writes to the final name.
            temporary = self.folder / (name + TEMPORARY)
            write_checksums(temporary if temporary.is_dir() else self.folder / name)

    def _set_bad_metrics_aside(self) -> None:
        """Orbax reads the metrics of all checkpoints when it opens the folder, and raises where they are no JSON."""
        for file in self.folder.glob("*/metrics/metrics"):
            step = file.parent.parent
            try:
                if step.name.isdigit():
                    json.loads(file.read_text())
            except ValueError:
                aside = set_aside(step)
                self._warn(
                    f"{step}: the checkpoint is damaged (metrics/metrics is not valid JSON); it is now {aside.name}"
                )

    def _warn_of_cut_off(self, instead: str) -> None:
        for name in self._cut_off:
            self._warn(f"{self.folder / name}: this save was cut off; {instead}")
        self._cut_off = []

    def _check(self, step: int, like: Any) -> None:
        """Names the first leaf whose shape differs; Orbax's own message lists whole trees."""
        try:
            saved = self._manager.item_metadata(step)["arrays"]
            saved = getattr(saved, "tree", saved)
            here = dict(_named(like))
            kept = dict(_named(saved))
        except Exception as error:
            raise unreadable(self.folder / str(step), error) from error
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
                for half_written in self.folder.glob(f"*{TEMPORARY}"):
                    shutil.rmtree(half_written, ignore_errors=True)
                raise CheckpointError(
                    f"{self.folder}: no space left on the disk; the checkpoint was not saved, earlier ones are "
                    "intact"
                ) from error
            cause = cause.__cause__ or cause.__context__


def _newest_whole(
    folder: Path, steps: Sequence[int], damaged: Mapping[int, str]
) -> tuple[int | None, dict[int, str]]:
    """The newest of some steps that is not damaged, as far as checksums tell, and what is said of those that are."""
    damaged = dict(damaged)
    for step in sorted(set(steps) - damaged.keys(), reverse=True):
        try:
            check_whole(folder / str(step))
        except DamagedCheckpointError as error:
            damaged[step] = str(error)
        else:
            return step, damaged
    return None, damaged


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
