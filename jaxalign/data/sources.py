"""Turns files into stores: identifies a file and everything its examples depend on, and reads or makes the
examples."""

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jaxalign.data.blocks import Block, Recipe, Sample, hashes
from jaxalign.data.chat import ChatFormat
from jaxalign.data.chunks import Chunk
from jaxalign.data.config import DataConfig, Kind
from jaxalign.data.datasets_files import named_dataset, open_dataset
from jaxalign.data.examples import Limits
from jaxalign.data.files import CHUNK_BYTES, CHUNK_ROWS, chunks_of, count_rows, files_behind, suffix_of
from jaxalign.data.in_memory import RECORD, RecordReader, chunks_in_memory, identity_in_memory, rows_in
from jaxalign.data.readers import label_tokenizer, reader_for, reading_of
from jaxalign.data.records import Record
from jaxalign.data.workers import Workers
from jaxalign.errors import DataError

# Keys of the section `data` that change no example of a file.
INDEPENDENT = {
    "train", "validation", "weights", "validation_fraction", "limit", "max_bytes", "workers", "cache", "streaming",
    "window", "date", "deduplicate",
}  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sources:
    """How the files of one data set are read and tokenized.

    Attributes:
      config: the section `data`.
      kind: what the rows train.
      chat: how they are written.
      workers: who tokenizes.
      say: is told what happens.
      given: rows that stand for files, by the names that they have in place of paths (see `in_memory`).
    """

    config: DataConfig
    kind: Kind
    chat: ChatFormat
    workers: Workers
    say: Say
    given: Mapping[str, Any] = field(default_factory=dict)

    def chunks(self, path: str, *, most_rows: int = 0) -> Iterator[Chunk]:
        """The pieces of a file."""
        config = self.config
        if path in self.given:
            return chunks_in_memory(
                path, self.given[path], min(most_rows or CHUNK_ROWS, CHUNK_ROWS), CHUNK_BYTES
            )
        return chunks_of(path, max_bytes=config.max_bytes, most_rows=most_rows, streaming=config.streaming)

    def recipe(self, path: str, chunks: Iterable[Chunk], sample: Sample | None = None) -> Recipe:
        """How the rows of a file become examples; its format is that of its first good row.

        Raises:
          DataError: no format reads the first row; it is malformed, and bad rows are not to be skipped; none is good.
        """
        config, skip = self.config, self.config.on_bad_row == "skip"
        for chunk in chunks:
            for place, row in chunk.rows():
                if not isinstance(row, DataError):
                    record = path in self.given and isinstance(row.get(RECORD), get_args(Record))
                    reading = reading_of(config)
                    return Recipe(
                        RecordReader() if record else reader_for(path, place, row, reading, self.kind),
                        self.kind,
                        self.chat,
                        Limits(config.max_length, config.max_prompt_length, config.truncation),
                        config.prompt_tokens,
                        config.separator,
                        skip,
                        sample,
                    )
                if not skip:
                    raise row
        raise DataError(f"{path}: the file has no well-formed row")

    def blocks(self, path: str, sample: Sample | None = None) -> Iterator[Block]:
        """The examples of a file, made."""
        recipe = self.recipe(path, self.chunks(path), sample)
        return self._with_progress(path, self.workers.blocks((recipe, chunk) for chunk in self.chunks(path)))

    def _with_progress(self, path: str, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks, and how it goes where it takes long."""
        terminal, begun, rows = sys.stderr.isatty(), time.monotonic(), 0
        shown, gap, line = begun, 1.0 if terminal else 30.0, ""
        for block in blocks:
            yield block
            rows += block.tally.read
            now = time.monotonic()
            if now - shown >= gap:
                shown, line = now, f"tokenizing {path}: {rows:,} rows, {rows / (now - begun):,.0f} rows/s"
                if terminal:
                    sys.stderr.write(f"\r\x1b[K{line}")
                    sys.stderr.flush()
                else:
                    self.say(line)
        if line and terminal:
            sys.stderr.write("\r\x1b[K")
        if line:
            seconds = time.monotonic() - begun
            self.say(f"tokenized {path}: {rows:,} rows in {seconds:.0f} s, {rows / seconds:,.0f} rows/s")

    def store(self, path: str, sample: Sample | None = None) -> Any:
        """The examples of a file on the disk (a `store.Store`), made where they are not there yet.

        Raises:
          DataError: as `blocks`, and a file that is written while it is read.
        """
        from jaxalign.data.store import cache_folder, open_or_write

        def made() -> Iterator[Block]:
            yield from self.blocks(path, sample)
            if path not in self.given and written(path) != before:
                raise DataError(
                    f"{path}: the file changed while it was read; start again once it is complete"
                )

        given = self.given.get(path)
        before = [] if given is not None else written(path)
        content = identity(path) if given is None else identity_in_memory(path, given)
        parts = [*self.settings, content, asdict(sample) if sample else None]
        folder = cache_folder(self.config.cache)
        return open_or_write(folder, key_of(parts), path, made, self.say)

    def files(self, path: str) -> dict[str, Path]:
        """The files here whose bytes are the rows, by their names; none of rows that were given."""
        return {} if path in self.given else files_behind(path)

    @cached_property
    def settings(self) -> list[Any]:
        """All that the examples depend on beside the file."""
        config = self.config
        template = json.dumps(getattr(self.chat.tokenizer, "chat_template", None), default=str)
        # A template that prints the day asks for it by this name.
        dated = self.chat.template == "tokenizer" and "strftime_now" in template
        settings = {name: value for name, value in asdict(config).items() if name not in INDEPENDENT}
        label = tokenizer_digest(label_tokenizer(config.label_tokenizer)) if config.label_tokenizer else ""
        return [
            code_digest(),
            self.kind,
            settings,
            tokenizer_digest(self.chat.tokenizer),
            label,
            dated and config.date,
        ]


def samples(config: DataConfig, given: Mapping[str, Any] | None = None) -> list[Sample | None]:
    """For each training file which of its rows are read, so that there are `data.limit` of all of them.

    They are taken by a hash of their numbers: evenly, and mostly the same ones where a file grows. `given` is that of
    `Sources`.
    """
    if not config.limit:
        return [None] * len(config.train)
    rows = given or {}
    counts = (
        rows_in(rows[path]) if path in rows else count_rows(path, max_bytes=config.max_bytes)
        for path in config.train
    )
    hashed = [hashes(0, count, salt) for salt, count in enumerate(counts)]
    together = np.concatenate(hashed)
    if len(together) <= config.limit:
        return [None] * len(hashed)
    below = int(np.partition(together, config.limit - 1)[config.limit - 1])
    return [Sample(salt, below) for salt in range(len(hashed))]


def identity(path: str) -> str:
    """A hash of a file's kind and bytes; of a folder's files, by their names; of a hub id what `datasets` tells it
    by.

    Raises:
      DataError: there is no such file, or it cannot be read.
    """
    parts = []
    for name, file in files_behind(path).items():
        try:
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None
        parts.append((name or suffix_of(path), path.endswith(".gz"), digest))
    if parts:
        return key_of(parts)
    name = named_dataset(path)
    assert name is not None  # or there would be no such file
    return f"datasets {open_dataset(path, name)._fingerprint}"


def written(path: str) -> list[tuple[int, int, int]]:
    """A value that changes when the files behind a path are modified."""
    stats = [file.stat() for file in files_behind(path).values()]
    return [(about.st_ino, about.st_size, about.st_mtime_ns) for about in stats]


def tokenizer_digest(tokenizer: Any) -> str:
    """A hash of all that a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # As `encoding` uses it: a file that cuts or pads would else be another one from then on.
        backend.no_truncation()
        backend.no_padding()
        body = backend.to_str()
    else:
        body = repr(sorted(tokenizer.get_vocab().items())) + _saved_digest(tokenizer)
    more = [tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None), type(tokenizer).__name__]
    return hashlib.sha256((body + json.dumps(more, sort_keys=True, default=str)).encode()).hexdigest()


def _saved_digest(tokenizer: Any) -> str:
    """A hash of the files that a tokenizer saves; of one that saves none, nothing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception:  # of the user's own class
            return ""
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def code_digest() -> str:
    """A hash of the code that makes examples, so that none is taken for what another version makes."""
    import tokenizers
    import transformers

    state = hashlib.sha256(f"{tokenizers.__version__} {transformers.__version__}".encode())
    for file in sorted(Path(__file__).parent.rglob("*")):
        if file.is_file() and file.suffix not in (".pyc", ".tmp"):
            state.update(file.name.encode() + file.read_bytes())
    return state.hexdigest()


def key_of(parts: Sequence[Any]) -> str:
    """A hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
