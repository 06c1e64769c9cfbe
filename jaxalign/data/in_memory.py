"""Rows passed from Python in place of files: a `datasets` data set, dicts, or records."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, get_args

from jaxalign.data.chunks import Chunk, Parsed, Row, Tabled, check_names, not_object, plain_row, rows_at_once
from jaxalign.data.fields import BadRow
from jaxalign.data.records import Record
from jaxalign.errors import ConfigError, DataError

RECORD = "record"
"""The one field of a row that is a record already."""
EXPECTED = "a datasets.Dataset or IterableDataset, or a list of dicts or of jaxalign.data records"


def check_rows(name: str, rows: Any) -> None:
    """Checks that the argument can be read as rows, more than once.

    Raises:
      ConfigError: naming the argument and what was expected.
    """
    said = ""
    if isinstance(rows, Mapping):  # a DatasetDict is one
        splits = ", ".join(map(str, rows))
        said = f"a mapping of {splits}: give one of them, as {name}=data[{next(iter(rows), 'train')!r}]"
    elif isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        more = "; files go to data.train and data.validation" if isinstance(rows, str) else ""
        said = f"{type(rows).__name__}{more}"
    elif hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        said = f"{type(rows).__name__}; its rows are {name}=frame.to_dict('records')"
    elif isinstance(rows, Iterator):
        said = (
            f"{type(rows).__name__}, which can be read only once; give a list, or an object that starts again"
        )
    if said:
        raise ConfigError(f"{name}: expected {EXPECTED}, got {said}")


def is_table(rows: Any) -> bool:
    """Whether it is a `datasets.Dataset`, which lies in Arrow tables."""
    return hasattr(rows, "with_format") and hasattr(rows, "data") and hasattr(rows, "__len__")


def chunks_in_memory(name: str, rows: Any, most_rows: int, most_bytes: int) -> Iterator[Chunk]:
    """The pieces of what was given under a name, in order.

    Raises:
      DataError: there are no rows.
    """
    start = 0
    if is_table(rows):
        check_names(name, rows.column_names)
        # As Arrow has them: nothing is decoded, images neither.
        tables, size = rows.with_format("arrow"), len(rows)
        each = rows_at_once(size, rows.data.nbytes, most_rows, most_bytes)
        for start in range(0, size, each):
            yield Tabled(name, start, tables[start : start + each])
        start = size
    else:
        # A set format would give arrays in place of text and numbers.
        remaining = iter(rows.with_format(None) if hasattr(rows, "with_format") else rows)
        while part := list(islice(remaining, most_rows)):
            yield Parsed(
                name, start, [(f"row {start + i + 1}", looked_at(row)) for i, row in enumerate(part)]
            )
            start += len(part)
    if not start:
        raise DataError(f"{name}: no rows")


def looked_at(row: Any) -> Row | str:
    """A row in the types of JSON, a record as its one field; or what is wrong with it."""
    if isinstance(row, get_args(Record)):
        return {RECORD: row}
    return plain_row(row) if isinstance(row, Mapping) else not_object(row)


def rows_in(rows: Any) -> int:
    """How many there are."""
    return len(rows) if hasattr(rows, "__len__") else sum(1 for _ in rows)


def identity_in_memory(name: str, rows: Any) -> str:
    """A hash of the rows; of a `datasets.Dataset`, the fingerprint that it keeps of them."""
    if is_table(rows):
        return f"datasets {rows._fingerprint}"
    state = hashlib.sha256()
    for chunk in chunks_in_memory(name, rows, 4096, 0):
        for _, _, row in chunk.numbered_rows():
            # Records and what they hold have reprs of their own.
            state.update(json.dumps(row, sort_keys=True, default=repr).encode())
            state.update(b"\n")
    return state.hexdigest()


class RecordReader:
    """Passes on rows that are records: what `readers.FileReader` is to a file.

    Attributes:
      unread: nothing; a record has no columns but those that go with it.
    """

    def __init__(self) -> None:
        self.unread = Counter[str]()

    def read(self, place: str, row: Mapping[str, Any]) -> Record:
        """The record, with its place as its source.

        Args:
          place: argument:row.
          row: the record under `RECORD`.

        Raises:
          BadRow: it is none, though the first row was one.
        """
        record: Any = row.get(RECORD)
        if not isinstance(record, get_args(Record)):
            raise BadRow("expected a record like the first row, got a dict")
        return replace(record, source=place)
