"""Examples on disk: a selection of rows from one or several stores, read on demand."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from jaxalign.data.examples import Example


class Table:
    """Several stores, concatenated.

    Args:
      stores: at least one, see `store.Store`.
    """

    def __init__(self, stores: Sequence[Any]) -> None:
        self.stores = list(stores)
        self.starts = np.concatenate([[0], np.cumsum([len(store) for store in stores])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def example(self, index: int) -> Example:
        """One example."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.stores[number].example(int(index - self.starts[number]))

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, of all stores."""
        return _joined([store.numbers(name) for store in self.stores])

    def parts(self) -> np.ndarray:
        """int32 [N]: the number of each example's store."""
        return np.repeat(np.arange(len(self.stores), dtype=np.int32), np.diff(self.starts))

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [N], see `Examples.lengths`."""
        return self.numbers("length")

    @cached_property
    def counted(self) -> np.ndarray:
        """int32 [N], see `Examples.counted`."""
        return self.numbers("counted")

    @cached_property
    def row_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets [N + 1], tokens of each row)."""
        lists = [store.lists("row_lengths") for store in self.stores]
        sizes = _joined([np.diff(offsets) for offsets, _ in lists])
        return np.concatenate([[0], np.cumsum(sizes)]), _joined([values for _, values in lists])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Examples(Sequence[Example]):
    """Examples on disk in a given order, which can repeat examples.

    Args:
      table: where they lie.
      rows: their numbers in it.
    """

    def __init__(self, table: Table, rows: np.ndarray) -> None:
        self._table = table
        self._rows = rows.astype(np.int32 if len(table) < 2**31 else np.int64, copy=False)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Examples": ...
    def __getitem__(self, index: int | slice) -> "Example | Examples":
        if isinstance(index, slice):
            return Examples(self._table, self._rows[index])
        return self._table.example(int(self._rows[index]))

    @property
    def table(self) -> Table:
        """Where they lie."""
        return self._table

    @property
    def rows(self) -> np.ndarray:
        """[N]: their numbers in the table."""
        return self._rows

    def select(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """Those at some places, in the order named."""
        return Examples(self._table, self._rows[np.asarray(indices, np.int64)])

    @property
    def lengths(self) -> np.ndarray:
        """int32 [N]: tokens of the longest row, or of the prompt where there are no rows."""
        return self._table.lengths[self._rows]

    @property
    def counted(self) -> np.ndarray:
        """int64 [N]: tokens that contribute, of all rows."""
        return self._table.counted[self._rows].astype(np.int64)

    @property
    def row_lengths(self) -> np.ndarray:
        """int32 [rows]: tokens of each row of every example."""
        offsets, values = self._table.row_lengths
        sizes = (offsets[1:] - offsets[:-1])[self._rows]
        before = np.cumsum(sizes) - sizes
        return values[np.arange(sizes.sum()) + np.repeat(offsets[self._rows] - before, sizes)]

    @property
    def most_rows(self) -> int:
        """Rows of the example that has most."""
        return int(np.diff(self._table.row_lengths[0])[self._rows].max(initial=0))

    def column(self, name: str) -> np.ndarray:
        """A column of numbers of the stores, [N]."""
        return self._table.numbers(name)[self._rows]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the examples are, and of their order."""
        state = hashlib.sha256(repr([store.fingerprint for store in self._table.stores]).encode())
        state.update(self._rows.astype(np.int64).tobytes())
        return state.hexdigest()[:32]


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """[N]: tokens of each example's longest row, or of its prompt where there are no rows."""
    if isinstance(examples, Examples):
        return examples.lengths
    return np.asarray([max(map(len, e.rows), default=len(e.prompt_tokens)) for e in examples], np.int32)


def row_lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Tokens of each row of every example."""
    if isinstance(examples, Examples):
        return examples.row_lengths
    return np.asarray([len(row) for e in examples for row in e.rows], np.int32)


def counted_of(examples: Sequence[Example]) -> np.ndarray:
    """int64 [N]: tokens that contribute in all rows of each example."""
    if isinstance(examples, Examples):
        return examples.counted
    return np.asarray([sum(map(sum, e.masks)) for e in examples], np.int64)


def most_rows_of(examples: Sequence[Example]) -> int:
    """Rows of the example that has most."""
    return (
        examples.most_rows
        if isinstance(examples, Examples)
        else max((len(e.rows) for e in examples), default=0)
    )
