"""Rows of files: json, jsonl (also gzipped), csv, parquet, folders of data sets and hub ids, piece by piece.

A file is cut into chunks of about a mebibyte, which can be sent to another process; a chunk is parsed where its rows
are asked for, so that neither the whole file nor its rows are ever held (but for .json, which is one value).
"""

import csv
import gzip
import io
import json
import math
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxalign.data.chunks import (
    Chunk,
    Lines,
    Member,
    Parsed,
    Row,
    Rows,
    Tabled,
    check_names,
    checked,
    not_object,
    parsed_line,
    rows_at_once,
)
from jaxalign.data.datasets_files import (
    chunks_of_dataset,
    files_of_folder,
    here,
    is_saved,
    named_dataset,
)
from jaxalign.data.trees import with_whole_trees
from jaxalign.errors import DataError

__all__ = ["Chunk", "Rows", "chunks_of", "count_rows", "rows_of"]

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
CHUNK_BYTES = 2**20
CHUNK_ROWS = 4096
# What a compressed file may expand to where nothing is said: so often its size, and this much in any case.
EXPANSION, LEAST_BYTES = 100, 64 * 2**20


def rows_of(path: str, *, max_bytes: int = 0) -> Rows:
    """(place, row) of each row; the place is file:line.

    A malformed line comes as a `DataError` in place of its row, so that the caller can
    stop or skip; a file that is missing, empty or unreadable as a whole raises.

    Args:
      path: a file, a folder (folder#split), a URL of one of them (see `remote.local`), or a hub id
        (owner/name:configuration@revision#split).
      max_bytes: see `chunks_of`.

    Raises:
      DataError: no such file, an empty file, or a kind of file that is not known.
    """
    for chunk in chunks_of(path, max_bytes=max_bytes):
        yield from chunk.rows()


def chunks_of(
    path: str, *, max_bytes: int = 0, most_rows: int = 0, streaming: bool = False
) -> Iterator[Chunk]:
    """The pieces of a file, in order; messages of a tree that lie one by one come as one row (`trees`).

    Args:
      path: as for `rows_of`.
      max_bytes: bytes that the file may hold once it is decompressed; 0 lets a compressed one expand a hundredfold (or
        to 64 MiB, which is more for small ones).
      most_rows: rows of a chunk at most; 0 leaves it to the size.
      streaming: read a hub id without a copy on the disk.

    Raises:
      DataError: as for `rows_of`, and a file that expands beyond `max_bytes`.
    """
    yield from with_whole_trees(_pieces_of(path, max_bytes, most_rows, streaming))


def _pieces_of(path: str, max_bytes: int, most_rows: int, streaming: bool) -> Iterator[Chunk]:
    """The pieces as they lie in the file."""
    most_rows = min(most_rows or CHUNK_ROWS, CHUNK_ROWS)
    if not is_file(path):
        name = named_dataset(path)
        if name is None:
            raise DataError(f"{path}: no such file")
        if name.folder and not is_saved(name):
            yield from _members(path, files_of_folder(path, name), max_bytes, most_rows)
        else:
            yield from chunks_of_dataset(path, name, most_rows, CHUNK_BYTES, streaming=streaming)
        return
    suffix = suffix_of(path)
    if suffix == ".parquet":
        yield from _parquet(path, most_rows, max_bytes)
        return
    with _opened(path, max_bytes) as stream:
        if suffix == ".jsonl":
            yield from _json_lines(path, stream, most_rows)
        elif suffix == ".json":
            yield from _json(path, stream, most_rows)
        else:
            yield from _csv(path, stream, most_rows)


def _members(path: str, files: dict[str, Path], max_bytes: int, most_rows: int) -> Iterator[Chunk]:
    """The pieces of files that lie in a folder, numbered through."""
    start = 0
    for name, file in files.items():
        for piece in _pieces_of(str(file), max_bytes, most_rows, False):
            yield Member(path, start, name, piece)
            start += piece.size


def files_behind(path: str) -> dict[str, Path]:
    """The files here whose bytes are the rows, by their names; none of a hub id.

    Raises:
      DataError: no such file, or it may not be looked at.
    """
    if is_file(path):
        return {"": Path(here(path))}
    name = named_dataset(path)
    if name is None:
        raise DataError(f"{path}: no such file")
    return files_of_folder(path, name) if name.folder else {}


def check_there(paths: Sequence[str]) -> None:
    """Each path is a file, a folder, or may be a hub id; nothing is read.

    Raises:
      DataError: naming the first that is nothing of these.
    """
    for path in paths:
        if not is_file(path) and named_dataset(path) is None:
            raise DataError(f"{path}: no such file")


def count_rows(path: str, *, max_bytes: int = 0) -> int:
    """Number of rows in a file, parsing as little of it as possible.

    Raises:
      DataError: as `chunks_of`.
    """
    return sum(chunk.size for chunk in chunks_of(path, max_bytes=max_bytes))


def is_file(path: str) -> bool:
    """Whether the path is one file, and not a folder or hub id.

    Raises:
      DataError: it may not be looked at.
    """
    try:
        return stat.S_ISREG(os.stat(here(path)).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def suffix_of(path: str) -> str:
    """What kind of file it is, by its name.

    Raises:
      DataError: a kind that is not known.
    """
    suffix = Path(Path(path).name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or (suffix == ".parquet" and path.endswith(".gz")):
        raise DataError(
            f"{path}: expected a {', '.join(SUFFIXES)} file (json, jsonl and csv also .gz), or a folder"
        )
    return suffix


@contextmanager
def _opened(path: str, max_bytes: int) -> Iterator["_Bounded"]:
    """The file's bytes, decompressed."""
    file = here(path)
    size = Path(file).stat().st_size
    if not size:
        raise DataError(f"{path}: the file is empty")
    packed = path.endswith(".gz")
    limit = max_bytes or (max(EXPANSION * size, LEAST_BYTES) if packed else math.inf)
    try:
        with gzip.open(file, "rb") if packed else open(file, "rb") as stream:
            yield _Bounded(path, stream, limit)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


class _Bounded:
    """A file that may give so many bytes and no more; a byte order mark is left out."""

    def __init__(self, path: str, stream: Any, limit: float) -> None:
        self._path, self._stream, self._limit, self._read = path, stream, limit, 0

    def read(self, size: int) -> bytes:
        """The next bytes, b"" at the end."""
        chunk = self._stream.read(size)
        if not self._read:
            chunk = chunk.removeprefix(b"\xef\xbb\xbf") or self._stream.read(size)
        self._read += len(chunk)
        if self._read > self._limit:
            raise DataError(
                f"{self._path}: it holds more than {int(self._limit):,} bytes once it is decompressed; "
                "raise data.max_bytes to read it all the same"
            )
        return chunk

    def all(self) -> bytes:
        """Everything that is left."""
        return b"".join(iter(lambda: self.read(CHUNK_BYTES), b""))


def _json_lines(path: str, stream: _Bounded, most_rows: int) -> Iterator[Chunk]:
    # Lines end with b"\n" alone: JSON strings may hold other line separators, such as U+2028.
    start, line, begun = 0, 0, []
    while True:
        read = stream.read(CHUNK_BYTES)
        whole, newline, rest = read.rpartition(b"\n")
        if read and not newline:
            begun.append(read)
            continue
        body = b"".join([*begun, whole])
        begun = [rest]
        for part in _of_few_lines(body, most_rows) if body or newline else ():
            chunk = Lines(path, start, line, part)
            if chunk.size:
                yield chunk
            start, line = start + chunk.size, line + part.count(b"\n") + 1
        if not read:
            break
    if not start:
        raise DataError(f"{path}: the file is empty")


def _of_few_lines(body: bytes, most: int) -> Iterator[bytes]:
    """Whole lines, so many at a time; the newline between two parts belongs to neither."""
    if body.count(b"\n") < most:
        yield body
        return
    lines = body.split(b"\n")
    for start in range(0, len(lines), most):
        yield b"\n".join(lines[start : start + most])


def _json(path: str, stream: _Bounded, most_rows: int) -> Iterator[Chunk]:
    body = stream.all()
    if not body.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        rows = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise DataError(f"{path}: not readable JSON (it is nested too deeply)") from None
    except ValueError as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        first = body.lstrip().partition(b"\n")[0]
        if b"\n{" in body and isinstance(parsed_line(first), dict):
            # JSON lines under the wrong name.
            lines = _Bounded(path, io.BytesIO(body), math.inf)
            yield from _json_lines(path, lines, most_rows)
            return
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(":")[0]
        raise DataError(f"{path}:{line}: not valid JSON ({reason})") from None
    halves, size = b"\\ud" in body or b"\\uD" in body, len(body)
    del body
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"{path}: expected a list of rows, got {'an empty list' if rows == [] else type(rows).__name__}"
        )

    def looked_at(row: Any) -> Row | str:
        if not isinstance(row, dict):
            return not_object(row)
        return checked(row) if halves else row

    each = rows_at_once(len(rows), size, most_rows, CHUNK_BYTES)
    for start in range(0, len(rows), each):
        part = enumerate(rows[start : start + each], start + 1)
        yield Parsed(path, start, [(f"row {number}", looked_at(row)) for number, row in part])


def _csv(path: str, stream: _Bounded, most_rows: int) -> Iterator[Chunk]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 KB
    # What is no UTF-8 becomes surrogates, which name the row that has them.
    text = io.TextIOWrapper(
        io.BufferedReader(_Raw(stream)), encoding="utf-8", errors="surrogateescape", newline=""
    )
    # Strict, for a quote that is not closed would take all that follows for one value.
    reader = csv.DictReader(text, strict=True)
    lines = reader.reader  # its number counts blank lines and those of a row that cannot be read
    start, part, size, line = 0, [], 0, 0
    try:
        check_names(path, reader.fieldnames or ())
        line = lines.line_num
        for row in reader:
            line = lines.line_num
            part.append((str(line), _csv_row(row, reader.fieldnames or [])))
            size += sum(map(len, filter(None, row.values()))) if isinstance(part[-1][1], dict) else 0
            if len(part) == most_rows or size >= CHUNK_BYTES:
                yield Parsed(path, start, part)
                start, part, size = start + len(part), [], 0
        if part:
            yield Parsed(path, start, part)
    except csv.Error as error:
        raise DataError(
            f"{path}:{line + 1}: not valid csv ({error}, in the row from here to line {lines.line_num})"
        ) from None
    if not start and not part:
        blank = not reader.fieldnames
        raise DataError(f"{path}: {'the file is empty' if blank else 'a header but no rows'}")


def _csv_row(row: dict[Any, Any], names: Sequence[str]) -> dict[str, str] | str:
    """The row, or what is wrong with it."""
    if None in row or None in row.values():
        return f"expected {len(names)} columns, as in the header"
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError:
        return "not UTF-8 text"
    return row


class _Raw(io.RawIOBase):
    """A bounded file as `io` wants it."""

    def __init__(self, stream: _Bounded) -> None:
        self._stream, self._rest = stream, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._rest or self._stream.read(CHUNK_BYTES)
        given, self._rest = chunk[: len(buffer)], chunk[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)


def _parquet(path: str, most_rows: int, max_bytes: int) -> Iterator[Chunk]:
    import pyarrow.parquet as parquet

    start = 0
    try:
        with parquet.ParquetFile(here(path)) as file:
            about = file.metadata
            size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
            if max_bytes and size > max_bytes:
                raise DataError(
                    f"{path}: it holds {size:,} bytes once it is decompressed; raise data.max_bytes to read it all "
                    "the same"
                )
            if not about.num_rows:
                raise DataError(f"{path}: the file has no rows")
            check_names(path, file.schema_arrow.names)
            each = rows_at_once(about.num_rows, size, most_rows, CHUNK_BYTES)
            for batch in file.iter_batches(batch_size=each):
                yield Tabled(path, start, batch)
                start += batch.num_rows
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
