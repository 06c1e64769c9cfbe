"""Loads the data of a run, and checks that it is the same on resume."""

import datetime
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxalign.data import (
    BatchIterator,
    DataConfig,
    Dataset,
    Example,
    TokenBatches,
    chat_of,
    counted_tokens,
    load_dataset,
    usual_width,
)
from jaxalign.data.batches import Collate
from jaxalign.data.config import Kind
from jaxalign.data.stream import Stream, StreamBatches
from jaxalign.data.table import lengths_of
from jaxalign.errors import ConfigError, DataError
from jaxalign.mesh import row_shards
from jaxalign.processes import agreed, largest
from jaxalign.runs import Run
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.opening import tell_rows


def dated(run: Run, config: DataConfig) -> DataConfig:
    """The section `data` with the day that templates print: the one named, else that on which the run began."""
    date = config.date or run.metadata().get("date") or agreed(datetime.date.today().isoformat())
    run.add_metadata(date=date)
    return replace(config, date=date)


def load_data(
    run: Run,
    config: DataConfig,
    kind: Kind,
    tokenizer: Any,
    model_config: Any,
    *,
    seed: int,
    new_tokens: int = 0,
) -> Dataset:
    """Loads the examples of a run, records them in its metadata and prints warnings; all rows must fit the model.

    Args:
      run: the open run.
      config: the section `data`.
      kind: what the rows train.
      tokenizer: of the model.
      model_config: the model's shape.
      seed: see `load_dataset`.
      new_tokens: tokens to reserve after each prompt.

    Raises:
      UserError: an invalid file or row; rows that differ between processes; on resume, a file that has changed since
        the run started.
    """
    room = model_config.max_positions - new_tokens
    config = dated(run, config).within(room if room > 1 else model_config.max_positions)
    data = load_dataset(
        config,
        kind,
        tokenizer,
        seed=seed,
        say=run.info,
        train_dataset=run.given.train_dataset,
        eval_dataset=run.given.eval_dataset,
    )
    check_same_everywhere(data)
    check_context(model_config, data, new_tokens=new_tokens)
    if isinstance(data.train, Stream):
        data.train.fits = partial(check_fits, model_config, new_tokens=new_tokens)
        run.warn("data.streaming: duplicate rows are kept, and only data.window rows at a time are shuffled")
    if run.resumed:
        check_unchanged(run, data)
    run.add_metadata(data=data.summary())
    tell_rows(run, config, data, model_config)
    tell(run, data)
    taught = kind in ("demonstration", "comparison", "label") and config.end_token != "none"
    if taught and not chat_of(config, tokenizer).stop_ids:
        run.warn(
            "data: the chat template has no end token, so the model does not learn to stop; set data.end_token"
        )
    return data


def check_same_everywhere(data: Dataset) -> None:
    """Checks that all processes have the same rows in the same order; each must call it.

    Raises:
      DataError: one of them has others.
    """
    if largest(int(agreed(data.fingerprint) != data.fingerprint)):
        raise DataError(
            "data.train: the processes read different rows; every process needs the same files, rows and tokenizer"
        )


def check_context(config: Any, data: Dataset, *, new_tokens: int = 0) -> None:
    """Checks that every row (with `new_tokens` after each prompt) fits the model's context.

    Raises:
      ConfigError: naming the place of the first row that is too long, and the setting that would cut it.
    """
    for examples in (data.train, data.validation):
        over = np.flatnonzero(lengths_of(examples) + new_tokens > config.max_positions)
        if len(over):
            check_fits(config, examples[int(over[0])], new_tokens=new_tokens)


def check_fits(config: Any, example: Example, *, new_tokens: int = 0) -> None:
    """As `check_context`, of one example."""
    longest = int(lengths_of([example])[0]) + new_tokens
    if longest > config.max_positions:
        more = f" with sampling.max_new_tokens = {new_tokens}" if new_tokens else ""
        name = "max_prompt_length" if new_tokens else "max_length"
        stretched = config.folder_positions > config.max_positions
        longer = f", or model.context to {longest} or more" if stretched else ""
        raise ConfigError(
            f"{example.source}: the row has {longest} tokens{more}, but the model's context is "
            f"{config.max_positions}; set data.{name} to {config.max_positions - new_tokens} or less "
            f"(data.truncation sets how longer rows are handled){longer}"
        )


def check_unchanged(run: Run, data: Dataset) -> None:
    """Checks that every file has the same rows as when the run started.

    Raises:
      ConfigError: naming the first that does not.
    """
    # A run of an earlier version has no hashes of its files.
    began = run.metadata().get("data", {}).get("files", {})
    changed = [path for path, found in data.files.items() if path in began and began[path] != found]
    if changed:
        more = f" (also {', '.join(changed[1:4])})" if len(changed) > 1 else ""
        raise ConfigError(
            f"--resume: {changed[0]} or the tokenizer has changed since the run started{more}; a resumed run must "
            "read the same rows"
        )


def tell(run: Run, data: Dataset) -> None:
    """Warns about columns that training does not use, and about what affects the results."""
    counts = data.counts
    if counts.unread:
        columns = ", ".join(f"{name} ({rows} rows)" for name, rows in counts.unread.most_common())
        run.warn(f"data: unused columns: {columns}")
    for note, number in counts.notes.most_common():
        run.warn(f"data: {note} ({number})")
    if data.shared_prompts:
        run.warn(
            f"data: {data.shared_prompts} training rows share a prompt with data.validation, so evaluation partly "
            "measures memorization"
        )


def row_batches(
    examples: Sequence[Example], *, batch_size: int, seed: int, collate: Collate
) -> BatchIterator | StreamBatches:
    """Batches of batch_size rows, of examples or of a stream."""
    if isinstance(examples, Stream):
        return StreamBatches(examples, batch_size=batch_size, seed=seed, collate=collate)
    return BatchIterator(examples, batch_size=batch_size, seed=seed, collate=collate)


def refuse_stream(data: Dataset, asked_by: str) -> None:
    """Rejects a stream where all rows are needed in advance.

    Raises:
      ConfigError: naming the setting.
    """
    if isinstance(data.train, Stream):
        raise ConfigError(f"{asked_by} needs all rows in advance; set data.streaming=false")


def training_batches(
    config: TrainConfig,
    examples: Sequence[Example],
    *,
    seed: int,
    collate: Collate,
    mesh: Mesh,
    least: int = 1,
    copies: int = 1,
) -> BatchIterator | TokenBatches | StreamBatches:
    """The batches that an optimizer step takes, by rows or by tokens.

    Args:
      config: their size.
      examples: training examples.
      seed: of the order.
      collate: examples and their numbers -> batch.
      mesh: the devices that a batch is split over.
      least, copies: of batches by tokens, see `TokenBatches`.

    Raises:
      ConfigError: a budget of tokens that does not hold the longest examples, or that is set for a stream, whose
        lengths are not known; a stream without an end.
    """
    if isinstance(examples, Stream):
        if config.batch_tokens:
            raise ConfigError(
                "train.batch_tokens: the lengths of a stream's rows are not known before they are read; set it to 0 "
                "(train.packing=true also reduces padding), or data.streaming=false"
            )
        if not config.steps:
            raise ConfigError(
                "train.steps: data.streaming=true needs it, as a stream's rows are not known before they are read"
            )
    if not config.batch_tokens:
        return row_batches(examples, batch_size=config.batch_size, seed=seed, collate=collate)
    multiple = config.accumulation_steps * row_shards(mesh)
    return TokenBatches(
        examples,
        tokens=config.batch_tokens,
        multiple=multiple,
        seed=seed,
        collate=collate,
        least=least,
        copies=copies,
    )


def collate_of(collate: Collate, examples: Sequence[Example], *, packing: bool) -> Collate:
    """`collate` with what makes batches of the examples share programs.

    Packed rows get one width for nearly all batches, as more columns cost nothing there; padded ones the moments by
    which `with_loss_positions` finds one number of heads for each width.
    """
    if packing:
        return partial(collate, width=usual_width(examples))
    counted = counted_tokens(examples)
    moments = (float(counted.mean()), float(counted.std()))
    return lambda rows, numbers, **options: (
        collate(rows, numbers, **options) | {"loss_token_moments": moments}
    )
