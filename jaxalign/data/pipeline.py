"""Loads a configuration's data: reads, filters, tokenizes and splits it."""

import datetime
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from jaxalign.data.blocks import Tally, scattered
from jaxalign.data.chat import ChatFormat, chat_format
from jaxalign.data.config import DataConfig, Kind
from jaxalign.data.examples import Example
from jaxalign.data.in_memory import check_rows
from jaxalign.data.readers import Counts
from jaxalign.data.sources import INDEPENDENT, Say, Sources, key_of, samples
from jaxalign.data.stream import Stream
from jaxalign.data.table import Examples, Table
from jaxalign.data.workers import Workers
from jaxalign.errors import ConfigError, DataError


@dataclass(frozen=True)
class Dataset:
    """Tokenized examples.

    Attributes:
      train, validation: the examples; `train` may be a `Stream`.
      counts: rows read, used and filtered by reason, of all files.
      fingerprint: hash of the configuration and of every token id.
      files: a hash of each file's rows, by path; for a streamed file, of its size, start and end.
      shared_prompts: training rows that share a prompt with the validation files.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    counts: Counts
    fingerprint: str
    files: dict[str, str] = field(default_factory=dict)
    shared_prompts: int = 0

    def summary(self) -> dict[str, Any]:
        """A summary for metadata.json; `truncated` is the number of used rows that were cut."""
        shared = {"shared_prompts": self.shared_prompts} if self.shared_prompts else {}
        streamed = isinstance(self.train, Stream)
        return {
            **self.counts.summary(),
            "truncated": truncated_rows(self.train, self.validation),
            **({"streaming": True} if streamed else {}),
            "first_window_rows" if streamed else "train_rows": len(self.train),
            "validation_rows": len(self.validation),
            **shared,
            "files": self.files,
            "fingerprint": self.fingerprint,
        }

    def first(self, count: int) -> list[Example]:
        """The first held-out examples; training examples if there are none."""
        return list((self.validation or self.train)[:count])


def truncated_rows(*parts: Sequence[Example]) -> int:
    """Rows of files of which something was cut off; parts that lie on the disk lie in one table."""
    stored = [part for part in parts if isinstance(part, Examples)]
    cut = [part.rows[part.column("truncated")] for part in stored]
    number = len(np.unique(_row_starts(stored[0].table)[np.concatenate(cut)])) if stored else 0
    others = (part for part in parts if not isinstance(part, (Examples, Stream)))
    return number + len({example.source for part in others for example in part if example.truncated})


def chat_of(config: DataConfig, tokenizer: Any) -> ChatFormat:
    """The chat format of a data set.

    Raises:
      DataError: as `chat_format`.
    """
    return chat_format(
        tokenizer, config.template, config.end_token, config.human, config.assistant, config.date
    )


def load_dataset(
    config: DataConfig,
    kind: Kind,
    tokenizer: Any,
    *,
    seed: int,
    say: Say | None = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
) -> Dataset:
    """Reads, filters, tokenizes and splits the data.

    A file is tokenized once: its examples are stored on disk (see `store`) and read from there on demand.

    Validation files are used whole, and training rows that repeat one of their rows are dropped as duplicates.
    Without validation files, the split depends on a hash of the first user turn: a prompt is always on the same
    side, whatever other rows the files have. The seed only decides which rows a weight below 1 keeps.

    Args:
      config: the section `data`; a `max_length` of 0 is 1024 here (`DataConfig.within` knows the model's context).
      kind: what the rows train.
      tokenizer: a transformers tokenizer.
      seed: see above.
      say: receives progress messages; None prints to standard error.
      train_dataset, eval_dataset: rows in place of the files of `config.train` and `config.validation`; see
        `in_memory` for what they may be.

    Raises:
      DataError: no file, a bad row (file and line), a separator of steps without a token, or nothing left to
        train on (with the counts).
      ConfigError: a cache that cannot be written to; rows that are none, or that are given beside files.
    """
    config, given = _with_given(config, train_dataset, eval_dataset)
    if not config.train:
        raise DataError("data.train: expected at least one file, folder or hub id")
    config = replace(config.within(), date=config.date or datetime.date.today().isoformat())
    chat = chat_of(config, tokenizer)
    if kind == "stepwise" and not chat.continuation_ids(config.separator):
        raise DataError(f"data.separator: the tokenizer cannot encode {config.separator!r}")
    if config.streaming:
        return _streamed(config, kind, chat, say or _said, given)
    with Workers(config.workers) as workers:
        sources = Sources(config, kind, chat, workers, say or _said, given)
        chosen = samples(config, given)
        held = [sources.store(path) for path in config.validation]
        given = [sources.store(path, sample) for path, sample in zip(config.train, chosen, strict=True)]
    return _assembled(config, kind, Table([*held, *given]), len(held), seed)


def _with_given(
    config: DataConfig, train_dataset: Any, eval_dataset: Any
) -> tuple[DataConfig, dict[str, Any]]:
    """The configuration with names in place of files, and the rows by those names."""
    given = {}
    for name, key, rows in (
        ("train_dataset", "train", train_dataset),
        ("eval_dataset", "validation", eval_dataset),
    ):
        if rows is None:
            continue
        check_rows(name, rows)
        if getattr(config, key):
            raise ConfigError(f"{name} and data.{key}: choose one; both name the source of the rows")
        given[name] = rows
        config = replace(config, **{key: (name,)})
    return config, given


def _said(line: str) -> None:
    print(line, file=sys.stderr)


def _streamed(
    config: DataConfig, kind: Kind, chat: ChatFormat, say: Say, given: Mapping[str, Any]
) -> Dataset:
    """A data set whose training rows are a stream; its counts are those of the first window."""
    workers = Workers(config.workers)
    held, counts, files = None, Counts(), {}
    if config.validation:
        whole = Sources(replace(config, streaming=False), kind, chat, workers, say, given)
        table = Table([whole.store(path) for path in config.validation])
        files = _files(table)
        held = Examples(
            table, np.flatnonzero(_distinct(table) if config.deduplicate else np.ones(len(table), bool))
        )
        _add_tallies(counts, [store.tally for store in table.stores])
        counts.filtered["duplicate"] += len(np.unique(_row_starts(table))) - len(
            np.unique(_row_starts(table)[held.rows])
        )
    stream = Stream(Sources(config, kind, chat, workers, say, given), held)
    if not len(stream):
        raise DataError(
            f"{', '.join(config.train)}: no row left to train on in the first {config.window} rows; "
            f"{json.dumps(dict(stream.tally.filtered))}"
        )
    _add_tallies(counts, [stream.tally])
    _settle(counts)
    counts.used = counts.read - sum(counts.filtered.values())
    files |= stream.files
    parts = [kind, settings_of(config), stream.fingerprint, held.fingerprint if held else ""]
    return Dataset(stream, held if held is not None else [], counts, key_of(parts), files)


def _add_tallies(counts: Counts, tallies: Sequence[Tally]) -> None:
    for tally in tallies:
        counts.read += tally.read
        counts.filtered.update(tally.filtered)
        counts.unread.update(tally.unread)
        for reason, number in tally.parts.items():
            counts.notes[f"part of a row left out: {reason}"] += number


def _settle(counts: Counts) -> None:
    """Takes away the reasons that hold for no row."""
    for counter in (counts.filtered, counts.notes):
        for name in [name for name, number in counter.items() if not number]:
            del counter[name]


def _assembled(config: DataConfig, kind: Kind, table: Table, held: int, seed: int) -> Dataset:
    """The data set of a table, of which the first `held` stores are validation files."""
    counts = Counts()
    _add_tallies(counts, [store.tally for store in table.stores])
    validation = np.arange(len(table)) < table.starts[held]
    # The number of the first example of each one's row: what is said of a row is said of all its examples.
    rows = _row_starts(table)
    kept = _distinct(table) if config.deduplicate else np.ones(len(table), bool)
    repeated = _emptied(rows, np.ones(len(table), bool), kept)
    counts.filtered["duplicate"] += repeated
    partly = int((~kept & _has_any(rows, kept)).sum())
    counts.notes["part of a row left out: duplicate"] += partly
    group = table.numbers("group")
    shared = 0
    if config.validation:
        shared = _number_of(rows, kept & ~validation & np.isin(group, group[validation]))
    elif config.validation_fraction:
        # The group is a hash, so its size is a draw.
        validation = group < np.uint64(config.validation_fraction * 2.0**64)
    train = np.flatnonzero(kept & ~validation)
    if config.weights:
        copies = _copies(table, rows, config, held, seed)
        stays = kept & (validation | (copies > 0))
        counts.filtered["left out by weight"] += _emptied(rows, kept, stays)
        train = np.repeat(train, copies[train])
        kept = stays
    counts.used = _number_of(rows, kept)
    _add_notes(counts, table, kept)
    _settle(counts)
    counts.check()
    if not len(train):
        raise DataError(f"{', '.join(config.train)}: no row left to train on; {json.dumps(counts.summary())}")
    splits = Examples(table, train), Examples(table, np.flatnonzero(kept & validation))
    files = _files(table)
    return Dataset(*splits, counts, _fingerprint(config, kind, table, splits), files, shared)


def _files(table: Table) -> dict[str, str]:
    """A hash of what each file gives; one that is named twice may give other rows each time (`data.limit`)."""
    fingerprints: dict[str, list[str]] = {}
    for store in table.stores:
        fingerprints.setdefault(store.path, []).append(store.fingerprint)
    return {path: each[0] if len(set(each)) == 1 else key_of(each) for path, each in fingerprints.items()}


def _row_starts(table: Table) -> np.ndarray:
    """int32 or int64 [N]: the number of the first example of each one's row."""
    row, part = table.numbers("row"), table.parts()
    begins = np.ones(len(table), bool)
    begins[1:] = (row[1:] != row[:-1]) | (part[1:] != part[:-1])
    places = np.arange(len(table), dtype=np.int32 if len(table) < 2**31 else np.int64)
    return np.maximum.accumulate(np.where(begins, places, 0))


def _has_any(rows: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """bool [N]: whether some example of each one's row is marked."""
    flagged = np.zeros(len(rows), bool)
    flagged[rows[marked]] = True
    return flagged[rows]


def _number_of(rows: np.ndarray, marked: np.ndarray) -> int:
    """Rows of which some example is marked."""
    flagged = np.zeros(len(rows), bool)
    flagged[rows[marked]] = True
    return int(flagged.sum())


def _emptied(rows: np.ndarray, before: np.ndarray, after: np.ndarray) -> int:
    """Rows that had examples before, and have none after."""
    return _number_of(rows, before) - _number_of(rows, after)


def _distinct(table: Table) -> np.ndarray:
    """bool [N]: the first of all examples that are equal."""
    first, second = table.numbers("digest"), table.numbers("digest2")
    # By 64 bits first, and by the other 64 only where those are equal.
    order = np.argsort(first, kind="stable")
    ranked = first[order]
    same = np.zeros(len(order), bool)
    same[1:] = ranked[1:] == ranked[:-1]
    kept = np.ones(len(order), bool)
    if same.any():
        together = same.copy()
        together[:-1] |= same[1:]
        seen: set[tuple[int, int]] = set()
        places = np.sort(order[together])
        for place, key in zip(
            places.tolist(), zip(first[places].tolist(), second[places].tolist(), strict=True), strict=True
        ):
            kept[place] = key not in seen
            seen.add(key)
    return kept


def _copies(table: Table, rows: np.ndarray, config: DataConfig, held: int, seed: int) -> np.ndarray:
    """int64 [N]: how often each example stands in the training set; all of a row as often.

    What a fraction keeps goes by what is in the row (and how many equal rows stand before it), not by where it is.
    """
    first = table.numbers("digest")[rows]
    order = np.argsort(first, kind="stable")
    ranked, places = first[order], np.arange(len(order))
    begins = np.ones(len(order), bool)
    begins[1:] = ranked[1:] != ranked[:-1]
    number = np.zeros(len(order), np.uint64)
    number[order] = (places - np.maximum.accumulate(np.where(begins, places, 0))).astype(np.uint64)
    # Of the first example of a row, so that the row stays together.
    number = number[rows]
    draw = scattered(first ^ scattered(number ^ scattered(np.full(1, seed % 2**64, np.uint64)))) / 2.0**64
    weights = np.asarray([1.0] * held + list(config.weights))[table.parts()]
    whole = np.floor(weights)
    return (whole + (draw < weights - whole)).astype(np.int64)


def _add_notes(counts: Counts, table: Table, kept: np.ndarray) -> None:
    for start, store in zip(table.starts.tolist(), table.stores, strict=False):
        for index, note in store.texts("note"):
            if kept[start + index]:
                counts.notes[note] += 1


def settings_of(config: DataConfig) -> dict[str, Any]:
    """What of a configuration examples and their choice depend on, beside the files."""
    free = INDEPENDENT - {"weights", "validation_fraction", "limit", "deduplicate"}
    return {name: value for name, value in asdict(config).items() if name not in free}


def _fingerprint(config: DataConfig, kind: str, table: Table, splits: tuple[Examples, Examples]) -> str:
    return key_of([kind, settings_of(config), *(examples.fingerprint for examples in splits)])


def fingerprint(
    config: DataConfig, kind: str, train: Sequence[Example], validation: Sequence[Example]
) -> str:
    """A hash of the settings and of every token id, label and margin."""
    digest = hashlib.sha256(json.dumps([kind, settings_of(config)], sort_keys=True, default=str).encode())
    for rows in (train, validation):
        for example in rows:
            parts = (example.rows, example.prompt_tokens, example.best, example.margin, example.labels)
            digest.update(repr(parts).encode())
        digest.update(b"|")
    return digest.hexdigest()[:32]
