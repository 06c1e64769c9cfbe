"""Tokenized files on disk: one Arrow file each, written once and memory-mapped for reading."""

import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxalign.data.blocks import Block, Tally
from jaxalign.data.columns import KINDS, SCHEMA, Columns, Fingerprint
from jaxalign.data.examples import Example
from jaxalign.data.one_writer import one_writer
from jaxalign.errors import ConfigError
from jaxalign.remote import cache_home

# What a process that was killed has left is taken away after this many seconds.
STALE = 24 * 3600


# Behind the Arrow file: the CRC-32 of all its bytes.
CHECK_BYTES = 4
PIECE = 2**20


class Damaged(Exception):
    """A damaged file."""


class Store:
    """The examples of one file, read from disk on demand.

    Args:
      file: the Arrow file.
      path: the data file, as the user named it, which `Example.source` begins with.

    Attributes:
      tally: what became of the file's rows.
      fingerprint: of all that is in the examples.

    Raises:
      Damaged: a byte of the file has changed.
      OSError: it cannot be read.
    """

    def __init__(self, file: Path, path: str) -> None:
        self.path = path
        _check(file)
        # What is mapped stays without a descriptor, of which there may be fewer than files.
        with pa.memory_map(str(file)) as mapped:
            body = mapped.read_buffer()
        try:
            self._reader = pa.ipc.open_file(pa.BufferReader(body.slice(0, body.size - CHECK_BYTES)))
            _, about = self._reader.get_batch_with_custom_metadata(self._reader.num_record_batches - 1)
            facts = json.loads(about[b"about"])
        except (pa.ArrowException, ValueError, KeyError, TypeError, IndexError) as error:
            raise Damaged(str(error)) from None
        self.tally = Tally(facts["read"], *(Counter(facts[n]) for n in ("filtered", "unread", "parts")))
        self.fingerprint: str = facts["fingerprint"]
        self._sizes: list[int] = facts["sizes"]
        self._blocks: dict[int, Columns] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)

    def example(self, index: int) -> Example:
        """One example."""
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._block(block).example(int(index - self._starts[block]))

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, copied into memory."""
        whole = np.empty(len(self), KINDS[str(SCHEMA.field(name).type)])
        for block in range(len(self._sizes)):
            whole[self._starts[block] : self._starts[block + 1]] = self._once(block).numbers(name)
        return whole

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(offsets [N + 1], values) of a column of lists, copied into memory."""
        blocks = [self._once(block).lists(name) for block in range(len(self._sizes))]
        sizes = np.concatenate([np.zeros(1, np.int64), *(np.diff(offsets) for offsets, _ in blocks)])
        return np.cumsum(sizes), np.concatenate([np.zeros(0, np.int32), *(values for _, values in blocks)])

    def texts(self, name: str) -> Iterator[tuple[int, str]]:
        """(index, text) of the examples that have one in a column that is mostly null."""
        for block in range(len(self._sizes)):
            for place, text in self._once(block).some(name):
                yield int(self._starts[block]) + place, text

    def _block(self, number: int) -> Columns:
        if number not in self._blocks:
            self._blocks[number] = self._once(number)
        return self._blocks[number]

    def _once(self, number: int) -> Columns:
        """A block that is not kept."""
        return self._blocks.get(number) or Columns(self._reader.get_batch(number), self.path)


def open_or_write(
    folder: Path, key: str, path: str, make: Callable[[], Iterable[Block]], say: Callable[[str], None]
) -> Store:
    """Opens the store of a key, or writes it if it does not exist; of several processes one writes, see `one_writer`.

    Args:
      folder: of the cache.
      key: hash of all that the examples depend on.
      path: the data file.
      make: its blocks, asked for where they must be made.
      say: is told that a damaged file is rebuilt, or that another process is waited for.

    Raises:
      ConfigError: the folder cannot be written to, or the disk is full.
      UserError: what `make` raises, here or in the process that was waited for.
    """
    file = folder / f"{key}.arrow"
    if (found := _opened(file, path)) is not None:
        return found
    with _refused(folder, "written to"):
        folder.mkdir(parents=True, exist_ok=True)
    with one_writer(file, say, f"waiting for another process, which tokenizes {path}"):
        if (found := _opened(file, path, say)) is not None:
            return found
        with _appearing(file) as temporary:
            _write(temporary, make(), folder)
        with _refused(file, "read"):
            return Store(file, path)


def _opened(file: Path, path: str, say: Callable[[str], None] = lambda _: None) -> Store | None:
    """The store in a file; None where there is none, or it is damaged, which is said."""
    with _refused(file.parent, "read"):
        there = file.exists()
    try:
        with _refused(file, "read"):
            return Store(file, path) if there else None
    except Damaged as error:
        say(f"{file}: damaged ({str(error).splitlines()[0]}); tokenizing {path} again")
        return None


def _check(file: Path) -> None:
    """The bytes are those that were written. They are read, not mapped: a page of a bad disk would end the
    process."""
    check, left = 0, file.stat().st_size - CHECK_BYTES
    if left < 0:
        raise Damaged("it is cut short")
    with open(file, "rb", buffering=0) as stream:
        while left > 0 and (piece := stream.read(min(left, PIECE))):
            check, left = zlib.crc32(piece, check), left - len(piece)
        if stream.read(CHECK_BYTES) != check.to_bytes(CHECK_BYTES, "little"):
            raise Damaged("its bytes are not those that were written")


def _seal(file: Path) -> None:
    """Writes what `_check` looks for, and waits until all is on the disk."""
    check = 0
    with open(file, "r+b", buffering=0) as stream:
        while piece := stream.read(PIECE):
            check = zlib.crc32(piece, check)
        stream.write(check.to_bytes(CHECK_BYTES, "little"))
        os.fsync(stream.fileno())


def _write(file: Path, blocks: Iterable[Block], folder: Path) -> None:
    tally, fingerprint, sizes = Tally(), Fingerprint(), []
    with _refused(folder, "written to"):
        sink = pa.OSFile(str(file), "wb")
        writer = pa.ipc.new_file(sink, SCHEMA)
    try:
        for block in blocks:
            tally.add(block.tally)
            if block.batch.num_rows:
                fingerprint.add(block.batch)
                sizes.append(block.batch.num_rows)
                with _refused(folder, "written to"):
                    writer.write_batch(block.batch)
        about = vars(tally) | {"fingerprint": fingerprint.hexdigest(), "sizes": sizes}
        with _refused(folder, "written to"):
            writer.write_batch(
                pa.RecordBatch.from_pylist([], SCHEMA), custom_metadata={"about": json.dumps(about)}
            )
            writer.close()
    finally:
        with _refused(folder, "written to"):
            sink.close()
    with _refused(folder, "written to"):
        _seal(file)


@contextmanager
def _refused(what: Path, how: str) -> Iterator[None]:
    """What the disk refuses, in one line."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise ConfigError(
            f"data.cache: {what} cannot be {how} ({reason}); set another folder, or data.streaming=true, which "
            "stores nothing"
        ) from None


@contextmanager
def _appearing(file: Path) -> Iterator[Path]:
    """A name to write to, which becomes `file` when all is written, and is gone where it is not."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    with _refused(file.parent, "written to"):
        for left in (*file.parent.glob(".*.tmp"), *file.parent.glob(".*.lock")):
            # It may be another user's, or another run renames it just now.
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()
    try:
        yield temporary
        with _refused(file.parent, "written to"):
            os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder(named: str) -> Path:
    """The folder for tokenized files: the one configured, else $JAXALIGN_CACHE, else ~/.cache/jaxalign.

    Raises:
      ConfigError: a home folder that is not known.
    """
    home = Path(named) if named else cache_home()
    try:
        return home.expanduser() / "data"
    except RuntimeError:
        raise ConfigError(f"data.cache: {home}: no such home folder; set another folder") from None
