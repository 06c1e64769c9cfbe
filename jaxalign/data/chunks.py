"""Chunks of files: rows with their positions, parsed on demand in any process."""

import datetime
import decimal
import json
import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxalign.errors import DataError

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | DataError]]
"""(place, row): a malformed row comes as the error that it is."""
# What a line may hold and be blank, in bytes and in text; other spaces are no JSON.
BLANK = " \t\r\n\v\f"


@dataclass(frozen=True)
class Chunk(ABC):
    """Rows that follow each other in a file; can be pickled.

    Attributes:
      path: the file, as the user named it.
      start: number of its first row, from 0; blank lines have none.
    """

    path: str
    start: int

    @property
    @abstractmethod
    def size(self) -> int:
        """How many rows it has."""

    @abstractmethod
    def numbered_rows(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
        """(number, place in the file, row) of each row; what is wrong with it as text; None where it is not chosen.

        Args:
          chosen: bool [size], rows to parse; None for all.
        """

    def rows(self, chosen: np.ndarray | None = None) -> Rows:
        """(file:line, row) of each row; `DataError` in place of a malformed one; `chosen` as for `numbered_rows`."""
        for _, place, row in self.numbered_rows(chosen):
            whole = f"{self.path}:{place}"
            yield whole, DataError(f"{whole}: {row}") if isinstance(row, str) else row  # type: ignore[misc]


@dataclass(frozen=True)
class Lines(Chunk):
    """Whole lines of JSON, each with its newline but the last.

    Attributes:
      line: how many lines of the file are before it.
      body: the lines.
    """

    line: int
    body: bytes

    @cached_property
    def size(self) -> int:  # type: ignore[override]
        """Its lines that are not blank."""
        return sum(map(bool, map(bytes.strip, self.body.split(b"\n"))))

    def numbered_rows(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
        """See `Chunk`."""
        index = 0
        for number, line in enumerate(self._lines(), self.line + 1):
            if not (line.strip(BLANK) if isinstance(line, str) else line.strip()):
                continue
            wanted = chosen is None or chosen[index]
            yield self.start + index, str(number), parsed_line(line) if wanted else None
            index += 1

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

    def numbered_rows(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
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

    def numbered_rows(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
        """See `Chunk`."""
        plain_already = all(_is_plain(column.type) for column in self.table.schema)
        table = self.table if chosen is None else self.table.filter(_mask(chosen))
        rows = iter(_values(table))
        for index in range(self.size):
            number = self.start + index
            if chosen is not None and not chosen[index]:
                yield number, f"row {number + 1}", None
                continue
            row = next(rows)
            if not plain_already and not isinstance(row, str):
                row = plain_row(row)
            yield number, f"row {number + 1}", row


@dataclass(frozen=True)
class Member(Chunk):
    """A piece of a file that lies in a folder; the path is the folder's.

    Attributes:
      name: the file's, in the folder.
      piece: numbered as in the file.
    """

    name: str
    piece: Chunk

    @property
    def size(self) -> int:
        """Its rows."""
        return self.piece.size

    def numbered_rows(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str, Row | str | None]]:
        """See `Chunk`."""
        for number, place, row in self.piece.numbered_rows(chosen):
            yield self.start + number - self.piece.start, f"{self.name}:{place}", row


def rows_at_once(count: int, size: int, most_rows: int, most_bytes: int) -> int:
    """How many of `count` rows of `size` bytes together make a chunk."""
    return max(1, min(most_rows, most_bytes * count // max(size, 1)))


def check_names(path: str, names: Sequence[str]) -> None:
    """Checks that column names are unique.

    Raises:
      DataError: naming the first that stands twice.
    """
    for number, name in enumerate(names):
        if name in names[:number]:
            raise DataError(f"{path}: expected unique column names, got {name!r} twice")


def _tabled(path: str, start: int, body: bytes) -> Tabled:
    import pyarrow

    return Tabled(path, start, pyarrow.ipc.open_stream(body).read_all())


def _values(table: Any) -> Sequence[Row | str]:
    """The rows of a table; what is wrong with one as text."""
    try:
        return table.to_pylist()
    except Exception:  # of Arrow or of Python, by what the value is
        return [_row(table, index) for index in range(table.num_rows)]


def _row(table: Any, index: int) -> Row | str:
    row = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError:
            return f"column {name!r}: not UTF-8 text"
        except Exception as error:
            return f"column {name!r}: not readable ({str(error).splitlines()[0]})"
    return row


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
    # Only an escape can be an unpaired surrogate.
    return checked(row) if "\\ud" in text or "\\uD" in text else row


def checked(row: Row) -> Row | str:
    """The row, or an error if it holds an unpaired surrogate, which cannot be written or tokenized."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        return f"not valid text (\\u{half:04x} is an unpaired surrogate)"
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
