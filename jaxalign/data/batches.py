"""Batches in a seeded order, with a position that can be saved, in few shapes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.buckets import width_bucket
from jaxalign.data.examples import Example
from jaxalign.data.records import Turns
from jaxalign.data.table import counted_of, row_lengths_of
from jaxalign.errors import DataError

# Rows have as many columns, at least.
LEAST_WIDTH = 16
Batch = dict[str, Any]
Collate = Callable[..., Batch]


class BatchIterator:
    """Endless batches, in a new order each epoch that depends only on (seed, epoch).

    Args:
      examples: training examples, at least one; in memory, or on the disk (`data.table.Examples`).
      batch_size: examples per batch; a batch can span two epochs.
      seed: of the order.
      collate: examples and their numbers -> batch.
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int, collate: Collate) -> None:
        if not examples:
            raise ValueError("expected at least one example")
        if hasattr(examples, "windows"):
            raise TypeError("expected examples, got a stream; use `StreamBatches`")
        self._examples, self._size, self._seed, self._collate = examples, batch_size, seed, collate
        self._drawn = 0
        self._epoch, self._order = -1, np.zeros(0, np.int32)

    @property
    def per_epoch(self) -> float:
        """Batches per epoch."""
        return len(self._examples) / self._size

    def next(self) -> Batch:
        """The next batch."""
        rows = [self._row(self._drawn + i) for i in range(self._size)]
        self._drawn += self._size
        return self._collate([self._examples[r] for r in rows], rows)

    def state(self) -> dict[str, Any]:
        """The position after the last batch returned."""
        return {"drawn": self._drawn, **self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a saved position.

        Raises:
          DataError: the position was saved on other data or with another seed.
        """
        self._drawn = position(state, self._identity())

    def _identity(self) -> dict[str, Any]:
        return {"rows": len(self._examples), "seed": self._seed} | data_identity(self._examples)

    def _row(self, number: int) -> int:
        epoch, index = divmod(number, len(self._examples))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = shuffled(len(self._examples), np.random.default_rng((self._seed, epoch)))
        return int(self._order[index])


def shuffled(count: int, random: np.random.Generator) -> np.ndarray:
    """The numbers below `count` in a random order; of four bytes each where they fit."""
    order = random.permutation(count)
    return order.astype(np.int32) if count < 2**31 else order


def data_identity(examples: Sequence[Example]) -> dict[str, str]:
    """What tells examples from others in a saved position, where they say so."""
    fingerprint = getattr(examples, "fingerprint", None)
    return {} if fingerprint is None else {"data": fingerprint}


def position(state: Mapping[str, Any], here: Mapping[str, Any]) -> int:
    """The number drawn of a saved state, which must otherwise be `here`.

    Raises:
      DataError: it is another one's.
    """
    # Earlier versions saved no fingerprint of the data.
    here = {name: value for name, value in here.items() if name != "data" or name in state}
    saved = {name: state.get(name) for name in here}
    if saved != here:
        raise DataError(f"the checkpoint was saved with other data: it has {saved}, this run has {here}")
    return int(state["drawn"])


def eval_batches(
    examples: Sequence[Example], batch_size: int, collate: Collate, *, multiple: int = 1
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is padded with rows whose `valid` is False.

    All are padded to a `multiple` of rows, such as devices that they are to be split over.
    """
    padded = -(-batch_size // multiple) * multiple
    for start in range(0, len(examples), batch_size):
        rows = list(range(start, min(start + batch_size, len(examples))))
        # A row that is left alone has another one beside it, whose completion KTO needs.
        filled = rows + [rows[0] if len(rows) > 1 else 0] * (padded - len(rows))
        batch = collate([examples[r] for r in filled], filled)
        batch["valid"] = np.arange(padded) < len(rows)
        yield batch


# Each collate function takes `width`, the least number of columns T.


def collate_demonstrations(examples: Sequence[Example], numbers: Sequence[int], *, width: int = 0) -> Batch:
    """tokens, mask [B, T]; lengths, row_ids, valid [B].

    And weights, float32 [B, T]: how much each token counts, 1 where the example says nothing; 0 where `mask` is False.
    """
    batch = _rows([e.rows[0] for e in examples], [e.masks[0] for e in examples], width) | _common(numbers)
    batch["weights"] = batch["mask"].astype(np.float32)
    for row, example in enumerate(examples):
        if example.weights:
            batch["weights"][row, : len(example.weights[0])] = example.weights[0]
    return batch


def collate_comparisons(examples: Sequence[Example], numbers: Sequence[int], *, width: int = 0) -> Batch:
    """tokens, mask [2B, T], chosen rows first; lengths [2B]; margin, row_ids, valid [B]."""
    rows = [e.rows[side] for side in (0, 1) for e in examples]
    masks = [e.masks[side] for side in (0, 1) for e in examples]
    margin = np.asarray([e.margin for e in examples], np.float32)
    return _rows(rows, masks, width) | _common(numbers) | {"margin": margin}


def collate_rankings(examples: Sequence[Example], numbers: Sequence[int], *, width: int = 0) -> Batch:
    """tokens, mask [B * K, T], a question's candidates together; lengths [B * K]; best, row_ids, valid [B].

    Raises:
      DataError: questions with different numbers of candidates.
    """
    sizes = {len(e.rows): e.source for e in examples}
    if len(sizes) > 1:
        raise DataError(f"all rankings of a data set need the same number of candidates; found {sizes}")
    rows = [row for e in examples for row in e.rows]
    masks = [mask for e in examples for mask in e.masks]
    best = np.asarray([e.best for e in examples], np.int32)
    return _rows(rows, masks, width) | _common(numbers) | {"best": best}


def collate_labels(
    examples: Sequence[Example], numbers: Sequence[int], *, mismatched: bool = False, width: int = 0
) -> Batch:
    """tokens, mask [B * G, T], lengths [B * G], an example's completions together (G is 1, or 2 of a comparison);
    desirable [B, G]; row_ids, valid [B].

    With `mismatched` also kl_tokens, kl_mask, kl_lengths: each prompt with the completion of the next other example
    (of its own, where the batch has no other).

    Raises:
      DataError: labeled completions and comparisons in one data set.
    """
    sizes = {len(e.rows): e.source for e in examples}
    if len(sizes) > 1:
        raise DataError(f"labeled completions and comparisons cannot be mixed in one data set; found {sizes}")
    rows = [row for e in examples for row in e.rows]
    masks = [mask for e in examples for mask in e.masks]
    batch = (
        _rows(rows, masks, width)
        | _common(numbers)
        | {"desirable": np.asarray([e.labels for e in examples], bool)}
    )
    if mismatched:
        others = [
            _mismatched(e, examples[_next_other(numbers, i)], g)
            for i, e in enumerate(examples)
            for g in range(len(e.rows))
        ]
        other_rows = _rows([row for row, _ in others], [mask for _, mask in others], width)
        batch |= {f"kl_{name}": value for name, value in other_rows.items()}
    return batch


def _next_other(numbers: Sequence[int], index: int) -> int:
    """The next place, from the end on to the beginning, with another number; any where all are one number."""
    places = [(index + step) % len(numbers) for step in range(1, len(numbers) + 1)]
    return next((place for place in places if numbers[place] != numbers[index]), places[0])


def _mismatched(example: Example, other: Example, index: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The prompt of one example with a completion of another, no longer than the longer of the two rows."""
    start, begin = (e.masks[index].index(True) for e in (example, other))
    longest = max(len(example.rows[index]), len(other.rows[index]))
    row = (*example.rows[index][:start], *other.rows[index][begin:])[:longest]
    mask = (*example.masks[index][:start], *other.masks[index][begin:])[:longest]
    return row, mask


def collate_steps(examples: Sequence[Example], numbers: Sequence[int], *, width: int = 0) -> Batch:
    """tokens, mask (True where a step ends), labels (float32, 0 elsewhere) [B, T]; lengths, row_ids, valid [B]."""
    batch = collate_demonstrations(examples, numbers, width=width)
    labels = np.zeros(batch["mask"].shape, np.float32)
    for row, example in enumerate(examples):
        labels[row, batch["mask"][row]] = example.labels
    return batch | {"labels": labels}


def collate_prompts(examples: Sequence[Example], numbers: Sequence[int]) -> Batch:
    """prompts (ids), prompt_texts, columns (lists); messages (a prompt's turns, None of a text); row_ids, valid
    [B]."""
    names = sorted({name for e in examples for name in e.columns})
    return {
        "prompts": [list(e.prompt_tokens) for e in examples],
        "prompt_texts": [e.prompt_text for e in examples],
        "messages": [None if isinstance(e.prompt, str) else _messages(e.prompt) for e in examples],
        "columns": {name: [e.columns.get(name) for e in examples] for name in names},
    } | _common(numbers)


def _messages(turns: Turns) -> list[dict[str, Any]]:
    """Turns as chat templates take them, without the one that lists tools."""
    return [{"role": t.role, "content": t.content, **t.extra} for t in turns if t.role != "tools"]


def _common(numbers: Sequence[int]) -> Batch:
    return {"row_ids": np.asarray(numbers, np.int32), "valid": np.ones(len(numbers), bool)}


def usual_width(examples: Sequence[Example]) -> int:
    """Columns that hold 99 of 100 rows of the examples: a bucket."""
    return _width(int(np.percentile(row_lengths_of(examples), 99, method="higher")))


def counted_tokens(examples: Sequence[Example]) -> np.ndarray:
    """[N]: tokens that contribute in all rows of each example."""
    return counted_of(examples)


def _width(longest: int) -> int:
    return width_bucket(longest, least=LEAST_WIDTH)


def _rows(rows: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], width: int) -> Batch:
    longest = max(len(row) for row in rows)
    width = width if width >= longest else _width(longest)
    tokens = np.zeros((len(rows), width), np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, (row, counted) in enumerate(zip(rows, masks, strict=True)):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = counted
    return {"tokens": tokens, "mask": mask, "lengths": np.asarray([len(r) for r in rows], np.int32)}
