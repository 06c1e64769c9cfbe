"""Training rows that are tokenized while training and not stored, for files too large to store twice."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from jaxalign.data.blocks import Recipe, Tally
from jaxalign.data.chunks import Chunk
from jaxalign.data.examples import Example
from jaxalign.data.sources import Sources, key_of
from jaxalign.data.table import Examples
from jaxalign.errors import ConfigError, DataError

# Of a file that is not read as a whole: the bytes at both ends by which it is known.
ENDS = 2**20


class Stream(Sequence[Example]):
    """The rows of files, in windows of a fixed number of rows; as a sequence it is its first window.

    Files are read side by side, a chunk of each in turn.

    Args:
      sources: how the files are read and tokenized.
      held: held-out examples; training rows that repeat one are left out.

    Attributes:
      tally: what became of the rows that were read, each counted once.
      fits: is asked about every example that is drawn, and raises where one is too long, say.

    Raises:
      ConfigError: a setting that a stream cannot obey.
    """

    def __init__(self, sources: Sources, held: Examples | None) -> None:
        check_streamable(sources)
        self._sources, self._held, self.tally = sources, held, Tally()
        self.fits: Callable[[Example], None] = lambda _: None
        self._recipes: dict[str, Recipe] = {}
        self._counting: dict[int, Tally] = {}
        self._counted = 0

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return self._sources.config.train

    def tell(self, epoch: int) -> None:
        """Prints how many rows of an epoch were used and filtered."""
        counts = f"{self.tally.read:,} rows read, filtered {dict(self.tally.filtered)}"
        self._sources.say(f"data.streaming: epoch {epoch + 1} finished: {counts}")

    def compare(self, written: Mapping[str, int]) -> None:
        """Reports files modified since, although their sizes and ends are unchanged."""
        for file in [file for file, when in self.written.items() if written.get(file, when) != when]:
            self._sources.say(
                f"data.streaming: {file} was modified since the checkpoint; its size, start and end are unchanged, "
                "the rest was not compared"
            )

    def __len__(self) -> int:
        return len(self._head)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        return self._head[index]

    @cached_property
    def _head(self) -> list[Example]:
        return next((rows for _, rows, _ in self.windows() if rows), [])

    @cached_property
    def files(self) -> dict[str, str]:
        """What tells each file from others without reading all of it: names, sizes and ends; nothing of hub ids."""
        tails = {path: [(name, _ends(file)) for name, file in files.items()] for path, files in self._behind}
        return {path: key_of(ends) for path, ends in tails.items() if ends}

    @cached_property
    def written(self) -> dict[str, int]:
        """When each file that has more than its ends was written, in nanoseconds."""
        stats = ((file, file.stat()) for _, files in self._behind for file in files.values())
        return {str(file): about.st_mtime_ns for file, about in stats if about.st_size > 2 * ENDS}

    @cached_property
    def _behind(self) -> list[tuple[str, dict[str, Path]]]:
        return [(path, self._sources.files(path)) for path in self.paths]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the settings and of what tells the files from others without reading all of them."""
        state = hashlib.sha256(repr(self._sources.settings).encode())
        for path in self._sources.config.train:
            state.update(repr((path, self.files.get(path))).encode())
        state.update(str(self._sources.config.window).encode())
        return state.hexdigest()[:32]

    def windows(self, first: int = 0) -> Iterator[tuple[int, list[Example], str]]:
        """(number, examples, a hash of them) of each window from `first` on; what is before is not parsed."""
        from jaxalign.data.columns import Columns

        numbers: deque[int] = deque()

        def jobs() -> Iterator[tuple[Recipe, Chunk]]:
            for number, chunk in self._numbered():
                if number >= first:
                    numbers.append(number)
                    yield self._recipe(chunk.path), chunk

        window, rows, state = first, [], hashlib.sha256()
        for block in self._sources.workers.blocks(jobs()):
            number = numbers.popleft()
            if number != window:
                self._finish(window)
                yield window, rows, state.hexdigest()[:16]
                window, rows, state = number, [], hashlib.sha256()
            columns = Columns(block.batch, block.path)
            digests = columns.numbers("digest")
            state.update(digests.tobytes())
            kept = ~np.isin(digests, self._held_digests)
            self._count(number, block.tally, columns.numbers("row"), kept)
            rows += [columns.example(int(place)) for place in np.flatnonzero(kept)]
        self._finish(window)
        yield window, rows, state.hexdigest()[:16]

    def _numbered(self) -> Iterator[tuple[int, Chunk]]:
        """(number of its window, chunk)."""
        size = self._sources.config.window
        number, rows = 0, 0
        for chunk in _in_turn(
            [self._sources.chunks(path, most_rows=size) for path in self._sources.config.train]
        ):
            if rows >= size:
                number, rows = number + 1, 0
            yield number, chunk
            rows += chunk.size

    def _recipe(self, path: str) -> Recipe:
        if path not in self._recipes:
            self._recipes[path] = self._sources.recipe(path, self._sources.chunks(path))
        return self._recipes[path]

    def _count(self, number: int, tally: Tally, row: np.ndarray, kept: np.ndarray) -> None:
        """Adds what became of a block's rows, unless its window has been counted before."""
        if number < self._counted:
            return
        self._counting.setdefault(number, Tally()).add(tally)
        lost = len(np.unique(row)) - len(np.unique(row[kept]))
        if lost:
            self._counting[number].filtered["repeats a held-out row"] += lost

    def _finish(self, number: int) -> None:
        """All blocks of a window have come."""
        counted = self._counting.pop(number, None)
        if counted is not None:
            self.tally.add(counted)
        self._counted = max(self._counted, number + 1)

    @cached_property
    def _held_digests(self) -> np.ndarray:
        if self._held is None or not self._sources.config.deduplicate:
            return np.zeros(0, np.uint64)
        return np.unique(self._held.column("digest"))


class StreamBatches:
    """Endless batches of a stream, each window in a new order each epoch: a function of (seed, epoch, window) alone.

    Args:
      stream: the rows.
      batch_size: rows of every batch; it may hold rows of two windows.
      seed: of the order.
      collate: examples and their numbers -> batch.
    """

    def __init__(
        self, stream: Stream, *, batch_size: int, seed: int, collate: Callable[..., dict[str, Any]]
    ) -> None:
        self._stream, self._size, self._seed, self._collate = stream, batch_size, seed, collate
        self._epoch, self._window, self._drawn, self._count = 0, 0, 0, 0
        self._content = ""
        self._rows: Iterator[Example] | None = None

    @property
    def per_epoch(self) -> float:
        """Unknown until all rows are read."""
        return math.inf

    def next(self) -> dict[str, Any]:
        """The next batch."""
        if self._rows is None:
            self._rows = self._drawn_rows()
        rows = [next(self._rows) for _ in range(self._size)]
        numbers = [(self._count + i) % 2**31 for i in range(self._size)]
        self._count += self._size
        return self._collate(rows, numbers)

    def state(self) -> dict[str, Any]:
        """The position after the last batch returned."""
        place = {
            "epoch": self._epoch,
            "window": self._window,
            "drawn": self._drawn,
            "count": self._count,
        }
        about = {"data": self._stream.fingerprint, "written": self._stream.written}
        return place | {"content": self._content, "seed": self._seed} | about

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a saved position.

        Raises:
          DataError: the position was saved on other data or with another seed.
        """
        if (state.get("data"), state.get("seed")) != (self._stream.fingerprint, self._seed):
            raise DataError(
                "the checkpoint was saved with other data or another seed: the files of data.train, or the keys "
                "that process them, have changed since"
            )
        self._stream.compare(state.get("written", {}))
        self._epoch, self._window, self._drawn, self._count = (
            int(state[name]) for name in ("epoch", "window", "drawn", "count")
        )
        self._content, self._rows = state["content"], None

    def _drawn_rows(self) -> Iterator[Example]:
        while True:
            begun, drawn = self._window, 0
            for number, rows, content in self._stream.windows(begun):
                if number == begun and self._drawn and content != self._content:
                    raise DataError(
                        "the rows at the checkpoint have changed since: the files of data.train differ from those "
                        "at the start of the run"
                    )
                skipped = self._drawn if number == begun else 0
                self._window, self._drawn, self._content = number, skipped, content
                for example in rows:
                    self._stream.fits(example)
                order = np.random.default_rng((self._seed, self._epoch, number)).permutation(len(rows))
                drawn += len(rows)
                for place in order[skipped:]:
                    self._drawn += 1
                    yield rows[place]
            if not drawn and not begun:
                raise DataError(
                    f"{', '.join(self._stream.paths)}: no row left to train on; {dict(self._stream.tally.filtered)}"
                )
            self._stream.tell(self._epoch)
            self._epoch, self._window, self._drawn = self._epoch + 1, 0, 0


def check_streamable(sources: Sources) -> None:
    """Rejects keys that a stream does not support.

    Raises:
      ConfigError: naming the setting.
    """
    config = sources.config
    if config.weights:
        raise ConfigError("data.weights: a stream cannot be weighted; set data.streaming=false")
    if config.limit:
        raise ConfigError("data.limit: not supported for a stream; set train.steps to limit training")
    if not config.validation and config.validation_fraction:
        raise ConfigError(
            "data.validation_fraction: a stream cannot be split; set data.validation, or data.validation_fraction=0"
        )


def _in_turn(sources: Sequence[Iterator[Chunk]]) -> Iterator[Chunk]:
    """One of each, again and again, until all have ended."""
    waiting = deque(sources)
    while waiting:
        chunks = waiting.popleft()
        for chunk in chunks:
            yield chunk
            waiting.append(chunks)
            break


def _ends(file: Path) -> tuple[int, str]:
    """Size of a file and a hash of its two ends."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            head = stream.read(ENDS)
            stream.seek(max(size - ENDS, 0))
            return size, hashlib.sha256(head + stream.read(ENDS)).hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
