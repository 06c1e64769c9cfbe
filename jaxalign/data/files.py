"""Rows of files: json, jsonl (also gzipped), csv, parquet, saved `datasets` folders and hub ids."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def rows_of(path: str) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """(place, row) of each row; the place is file:line.

    A malformed line comes as a `DataError` in place of its row, so that the caller can
    stop or skip; a file that is missing, empty or unreadable as a whole raises.

    Raises:
      DataError: no such file, an empty file, or a kind of file that is not known.
    """
    file = Path(path)
    if file.is_dir():
        yield from _saved_dataset(file)
        return
    if not file.is_file():
        folder = Path(path.partition("#")[0])
        if "#" in path and folder.is_dir():
            yield from _saved_dataset(folder, path.partition("#")[2])
            return
        known = path.removesuffix(".gz").endswith(SUFFIXES)
        if not known and path.count("/") == 1 and not path.startswith((".", "/", "~")):
            yield from _hub(path)
            return
        raise DataError(f"{path}: there is no such file")
    name = file.name.removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: expected a {', '.join(SUFFIXES)} file (json, jsonl and csv also .gz), or a folder"
        )
    if file.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    if suffix == ".parquet":
        yield from _parquet(file)
        return
    try:
        packed = path.endswith(".gz")
        with gzip.open(file, "rb") if packed else open(file, "rb") as stream:
            text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    reader = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}[suffix]
    yield from reader(path, text)


def _json_lines(path: str, text: str) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield place, DataError(f"{place}: not valid JSON ({error.msg} at column {error.colno})")
            continue
        yield place, row if isinstance(row, dict) else _not_object(place, row)


def _json(path: str, text: str) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        lines = list(_json_lines(path, text)) if "\n{" in text else []
        if lines and not isinstance(lines[0][1], DataError):
            yield from lines  # JSON lines under the wrong name
            return
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"{path}: expected a list of rows, got {'an empty list' if rows == [] else type(rows).__name__}"
        )
    for number, row in enumerate(rows, 1):
        place = f"{path}:row {number}"
        yield place, row if isinstance(row, dict) else _not_object(place, row)


def _csv(path: str, text: str) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 KB
    reader = csv.DictReader(io.StringIO(text, newline=""))
    empty = True
    for row in reader:
        empty = False
        place = f"{path}:{reader.line_num}"
        if None in row or None in row.values():
            yield (
                place,
                DataError(f"{place}: expected {len(reader.fieldnames or [])} columns, as in the header"),
            )
            continue
        yield place, dict(row)
    if empty:
        raise DataError(f"{path}: a header but no rows")


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(file)
    except Exception as error:
        raise DataError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    if not table.num_rows:
        raise DataError(f"{file}: the file has no rows")
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{file}:row {number}", row


def _saved_dataset(folder: Path, split: str = "") -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """folder, or folder#split; a folder of several splits gives `train` where none is named."""
    import datasets

    try:
        data: Any = datasets.load_from_disk(str(folder))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{folder}: not a folder saved by datasets.save_to_disk ({reason})") from None
    if isinstance(data, dict):
        split = split or ("train" if len(data) > 1 else next(iter(data)))
        if split not in data:
            raise DataError(f"{folder}: no split {split!r}; name one as {folder}#split: {', '.join(data)}")
        data = data[split]
    elif split:
        raise DataError(f"{folder}: the folder has no splits, so #{split} names none")
    if not len(data):
        raise DataError(f"{folder}: the data set has no rows")
    for number, row in enumerate(data, 1):
        yield f"{folder}:{split + ' ' if split else ''}row {number}", dict(row)


def _hub(name: str) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """owner/name, or owner/name#split (the split is `train` where it is not said)."""
    import datasets

    where, _, split = name.partition("#")
    try:
        data = datasets.load_dataset(where, split=split or "train")
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{name}: there is no such file, and the hub did not give it: {reason}") from None
    for number, row in enumerate(data, 1):
        yield f"{name}:row {number}", dict(row)


def _not_object(place: str, row: Any) -> DataError:
    return DataError(f"{place}: expected an object with named fields, got {type(row).__name__}")
