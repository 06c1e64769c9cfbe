"""Batches of about equal numbers of tokens: rows of similar length, many short ones or few long ones."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxalign.data.batches import Batch, Collate, counted_tokens, data_identity, position, shuffled
from jaxalign.data.examples import Example
from jaxalign.data.table import lengths_of, most_rows_of
from jaxalign.errors import ConfigError

MOST_WIDTHS = 8
UNIT = 16


@dataclass(frozen=True)
class BatchShape:
    """One of a few batch shapes.

    Attributes:
      width: columns of tokens T.
      size: examples of a batch.
      batches: how many batches of an epoch have it.
      counted: mean and standard deviation of the unmasked tokens of its examples.
    """

    width: int
    size: int
    batches: int
    counted: tuple[float, float]


class TokenBatches:
    """Endless batches of few shapes; the order is a function of (seed, epoch) alone. Each epoch has every example
    once.

    An epoch is shuffled, then every example goes to the narrowest width that holds it, and batches are drawn in any
    order. What is left of a width is padded to the next one; in the last, fillers with `valid` False make it whole.
    The first epoch begins with a batch of each width, the widest first: so programs are compiled, and memory
    runs out, in the first steps.

    Args:
      examples: training examples, at least one.
      tokens: columns of a batch at most, padding included: examples x rows of an example x copies x T.
      multiple: what the number of examples of every batch is a multiple of.
      least: examples of a batch at least, fillers not counted (where there are as many).
      copies: how often a batch holds each row: 2 where the collate function adds one of its own for each.
      seed: of the order.
      collate: examples, their numbers and `width` -> batch.

    Raises:
      ConfigError: the fewest examples that a batch may have do not fit `tokens`, where they are the longest.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        tokens: int,
        multiple: int,
        seed: int,
        collate: Collate,
        least: int = 1,
        copies: int = 1,
    ) -> None:
        if not examples:
            raise ValueError("expected at least one example")
        self._examples, self._seed, self._collate = examples, seed, collate
        self._lengths = lengths_of(examples)
        self.shapes = batch_shapes(
            self._lengths,
            counted_tokens(examples),
            tokens=tokens,
            rows=copies * most_rows_of(examples),
            multiple=multiple,
            least=least,
        )
        self._drawn = 0
        self._epoch, self._plan = -1, []

    @property
    def per_epoch(self) -> int:
        """Batches per epoch, the same in each."""
        return sum(shape.batches for shape in self.shapes)

    def next(self) -> Batch:
        """The next batch."""
        epoch, index = divmod(self._drawn, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._batches_of(epoch)
        shape, numbers = self._plan[index][0], self._plan[index][1].tolist()
        self._drawn += 1
        missing = shape.size - len(numbers)
        filled = [*numbers, *numbers[:1] * missing]
        batch = self._collate([self._examples[n] for n in filled], filled, width=shape.width)
        batch["valid"] = np.arange(shape.size) < len(numbers)
        batch["loss_token_moments"] = shape.counted
        batch["filler_tokens"] = missing * sum(map(len, self._examples[numbers[0]].rows))
        return batch

    def state(self) -> dict[str, object]:
        """The position after the last batch returned."""
        return {"drawn": self._drawn, **self._identity()}

    def restore(self, state: Mapping[str, object]) -> None:
        """Restores a saved position.

        Raises:
          DataError: the position was saved on other data, with another seed or in batches of other shapes.
        """
        self._drawn = position(state, self._identity())

    def _identity(self) -> dict[str, object]:
        shapes = [[shape.width, shape.size, shape.batches] for shape in self.shapes]
        return {
            "rows": len(self._examples),
            "seed": self._seed,
            "shapes": shapes,
            **data_identity(self._examples),
        }

    def _batches_of(self, epoch: int) -> list[tuple[BatchShape, np.ndarray]]:
        """The batches of an epoch in order: their shapes, and the numbers of their examples."""
        random = np.random.default_rng((self._seed, epoch))
        order = shuffled(len(self._examples), random)
        lengths = self._lengths[order]
        batches, begun, left, narrower = [], [], order[:0], 0
        for shape in self.shapes:
            here = np.concatenate([left, order[(lengths > narrower) & (lengths <= shape.width)]])
            narrower = shape.width
            whole = min(len(here), shape.batches * shape.size)
            parts = np.array_split(here[:whole], shape.batches)
            shaped = [(shape, part) for part in parts]
            left = here[whole:]
            if epoch == 0:
                begun.insert(0, shaped.pop(0))
            batches += shaped
        return [*begun, *(batches[i] for i in random.permutation(len(batches)))]


def batch_shapes(
    lengths: np.ndarray,
    counted: np.ndarray,
    *,
    tokens: int,
    rows: int,
    multiple: int,
    least: int = 1,
    most: int = MOST_WIDTHS,
) -> list[BatchShape]:
    """The shapes of an epoch's batches, narrowest first: from the data alone, so the number of steps is known.

    Args:
      lengths: of each example's longest row.
      counted: tokens of each example that count.
      tokens: columns of a batch at most.
      rows: rows of an example.
      multiple: what sizes are multiples of.
      least: examples of a batch at least, fillers not counted.
      most: widths at most.

    Raises:
      ConfigError: the fewest examples that a batch may have do not fit `tokens`, where they are the longest.
    """
    shapes, left, narrower = [], 0, 0
    widths = bucket_widths(lengths, most)
    # Batches of 2 * least - 1 or more take any number of examples without one of fewer than `least`.
    smallest = -(-(2 * least - 1) // multiple) * multiple * rows
    if tokens < smallest * widths[-1]:
        raise ConfigError(
            f"train.batch_tokens must be at least {smallest * widths[-1]}, for {smallest} rows of {widths[-1]} "
            f"tokens, got {tokens}; lower data.max_length to cut the longest rows"
        )
    for width in widths:
        size = tokens // (rows * width) // multiple * multiple
        here = counted[(lengths > narrower) & (lengths <= width)]
        left += len(here)
        narrower = width
        batches = left // size
        if width == widths[-1]:
            if left < least and shapes:
                # Too few for a batch of their own: with those of a batch of the width before.
                before = shapes.pop()
                left += before.size
                if before.batches > 1:
                    shapes.append(replace(before, batches=before.batches - 1))
            batches = -(-left // size)
            # Evenly, so that no step is left with a few rows and many fillers.
            size = -(-left // (batches * multiple)) * multiple
        if batches:
            shapes.append(BatchShape(width, size, batches, (float(here.mean()), float(here.std()))))
            left -= batches * size
    return shapes


def bucket_widths(lengths: np.ndarray, most: int) -> list[int]:
    """At most `most` widths, multiples of 16, that hold all lengths with little padding (1 or 2% above the least).

    One after another the width goes whose rows are made wider at the smallest cost.
    """
    counts = np.bincount(-(-lengths // UNIT))
    buckets = [(int(n) * UNIT, int(counts[n])) for n in np.flatnonzero(counts)]
    while len(buckets) > most:
        costs = [(wider - width) * count for (width, count), (wider, _) in itertools.pairwise(buckets)]
        index = int(np.argmin(costs))
        (_, count), (wider, more) = buckets[index : index + 2]
        buckets[index : index + 2] = [(wider, count + more)]
    return [width for width, _ in buckets]
