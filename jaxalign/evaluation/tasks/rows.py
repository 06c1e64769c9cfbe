"""Rows of benchmark files, whose every row must be as published: a benchmark without some of its rows is another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.data.files import rows_of
from jaxalign.errors import DataError


@dataclass(frozen=True)
class BenchmarkRow:
    """One row of a file.

    Attributes:
      place: file:line, for messages.
      fields: by name.
    """

    place: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A field that holds a text.

        Raises:
          DataError: it is missing, empty or something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self.place}: expected a text in {name!r}, got {_told(value)}")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that holds a list of texts, at least one.

        Raises:
          DataError: it is missing, empty or something else.
        """
        value = self.fields.get(name)
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(x, str) and x.strip() for x in value)
        ):
            raise DataError(f"{self.place}: expected a list of texts in {name!r}, got {_told(value)}")
        return value

    def one_of(self, name: str, values: Sequence[Any]) -> int:
        """The place in `values` of what a field holds.

        Raises:
          DataError: it is none of them.
        """
        value = self.fields.get(name)
        if value not in values:
            expected = ", ".join(map(str, values))
            raise DataError(f"{self.place}: expected one of {expected} in {name!r}, got {_told(value)}")
        return list(values).index(value)


def benchmark_rows(path: str) -> Iterator[BenchmarkRow]:
    """All rows of a file (.jsonl, .json, .csv, .parquet, gzipped or not).

    Raises:
      DataError: no such file, an empty one, or a row that cannot be read, naming it.
    """
    for place, row in rows_of(path):
        if isinstance(row, DataError):
            raise row
        yield BenchmarkRow(place, row)


def _told(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.60}"
