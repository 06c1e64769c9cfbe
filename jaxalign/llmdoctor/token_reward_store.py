"""Log-probs of responses under two instructions, in columns, and the Parquet files that they are kept in.

    scores-<hash>/about.json              what the log-probs are of
    scores-<hash>/train-00000.parquet     ... of the first `PART` pairs; a part is whole or not there
    rewards-<hash>/train.parquet          the same with importance and rewards, for one choice of settings

A file has one row a response: row (the pair's number), side, source (file:line), token_ids, positive_logps and
negative_logps (nats), in rewards also importance and rewards; prompt_cut says that the patient's context did not hold
the prompt's beginning. Any Parquet reader takes them, `datasets.load_dataset("parquet", data_files=...)` too.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data import Example
from jaxalign.errors import CheckpointError

PART = 256
"""Pairs of a part: what is lost at most where an extraction is interrupted."""
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class FaceScores:
    """Responses in columns: chosen and rejected of pair 0, of pair 1, and so on.

    Attributes:
      offsets: int64 [2N + 1]; the tokens of response i are those from offsets[i] to offsets[i + 1] below.
      token_ids: int32 [tokens], those that count.
      positive_logps, negative_logps: float32 [tokens], nats.
      cut: bool [N]: the pair's prompt was cut to fit the patient's context.
    """

    offsets: np.ndarray
    token_ids: np.ndarray
    positive_logps: np.ndarray
    negative_logps: np.ndarray
    cut: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 [2N]: tokens of each response."""
        return np.diff(self.offsets)

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Values [tokens] summed over each response: float64 [2N]."""
        # Every response has a token, as `reduceat` needs.
        return np.add.reduceat(values.astype(np.float64), self.offsets[:-1]) if len(values) else np.zeros(0)

    def places(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Where the tokens of some pairs lie, int64: pair after pair, chosen before rejected."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(self.offsets[2 * i], self.offsets[2 * i + 2]) for i in rows)]
        )


def unscored(examples: Sequence[Example]) -> FaceScores:
    """The responses of comparisons, every log-prob 0 as yet."""
    ids = [
        np.asarray(row, np.int32)[np.asarray(mask, bool)]
        for example in examples
        for row, mask in zip(example.rows, example.masks, strict=True)
    ]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    tokens = np.concatenate([np.zeros(0, np.int32), *ids])
    logps = np.zeros((2, len(tokens)), np.float32)
    return FaceScores(offsets, tokens, logps[0], logps[1], np.zeros(len(examples), bool))


def part_of(scores: FaceScores, first: int, count: int) -> FaceScores:
    """The responses of `count` pairs from the pair `first` on; arrays are views."""
    begin, end = scores.offsets[2 * first], scores.offsets[2 * (first + count)]
    return FaceScores(
        scores.offsets[2 * first : 2 * (first + count) + 1] - begin,
        scores.token_ids[begin:end],
        scores.positive_logps[begin:end],
        scores.negative_logps[begin:end],
        scores.cut[first : first + count],
    )


def write_scores(
    path: Path,
    examples: Sequence[Example],
    scores: FaceScores,
    *,
    first: int = 0,
    columns: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes responses, which appear whole or not at all.

    Args:
      path: the Parquet file.
      examples: the comparisons.
      scores: their responses.
      first: number of the first pair.
      columns: more columns by name, float32 [tokens].
    """
    import pyarrow
    import pyarrow.parquet

    offsets = pyarrow.array(scores.offsets.astype(np.int32))
    logps = {"positive_logps": scores.positive_logps, "negative_logps": scores.negative_logps}
    lists = {"token_ids": scores.token_ids} | logps | dict(columns or {})
    pairs = np.arange(first, first + len(examples), dtype=np.int32)
    table = pyarrow.table(
        {"row": np.repeat(pairs, 2), "side": SIDES * len(examples)}
        | {"source": [example.source for example in examples for _ in SIDES]}
        | {name: pyarrow.ListArray.from_arrays(offsets, pyarrow.array(x)) for name, x in lists.items()}
        | {"prompt_cut": np.repeat(scores.cut, 2)}
    )
    with _appearing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def read_scores(path: Path, expected: FaceScores, *, first: int) -> FaceScores:
    """What `write_scores` wrote, of the responses of `expected`.

    Raises:
      CheckpointError: a damaged file, or one of other responses.
    """
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path).combine_chunks()
        tokens, positive, negative = (
            table[name].combine_chunks() for name in ("token_ids", "positive_logps", "negative_logps")
        )
        pairs = np.arange(first, first + len(expected.cut))
        same = (
            np.array_equal(table["row"].to_numpy(), np.repeat(pairs, 2))
            and table["side"].to_pylist() == list(SIDES) * len(pairs)
            and all(
                np.array_equal(np.asarray(x.value_lengths()), expected.lengths)
                for x in (tokens, positive, negative)
            )
            and np.array_equal(np.asarray(tokens.flatten()), expected.token_ids)
        )
        positive, negative = (np.asarray(x.flatten(), np.float32) for x in (positive, negative))
        cut = table["prompt_cut"].to_numpy()[::2].astype(bool)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot read the token log-probs ({reason}); delete the file to recompute them"
        ) from error
    if not same:
        raise CheckpointError(f"{path}: the file holds other completions; delete it to recompute them")
    return replace(expected, positive_logps=positive, negative_logps=negative, cut=cut)


def part_path(folder: Path, split: str, index: int) -> Path:
    """The file of a part of a split."""
    return folder / f"{split}-{index:05}.parquet"


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Facts for people to read, whole or not at all."""
    with _appearing(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this process alone: runs may share the folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
