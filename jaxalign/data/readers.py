"""Files to records: strict by default, everything counted."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaxalign.data.files import rows_of
from jaxalign.data.formats import FORMATS, BadRow, Options, Unusable, detect
from jaxalign.data.records import Record
from jaxalign.errors import DataError


@dataclass
class Counts:
    """Rows read, used and filtered by reason; the three always add up.

    Attributes:
      read: rows in the files.
      used: rows that went on.
      filtered: rows that did not, by reason.
    """

    read: int = 0
    used: int = 0
    filtered: Counter = field(default_factory=Counter)

    def check(self) -> None:
        """Raises AssertionError where a row was dropped silently."""
        assert self.read == self.used + sum(self.filtered.values()), self

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {"read": self.read, "used": self.used, "filtered": dict(sorted(self.filtered.items()))}


def read_records(
    paths: str | Sequence[str],
    *,
    format: str = "auto",
    on_bad_row: Literal["stop", "skip"] = "stop",
    options: Options | None = None,
) -> tuple[list[Record], Counts]:
    """All records of one or several files.

    Args:
      paths: files, saved `datasets` folders or hub ids (owner/name#split).
      format: a name in `formats.FORMATS`; `auto` detects it from each file's first row.
      on_bad_row: `stop` raises at the first bad row; `skip` counts it.
      options: what readers may be told.

    Returns:
      The records in order, and the counts.

    Raises:
      DataError: naming file and line and what was expected.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(f"data.format: {format!r} is not known; expected auto or one of {', '.join(FORMATS)}")
    counts, records = Counts(), []
    for path in [paths] if isinstance(paths, str) else paths:
        for record in _read_file(path, format, on_bad_row, options or Options(), counts):
            records.append(record)
    counts.used = len(records)
    counts.check()
    return records, counts


def _read_file(path: str, format: str, on_bad_row: str, options: Options, counts: Counts) -> Iterator[Record]:
    name = None if format == "auto" else format
    for place, row in rows_of(path):
        counts.read += 1
        if isinstance(row, DataError):
            if on_bad_row == "stop":
                raise row
            counts.filtered["malformed line"] += 1
            continue
        if name is None:
            name = detect(row)
            if name is None:
                raise DataError(
                    f"{place}: no known format has the fields {', '.join(sorted(map(str, row)))}; "
                    f"name one with data.format ({', '.join(FORMATS)})"
                )
        form = FORMATS[name]
        try:
            missing = [f for f in form.fields if f not in row]
            if missing:
                raise BadRow(f"expected the field {missing[0]!r} of the format {name}")
            record = form.read(row, options)
        except Unusable as reason:
            counts.filtered[str(reason)] += 1
            continue
        except BadRow as error:
            if on_bad_row == "stop":
                raise DataError(f"{place}: {error}") from None
            counts.filtered["bad row"] += 1
            continue
        yield replace(record, source=place)


def score_in(value: Any) -> float | None:
    """The score that a field says: a number, or the first number in prose; None where there is none.

    The ends of a scale ("on a scale of 1 to 10") and numbers inside names ("GPT-4") are no scores.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str):
        prose = re.sub(r"(?i)\bscale\s+(?:of|from)?\s*\d+\s*(?:-|–|to)\s*\d+", " ", value)
        found = re.search(r"(?<![\w-])-?\d+(?:\.\d+)?(?!\w)", prose)
        return float(found.group()) if found else None
    return None
