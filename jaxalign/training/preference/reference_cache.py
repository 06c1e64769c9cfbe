"""The reference's log-probs of a data set's completions: computed once, kept in a file."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign import models, processes
from jaxalign.data import Dataset, Example, eval_batches
from jaxalign.errors import CheckpointError
from jaxalign.mesh import row_shards
from jaxalign.processes import fetch
from jaxalign.training.core.loading import refuse_stream
from jaxalign.training.core.offline import DatasetFeed, OfflineRun
from jaxalign.training.core.scoring import score_tokens
from jaxalign.training.preference.objectives import PreferenceBatch, completion_sums


@dataclass(frozen=True)
class ReferenceTable:
    """Summed log-probs of every completion under the reference.

    Attributes:
      train: float32 [N, G], by the row ids of training batches.
      validation: float32 [M, G], by those of validation batches.
    """

    train: np.ndarray
    validation: np.ndarray

    def attached(self, columns: Mapping[str, Any], *, training: bool) -> dict[str, Any]:
        """The columns of a batch with `ref_logps` [B, G]."""
        rows = self.train if training else self.validation
        return {**columns, "ref_logps": rows[np.asarray(columns["row_ids"])]}


def precomputed_reference(run: OfflineRun, feed: DatasetFeed, definition: Any, params: Any) -> ReferenceTable:
    """The reference's log-probs of all completions, from the cache or computed; the run notes the file."""
    config, alpha = run.config, run.config.loss.length_alpha
    refuse_stream(feed.data, "reference_logps=precomputed")

    @jax.jit
    def score(params: Any, batch: PreferenceBatch) -> jax.Array:
        rows = batch.rows()
        logps = score_tokens(models.merge(definition, params), rows).logps
        return completion_sums(logps, rows.mask, batch.shape, alpha)

    table, path = reference_table(
        Path(config.reference_cache or run.run.folder / "reference"),
        feed.data,
        params,
        {"length_alpha": alpha, "dtype": definition.config.compute_dtype},
        lambda batch: score(params, feed.place(batch, training=False)),
        feed.collate,
        batch_size=feed.eval_size,
        multiple=row_shards(run.mesh),
    )
    run.run.add_metadata(reference_logps=str(path))
    return table


def reference_table(
    folder: Path,
    data: Dataset,
    params: Any,
    settings: Mapping[str, Any],
    score: Callable[[Mapping[str, Any]], np.ndarray],
    collate: Callable[..., dict[str, Any]],
    *,
    batch_size: int,
    multiple: int = 1,
) -> tuple[ReferenceTable, Path]:
    """The table of a data set, read from `folder` where it lies there, else computed and written.

    Args:
      folder: of the files; their names are a hash of data, reference and settings, so that a table can
        never be taken for another's.
      data: the examples.
      params: the reference's parameters.
      settings: whatever else the log-probs depend on.
      score: a batch -> float32 [B, G].
      collate: examples to a batch.
      batch_size, multiple: examples scored at once, see `eval_batches`.

    Raises:
      CheckpointError: a damaged file.
    """
    name = hashlib.sha256(
        json.dumps([data.fingerprint, digest_of(params), dict(settings)], sort_keys=True).encode()
    ).hexdigest()[:24]
    path = folder / f"reference-{name}.npz"
    # As all processes find it, before one of them has written it.
    if processes.agreed(path.exists()):
        return _read(path, data), path

    def rows(examples: Sequence[Example]) -> np.ndarray:
        parts = [
            np.asarray(fetch(score(batch)), np.float32)[batch["valid"]]
            for batch in eval_batches(examples, batch_size, collate, multiple=multiple)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    table = ReferenceTable(rows(data.train), rows(data.validation))
    if not processes.first():
        return table, path
    folder.mkdir(parents=True, exist_ok=True)
    # To a name of its own, then renamed: runs may share the folder, and a file is whole or not there.
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, train=table.train, validation=table.validation)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return table, path


def digest_of(params: Any) -> str:
    """A hash of every parameter's name, shape, dtype and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        array = np.asarray(fetch(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read(path: Path, data: Dataset) -> ReferenceTable:
    try:
        with np.load(path) as stored:
            table = ReferenceTable(stored["train"], stored["validation"])
    except Exception as error:
        raise CheckpointError(
            f"{path}: the reference's log-probs cannot be read ({error}); delete the file to recompute them"
        ) from error
    if len(table.train) != len(data.train) or len(table.validation) != len(data.validation):
        raise CheckpointError(
            f"{path}: the number of rows differs from the data; delete the file to recompute it"
        )
    return table
