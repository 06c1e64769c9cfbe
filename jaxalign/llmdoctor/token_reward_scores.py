"""A patient's log-probs of responses under two instructions: read from files where they lie there, else computed."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.data import Example, collate_rankings, eval_batches
from jaxalign.data.batches import Collate
from jaxalign.errors import ModelError
from jaxalign.llmdoctor import token_reward_store as store
from jaxalign.llmdoctor.contrastive_prompts import ContrastiveFormat, ContrastiveRows
from jaxalign.llmdoctor.token_reward_store import FaceScores
from jaxalign.mesh import row_shards
from jaxalign.processes import agreed, fetch
from jaxalign.processes import first as is_first
from jaxalign.runs import Run
from jaxalign.runs.progress import Progress
from jaxalign.training.core import loading, setup
from jaxalign.training.core.batch import CompletionBatch, question_axis
from jaxalign.training.core.scoring import score_tokens


@dataclass
class FaceTask:
    """Comparisons that are to be scored under the instructions of one dimension.

    Attributes:
      faces: the instructions, and how rows are written.
      splits: comparisons by name of the split.
      folder: of the parts; None where none are kept.
      rows, tokens, seconds: what was computed for it: pairs, tokens that the patient read, and how long it took.
      timed_tokens, timed_seconds: the same without the first use of each program.
    """

    faces: ContrastiveFormat
    splits: Mapping[str, Sequence[Example]]
    folder: Path | None
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    timed_tokens: int = 0
    timed_seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """What was computed: pairs, tokens that the patient read, seconds; speed, programs' first uses left out."""
        speed = self.timed_tokens / self.timed_seconds if self.timed_seconds else 0.0
        return {
            "scored_rows": self.rows,
            "scored_tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(speed, 1),
        }


@dataclass
class _Part:
    """Pairs that are scored and written together."""

    path: Path | None
    first: int
    examples: Sequence[Example]
    scores: FaceScores  # views into the arrays of the split


@dataclass
class _Missing:
    """The parts of a task that no file holds, their rows under both instructions, and how they become batches."""

    task: FaceTask
    parts: Sequence[_Part]
    rows: ContrastiveRows
    collate: Collate


class FaceScorer:
    """Scores comparisons under both instructions, four rows a pair in one batch.

    Args:
      patient: a causal model, live.
      mesh: the devices.
      batch_size: pairs scored at once.
      packing: whether rows of a batch are packed.
      run: is told how far it is; None for nobody.
    """

    def __init__(self, patient: Any, mesh: Mesh, *, batch_size: int, packing: bool, run: Run | None) -> None:
        self._definition, self._params = models.split(patient)
        self._context = patient.config.max_positions
        self._mesh, self._size, self._packing, self._run = mesh, batch_size, packing, run
        self._shapes: set[Any] = set()

    def scores(self, tasks: Sequence[FaceTask]) -> list[dict[str, FaceScores]]:
        """For each task the responses of its splits with their log-probs, in one pass over all.

        What is not in a task's folder is computed and written there.

        Raises:
          CheckpointError: a damaged part.
          DataError: a row that does not fit the patient's context.
          ModelError: log-probs that are no numbers.
        """
        found, missing = [], []
        for task in tasks:
            result = {name: store.unscored(examples) for name, examples in task.splits.items()}
            parts = self._missing_parts(task, result)
            # All rows at first, so that one that does not fit is found before anything is computed.
            rows = ContrastiveRows([e for part in parts for e in part.examples], task.faces, self._context)
            if parts:
                collate = loading.collate_of(collate_rankings, rows, packing=self._packing)
                missing.append(_Missing(task, parts, rows, collate))
            found.append(result)
        # All have seen which parts there are before one of them writes more.
        agreed(None)
        if missing:
            self._compute(missing)
        return found

    @staticmethod
    def _missing_parts(task: FaceTask, result: Mapping[str, FaceScores]) -> list[_Part]:
        """The parts that no file holds; those of files are filled in."""
        missing = []
        for name, examples in task.splits.items():
            for index, first in enumerate(range(0, len(examples), store.PART)):
                members = examples[first : first + store.PART]
                scores = store.part_of(result[name], first, len(members))
                path = None if task.folder is None else store.part_path(task.folder, name, index)
                if path is not None and path.exists():
                    _fill(scores, store.read_scores(path, scores, first=first))
                else:
                    missing.append(_Part(path, first, members, scores))
        return missing

    def _compute(self, missing: Sequence[_Missing]) -> None:
        total = sum(len(each.rows) for each in missing)
        if self._run is not None:
            self._run.info(f"token rewards: {total} pairs to score under both instructions")
        with closing(
            Progress(self._run is not None and self._run.config.progress, "token rewards")
        ) as progress:
            for each in missing:
                for part in each.parts:
                    gap = self._score(each, part)
                    tasks = [one.task for one in missing]
                    done, tokens = sum(t.rows for t in tasks), sum(t.tokens for t in tasks)
                    progress.show(done, total, "gap", gap, tokens / sum(t.seconds for t in tasks))

    def _score(self, missing: _Missing, part: _Part) -> float:
        """Computes and writes the next part of a task; the mean |difference| of the faces, nats."""
        task, rows = missing.task, missing.rows
        end = task.rows + len(part.examples)
        part.scores.cut[:] = rows.cut[task.rows : end]
        size = min(self._size, store.PART, len(rows))
        batches = eval_batches(rows[task.rows : end], size, missing.collate, multiple=row_shards(self._mesh))
        found = [self._batch(task, batch) for batch in batches]
        positive, negative = (np.concatenate(values) for values in zip(*found, strict=True))
        self._check(part, positive, negative)
        part.scores.positive_logps[:], part.scores.negative_logps[:] = positive, negative
        if part.path is not None and is_first():
            store.write_scores(part.path, part.examples, part.scores, first=part.first)
        task.rows = end
        return float(np.abs(positive - negative).mean())

    def _batch(self, task: FaceTask, batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Log-probs of the counted tokens under each instruction: pair after pair, chosen before rejected."""
        batch = question_axis(batch)
        began = time.perf_counter()
        placed = setup.on_mesh(batch, CompletionBatch, self._mesh, packing=self._packing)
        logps = fetch(_logps(self._definition, self._params, placed))
        seconds = time.perf_counter() - began
        valid = batch["valid"]
        tokens = int(batch["lengths"][valid].sum())
        task.tokens += tokens
        task.seconds += seconds
        shapes = tuple(array.shape for array in jax.tree.leaves(placed))
        if shapes in self._shapes:
            task.timed_tokens += tokens
            task.timed_seconds += seconds
        self._shapes.add(shapes)
        logps, mask = logps[valid], batch["mask"][valid]
        return logps[:, 0::2][mask[:, 0::2]], logps[:, 1::2][mask[:, 1::2]]

    def _check(self, part: _Part, positive: np.ndarray, negative: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(positive + negative))
        if bad.size:
            pair = int(np.searchsorted(part.scores.offsets, bad[0], side="right") - 1) // 2
            raise ModelError(
                f"{part.examples[pair].source}: the patient's log-probs of this row are not finite; try "
                "patient.compute_dtype=float32"
            )


@partial(jax.jit, static_argnums=0)
def _logps(definition: Any, params: Any, batch: CompletionBatch) -> jax.Array:
    """Log-probs of the counted tokens [B, 4, T], float32, nats."""
    logps = score_tokens(models.merge(definition, params), batch.rows()).logps
    return logps.reshape(batch.tokens.shape)


def _fill(scores: FaceScores, found: FaceScores) -> None:
    scores.positive_logps[:], scores.negative_logps[:] = found.positive_logps, found.negative_logps
    scores.cut[:] = found.cut
