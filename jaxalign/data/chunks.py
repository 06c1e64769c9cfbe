"""Pieces of files: some rows with where they stand, parsed where they are asked for, in whatever process that is."""

import datetime
import decimal
import json
import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import DataError

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | DataError]]
"""(place, row): a malformed row comes as the error that it is."""


@dataclass(frozen=True)
class Chunk(ABC):
    """Rows that follow each other in a file; can be pickled.

    Attributes:
      path: the file, as the user named it.
      start: number of its first row, from 0; blank lines have numbers too.
    """

    path: str
    start: int

    @property
    @abstractmethod
    def size(self) -> int:
        """How many row numbers it has."""

    @abstractmethod
    def found(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
        """(number, place in the file, row) of each row; what is wrong with it as text; None where it is not chosen.

        Args:
          chosen: bool [size], rows to parse; None for all.
        """

    def rows(self) -> Rows:
        """(file:line, row) of each row; `DataError` in place of a malformed one."""
        for _, place, row in self.found():
            whole = f"{self.path}:{place}"
            yield whole, DataError(f"{whole}: {row}") if isinstance(row, str) else row  # type: ignore[misc]


@dataclass(frozen=True)
class Lines(Chunk):
    """Whole lines of JSON, each with its newline but the last."""

    body: bytes

    @property
    def size(self) -> int:
        """Its lines."""
        return self.body.count(b"\n") + 1

    def found(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
        """See `Chunk`."""
        for index, line in enumerate(self._lines()):
            if not line.strip():
                continue
            number = self.start + index
            wanted = chosen is None or chosen[index]
            yield number, str(number + 1), parsed_line(line) if wanted else None

    def _lines(self) -> Sequence[str] | Sequence[bytes]:
        try:
            return self.body.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            return self.body.split(b"\n")  # one by one, to tell which


@dataclass(frozen=True)
class Parsed(Chunk):
    """Rows that had to be parsed to be told apart: (place, row or what is wrong with it)."""

    items: Sequence[tuple[str, Row | str]]

    @property
    def size(self) -> int:
        """Its rows."""
        return len(self.items)

    def found(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
        """See `Chunk`."""
        for index, (place, row) in enumerate(self.items):
            yield self.start + index, place, row if chosen is None or chosen[index] else None


@dataclass(frozen=True)
class Tabled(Chunk):
    """Rows of an Arrow table or record batch."""

    table: Any

    def __reduce__(self) -> tuple[Any, ...]:
        # As a stream of its own: a slice that is pickled takes the whole table along.
        import pyarrow

        with pyarrow.BufferOutputStream() as sink:
            with pyarrow.ipc.new_stream(sink, self.table.schema) as writer:
                writer.write(self.table)
            return _tabled, (self.path, self.start, sink.getvalue().to_pybytes())

    @property
    def size(self) -> int:
        """Its rows."""
        return self.table.num_rows

    def found(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
        """See `Chunk`."""
        plain_already = all(_is_plain(column.type) for column in self.table.schema)
        table = self.table if chosen is None else self.table.filter(_mask(chosen))
        rows = iter(table.to_pylist())
        for index in range(self.size):
            number = self.start + index
            if chosen is not None and not chosen[index]:
                yield number, f"row {number + 1}", None
                continue
            row = next(rows)
            yield number, f"row {number + 1}", row if plain_already else plain_row(row)


def _tabled(path: str, start: int, body: bytes) -> Tabled:
    import pyarrow

    return Tabled(path, start, pyarrow.ipc.open_stream(body).read_all())


def parsed_line(line: str | bytes) -> Row | str:
    """The row of a line of JSON, or what is wrong with it."""
    try:
        text = line if isinstance(line, str) else line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start} of the line)"
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg} at column {error.colno})"
    except RecursionError:
        return "not readable JSON (it is nested too deeply)"
    except ValueError as error:  # an integer of thousands of digits
        return f"not readable JSON ({str(error).partition(':')[0].partition(';')[0]})"
    if not isinstance(row, dict):
        return not_object(row)
    # Only an escape can be half a character.
    return checked(row) if "\\ud" in text or "\\uD" in text else row


def checked(row: Row) -> Row | str:
    """The row, or that it holds half a character, which is no text that could be written or tokenized."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        return f"not valid text (\\u{half:04x} is half a character without its other half)"
    except (ValueError, RecursionError):
        return "not readable (it is nested too deeply)"
    return row


def not_object(row: Any) -> str:
    """What is said of a row without named fields."""
    return f"expected an object with named fields, got {type(row).__name__}"


class _NotPlain(Exception):
    pass


def plain_row(row: Mapping[str, Any]) -> Row | str:
    """The row in the types of JSON, dates and the like as text; or which column has no such form."""
    result = {}
    for name, value in row.items():
        try:
            result[name] = plain(value)
        except _NotPlain as error:
            return f"column {name!r}: expected text, numbers, lists or objects, got {error}"
    return result


def plain(value: Any) -> Any:
    """A value in the types of JSON."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        # What Arrow calls a map comes as a list of pairs.
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (datetime.date, datetime.time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        number = float(value)
        return (
            int(value)
            if value == value.to_integral_value()
            else number
            if math.isfinite(number)
            else str(value)
        )
    if isinstance(value, uuid.UUID):
        return str(value)
    raise _NotPlain("bytes" if isinstance(value, (bytes, bytearray)) else type(value).__name__)


def _is_plain(kind: Any) -> bool:
    """Whether an Arrow type holds nothing but what JSON has."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    if types.is_struct(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    text = (types.is_string, types.is_large_string)
    simple = (*text, types.is_boolean, types.is_integer, types.is_floating, types.is_null)
    return any(test(kind) for test in simple)


def _mask(chosen: np.ndarray) -> Any:
    import pyarrow

    return pyarrow.array(chosen)
