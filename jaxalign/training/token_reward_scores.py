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
from jaxalign.data import Example, FaceFormat, FaceRows, collate_rankings, eval_batches
from jaxalign.errors import ModelError
from jaxalign.runs import Run
from jaxalign.runs.progress import Progress
from jaxalign.training import setup
from jaxalign.training import token_reward_store as store
from jaxalign.training.packing import packing_of
from jaxalign.training.pairs import flatten, question_axis
from jaxalign.training.scoring import score_tokens
from jaxalign.training.token_reward_store import FaceScores


@dataclass
class _Part:
    """Pairs that are scored and written together."""

    path: Path | None
    name: str
    first: int
    examples: Sequence[Example]
    scores: FaceScores  # views into the arrays of the split


class FaceScorer:
    """Scores comparisons under both instructions, four rows a pair in one batch.

    Args:
      faces: the instructions, and how rows are written.
      patient: a causal model, live.
      mesh: the devices.
      batch_size: pairs scored at once.
      packing: whether rows of a batch are packed.
      run: is told how far it is; None for nobody.
    """

    def __init__(
        self, faces: FaceFormat, patient: Any, mesh: Mesh, *, batch_size: int, packing: bool, run: Run | None
    ) -> None:
        self._definition, self._params = models.split(patient)
        self._faces, self._context = faces, patient.config.max_positions
        self._mesh, self._size, self._packing, self._run = mesh, batch_size, packing, run
        self._rows = self._tokens = self._timed_tokens = 0
        self._seconds = self._timed_seconds = 0.0
        self._shapes: set[Any] = set()

    def scores(self, splits: Mapping[str, Sequence[Example]], folder: Path | None) -> dict[str, FaceScores]:
        """The responses of each split with their log-probs; what is not in the folder is computed and written there.

        Args:
          splits: comparisons by name of the split.
          folder: of the parts; None where none are kept.

        Raises:
          CheckpointError: a damaged part.
          DataError: a row that does not fit the patient's context.
          ModelError: log-probs that are no numbers.
        """
        result = {name: store.unscored(examples) for name, examples in splits.items()}
        missing = []
        for name, examples in splits.items():
            for index, first in enumerate(range(0, len(examples), store.PART)):
                members = examples[first : first + store.PART]
                scores = store.part_of(result[name], first, len(members))
                path = None if folder is None else store.part_path(folder, name, index)
                part = _Part(path, name, first, members, scores)
                if path is not None and path.exists():
                    _fill(scores, store.read_scores(path, scores, first=first))
                else:
                    missing.append(part)
        if missing:
            self._compute(missing)
        return result

    def facts(self) -> dict[str, Any]:
        """What was computed: pairs, tokens that the patient read, seconds; speed, programs' first uses left out."""
        speed = self._timed_tokens / self._timed_seconds if self._timed_seconds else 0.0
        return {
            "scored_rows": self._rows,
            "scored_tokens": self._tokens,
            "seconds": round(self._seconds, 3),
            "tokens_per_second": round(speed, 1),
        }

    def _compute(self, parts: Sequence[_Part]) -> None:
        examples = [example for part in parts for example in part.examples]
        # All rows at first, so that one that does not fit is found before anything is computed.
        rows = FaceRows(examples, self._faces, self._context)
        if self._run is not None:
            self._run.info(f"token rewards: {len(examples)} pairs to score under both instructions")
        size = min(self._size, store.PART, len(examples))
        collate = setup.collate_of(collate_rankings, rows, packing=self._packing)
        begin = 0
        with closing(
            Progress(self._run is not None and self._run.config.progress, "token rewards")
        ) as progress:
            for part in parts:
                end = begin + len(part.examples)
                part.scores.cut[:] = rows.cut[begin:end]
                found = [self._batch(batch) for batch in eval_batches(rows[begin:end], size, collate)]
                positive, negative = (np.concatenate(values) for values in zip(*found, strict=True))
                self._check(part, positive, negative)
                part.scores.positive_logps[:], part.scores.negative_logps[:] = positive, negative
                if part.path is not None:
                    store.write_scores(part.path, part.examples, part.scores, first=part.first)
                begin = end
                self._rows = begin
                gap = float(np.abs(positive - negative).mean())
                progress.show(begin, len(examples), "gap", gap, self._tokens / self._seconds)

    def _batch(self, batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Log-probs of the counted tokens under each instruction: pair after pair, chosen before rejected."""
        batch = question_axis(batch)
        began = time.perf_counter()
        placed = setup.on_mesh(batch, self._mesh, packing=self._packing)
        logps = np.asarray(_logps(self._definition, self._params, placed))
        seconds = time.perf_counter() - began
        valid = batch["valid"]
        tokens = int(batch["lengths"][valid].sum())
        self._tokens += tokens
        self._seconds += seconds
        shapes = tuple(sorted((name, array.shape) for name, array in placed.items()))
        if shapes in self._shapes:
            self._timed_tokens += tokens
            self._timed_seconds += seconds
        self._shapes.add(shapes)
        logps, mask = logps[valid], batch["mask"][valid]
        return logps[:, 0::2][mask[:, 0::2]], logps[:, 1::2][mask[:, 1::2]]

    def _check(self, part: _Part, positive: np.ndarray, negative: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(positive + negative))
        if bad.size:
            pair = int(np.searchsorted(part.scores.offsets, bad[0], side="right") - 1) // 2
            raise ModelError(
                f"{part.examples[pair].source}: the patient gives this row log-probs that are no numbers; try "
                "patient.compute_dtype=float32"
            )


@partial(jax.jit, static_argnums=0)
def _logps(definition: Any, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Log-probs of the counted tokens [B, 4, T], float32, nats."""
    tokens, mask, lengths = flatten(batch)
    model = models.merge(definition, params)
    found = score_tokens(model, tokens, lengths, mask, packing=packing_of(batch)).logps
    return found.reshape(batch["tokens"].shape)


def _fill(scores: FaceScores, found: FaceScores) -> None:
    scores.positive_logps[:], scores.negative_logps[:] = found.positive_logps, found.negative_logps
    scores.cut[:] = found.cut
