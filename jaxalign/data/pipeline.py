"""From a configuration to tokenized, filtered, split data."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from jaxalign.data.chat import ChatFormat, chat_format
from jaxalign.data.config import DataConfig, Kind
from jaxalign.data.examples import Example, Filtered, Limits, make_example
from jaxalign.data.formats import Options
from jaxalign.data.readers import Counts, read_records, score_in
from jaxalign.data.records import Rating, Record
from jaxalign.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """Tokenized examples.

    Attributes:
      train, validation: the examples.
      counts: rows read, used and filtered by reason, of all files.
      fingerprint: hash of the settings and of every token id.
    """

    train: list[Example]
    validation: list[Example]
    counts: Counts
    fingerprint: str

    def summary(self) -> dict[str, Any]:
        """For metadata.json; `truncated` counts the used rows that were cut to length."""
        return {
            **self.counts.summary(),
            "truncated": len({e.source for e in (*self.train, *self.validation) if e.truncated}),
            "train_rows": len(self.train),
            "validation_rows": len(self.validation),
            "fingerprint": self.fingerprint,
        }


def chat_of(config: DataConfig, tokenizer: Any) -> ChatFormat:
    """How the rows of a data set are written.

    Raises:
      DataError: as `chat_format`.
    """
    return chat_format(tokenizer, config.template, config.end_token, config.human, config.assistant)


def load_dataset(config: DataConfig, kind: Kind, tokenizer: Any, *, seed: int) -> Dataset:
    """Reads, filters, tokenizes and splits.

    Validation files are taken as they are, and training rows that repeat one of their rows
    are left out as duplicates. Where there are none, the split goes by a hash of the prompt:
    the same prompt is always on the same side, whatever else the files hold. The seed only
    decides which rows a weight below 1 keeps.

    Raises:
      DataError: no file, a bad row (file and line), a separator of steps without a token, or nothing left to
        train on (with the counts).
    """
    if not config.train:
        raise DataError("data.train: expected at least one file, folder or hub id")
    chat = chat_of(config, tokenizer)
    if kind == "stepwise" and not chat.continuation_ids(config.separator):
        raise DataError(f"data.separator: the tokenizer has no token for {config.separator!r}")
    options = Options(config.dimension, config.human, config.assistant, _decoder(config))
    limits = Limits(config.max_length, config.max_prompt_length, config.truncation)
    counts = Counts()
    seen: set[str] = set()

    def read(path: str) -> list[Example]:
        records, found = read_records(
            path, format=config.format, on_bad_row=config.on_bad_row, options=options
        )
        counts.read += found.read
        counts.filtered.update(found.filtered)
        examples = []
        for record in records:
            try:
                _check_record(record, config)
                example = make_example(
                    record,
                    kind,
                    chat,
                    limits,
                    prompt_tokens=config.prompt_tokens,
                    separator=config.separator,
                )
                if config.deduplicate and not _is_new(example, seen):
                    raise Filtered("duplicate")
            except Filtered as reason:
                counts.filtered[str(reason)] += 1
                continue
            except DataError as error:  # the chat template cannot write this row
                if config.on_bad_row == "stop":
                    raise DataError(f"{record.source}: {error}") from None
                counts.filtered["refused by the chat template"] += 1
                continue
            examples.append(example)
            counts.used += 1
        return examples

    validation = [e for path in config.validation for e in read(path)]
    train: list[Example] = []
    for index, path in enumerate(config.train):
        weight = config.weights[index] if config.weights else 1.0
        for example in read(path):
            share = int(example.group, 16) / 16**16
            if not config.validation and share < config.validation_fraction:
                validation.append(example)
            else:
                copies = _copies(weight, example, seed)
                if copies == 0:
                    counts.used -= 1
                    counts.filtered["left out by weight"] += 1
                train += [example] * copies
    if config.limit and len(train) > config.limit:
        # By hash, so that the choice does not follow the order of the file.
        order = sorted(range(len(train)), key=lambda i: (train[i].group[::-1], i))
        keep = set(order[: config.limit])
        dropped = Counter(id(e) for i, e in enumerate(train) if i not in keep)
        train = [e for i, e in enumerate(train) if i in keep]
        gone = len(set(dropped) - {id(e) for e in train})
        counts.used -= gone
        counts.filtered["over data.limit"] += gone
    counts.check()
    if not train:
        raise DataError(f"{', '.join(config.train)}: no row left to train on; {json.dumps(counts.summary())}")
    return Dataset(train, validation, counts, fingerprint(config, kind, train, validation))


def _check_record(record: Record, config: DataConfig) -> None:
    if config.types and str(record.columns.get(config.type_field, "")) not in config.types:
        raise Filtered("other type")
    if config.min_score is not None:
        value = record.columns.get(config.score_field)
        if isinstance(record, Rating) and record.score is not None:
            value = record.score
        score = score_in(value)
        if score is None:
            raise Filtered("unscored")
        if score < config.min_score:
            raise Filtered("score below data.min_score")


def _is_new(example: Example, seen: set[str]) -> bool:
    body = repr((example.rows or example.prompt_tokens, example.best, example.labels))
    digest = hashlib.sha256(body.encode()).hexdigest()
    new = digest not in seen
    seen.add(digest)
    return new


def _copies(weight: float, example: Example, seed: int) -> int:
    whole, part = divmod(weight, 1.0)
    digest = hashlib.sha256(f"{seed}:{example.source}".encode()).hexdigest()[:12]
    return int(whole) + (int(digest, 16) / 16**12 < part)


def _decoder(config: DataConfig):
    if not config.label_tokenizer:
        return None
    from jaxalign.errors import ModelError

    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(config.label_tokenizer).decode
    except Exception as error:
        raise ModelError(
            f"data.label_tokenizer: {config.label_tokenizer}: {str(error).splitlines()[0]}"
        ) from None


def fingerprint(config: DataConfig, kind: str, train: list[Example], validation: list[Example]) -> str:
    """A hash of the settings and of every token id, label and margin."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("train", "validation")}
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True, default=str).encode())
    for rows in (train, validation):
        for example in rows:
            parts = (example.rows, example.prompt_tokens, example.best, example.margin, example.labels)
            digest.update(repr(parts).encode())
        digest.update(b"|")
    return digest.hexdigest()[:32]
