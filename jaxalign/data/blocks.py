"""Turns chunks of a file into blocks of tokenized examples, in this process or another."""

import gc
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxalign.data.chat import ChatFormat
from jaxalign.data.chunks import Chunk
from jaxalign.data.config import Kind
from jaxalign.data.examples import Draft, Example, Filtered, Limits, drafts_of, finished
from jaxalign.data.fields import BadRow, Unusable
from jaxalign.data.in_memory import RecordReader
from jaxalign.data.readers import FileReader
from jaxalign.errors import DataError

# Rows that are tokenized in one call: what it needs beside the ids stays small.
AT_ONCE = 512


@dataclass(frozen=True)
class Sample:
    """An even choice of a file's rows by their numbers, that stays much the same where a file grows.

    Attributes:
      salt: of the file.
      below: rows are taken whose hash is not above this.
    """

    salt: int
    below: int

    def chosen(self, start: int, size: int) -> np.ndarray:
        """bool [size], of the rows from the number `start` on."""
        return hashes(start, size, self.salt) <= np.uint64(self.below)


def hashes(start: int, size: int, salt: int) -> np.ndarray:
    """uint64 [size]: a hash of each of `size` row numbers from `start` on; all differ."""
    return scattered(
        np.arange(start, start + size, dtype=np.uint64) ^ scattered(np.asarray([salt], np.uint64))
    )


def scattered(values: np.ndarray) -> np.ndarray:
    """A one-to-one hash of 64-bit numbers: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@dataclass
class Tally:
    """Counts of a chunk's rows, before rows are compared with those of other chunks.

    Attributes:
      read: rows.
      filtered: rows without an example, by reason.
      unread: columns that no reader used, by name.
      parts: examples left out whose rows have others, by reason.
    """

    read: int = 0
    filtered: Counter = field(default_factory=Counter)
    unread: Counter = field(default_factory=Counter)
    parts: Counter = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Adds another's numbers."""
        self.read += other.read
        for name in ("filtered", "unread", "parts"):
            getattr(self, name).update(getattr(other, name))


@dataclass(frozen=True)
class Block:
    """Examples of a chunk.

    Attributes:
      path: its file.
      batch: an Arrow record batch, see `columns.SCHEMA`.
      tally: what became of the chunk's rows.
    """

    path: str
    batch: Any
    tally: Tally


@dataclass(frozen=True)
class Recipe:
    """How the rows of a file become examples; can be pickled.

    Attributes:
      reader: rows to records.
      kind: what they train.
      chat: records to tokens.
      limits: how long rows may be.
      prompt_tokens, separator: see `drafts_of`.
      skip: whether bad rows are counted; else the first one is an error.
      sample: which rows are taken; None for all.
    """

    reader: FileReader | RecordReader
    kind: Kind
    chat: ChatFormat
    limits: Limits
    prompt_tokens: int = 0
    separator: str = "\n"
    skip: bool = False
    sample: Sample | None = None

    def block(self, chunk: Chunk) -> Block:
        """The examples of a chunk.

        Raises:
          DataError: a bad row, where they are not skipped; rows that are too large together.
        """
        from jaxalign.data.columns import batch_of

        collects = gc.isenabled()
        # Nothing of a chunk is a cycle, and looking for cycles in so many objects takes a third of the time.
        gc.disable()
        try:
            examples, numbers, tally = self.examples(chunk)
            try:
                return Block(chunk.path, batch_of(examples, numbers, chunk.path), tally)
            except OverflowError as error:
                raise DataError(
                    f"{chunk.path}: cannot store the rows from row {chunk.start + 1:,} on ({error})"
                ) from None
        finally:
            if collects:
                gc.enable()

    def examples(self, chunk: Chunk) -> tuple[list[Example], list[int], Tally]:
        """The examples of a chunk, the number of each one's row, and what became of all rows."""
        tally, examples, numbers = Tally(), [], []
        drafts: list[Draft] = []
        rows: list[tuple[int, int]] = []  # number of the row, its drafts
        sample = self.sample
        chosen = None if sample is None else sample.chosen(chunk.start, chunk.size)
        for number, place, row in chunk.numbered_rows(chosen):
            tally.read += 1
            if row is None:
                tally.filtered["over data.limit"] += 1
                continue
            try:
                drafted = self._drafts(f"{chunk.path}:{place}", row)
            except Filtered as reason:
                tally.filtered[str(reason)] += 1
                continue
            drafts += drafted
            rows.append((number, len(drafted)))
            if len(drafts) >= AT_ONCE:
                self._finish(drafts, rows, examples, numbers, tally)
                drafts, rows = [], []
        self._finish(drafts, rows, examples, numbers, tally)
        tally.unread.update(self.reader.unread)
        self.reader.unread.clear()
        return examples, numbers, tally

    def _drafts(self, place: str, row: Any) -> list[Draft]:
        """What a row trains; `Filtered` with the reason under which it is counted."""
        try:
            if isinstance(row, str):
                raise _Bad("malformed line", row)
            try:
                record = self.reader.read(place, row)
            except Unusable as reason:
                raise Filtered(str(reason)) from None
            except BadRow as error:
                raise _Bad("bad row", str(error)) from None
            try:
                options = {"prompt_tokens": self.prompt_tokens, "separator": self.separator}
                return drafts_of(record, self.kind, self.chat, self.limits, **options)
            except DataError as error:
                raise _Bad("refused by the chat template", str(error)) from None
        except (RecursionError, OverflowError) as error:
            said = "it is nested too deeply" if isinstance(error, RecursionError) else "a number is too large"
            problem = _Bad("bad row", f"the row cannot be read: {said}")
        except _Bad as error:
            problem = error
        if not self.skip:
            raise DataError(f"{place}: {problem}")
        raise Filtered(problem.reason)

    def _finish(
        self,
        drafts: list[Draft],
        rows: list[tuple[int, int]],
        examples: list[Example],
        numbers: list[int],
        tally: Tally,
    ) -> None:
        made = iter(finished(drafts, self.chat))
        for number, count in rows:
            outcomes = [next(made) for _ in range(count)]
            kept = [example for example in outcomes if isinstance(example, Example)]
            reasons = [str(reason) for reason in outcomes if isinstance(reason, Filtered)]
            if not kept:
                tally.filtered[reasons[0]] += 1
                continue
            tally.parts.update(reasons)
            examples += kept
            numbers += [number] * len(kept)


class _Bad(Exception):
    """A bad row: the reason under which it is counted, and what was expected."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
