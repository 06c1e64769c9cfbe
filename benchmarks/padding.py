"""Counts what batches of real rows cost: columns and heads computed for each token that is needed, and programs.

usage: python benchmarks/padding.py FILE TOKENIZER [ROWS], for example demonstrations or pairs and GPT-2's tokenizer;
batches of ROWS examples (32), or of as many tokens as these have on average when padded. No model runs.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxalign import models
from jaxalign.data import (
    BatchIterator,
    DataConfig,
    TokenBatches,
    collate_comparisons,
    collate_demonstrations,
    load_dataset,
    packed,
    with_loss_positions,
)
from jaxalign.errors import UserError
from jaxalign.training.core.batch import pair_axis
from jaxalign.training.core.loading import collate_of

LONGEST, HEADER = (
    1024,
    ("batches", "steps", "columns / token", "heads / counted", "columns a step", "programs"),
)


def collate_pairs(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Comparisons as a step has them."""
    return pair_axis(collate_comparisons(*arguments, **options))


def epoch(batches: Any) -> Iterator[Mapping[str, Any]]:
    """The batches of about one epoch."""
    return (batches.next() for _ in range(max(1, round(batches.per_epoch))))


def cost(name: str, found: Iterator[Mapping[str, Any]]) -> tuple[str, ...]:
    """A line of the table."""
    tokens = counted = 0
    columns, heads, shapes = [], [], set()
    for batch in found:
        valid = batch["valid"]
        tokens += int(batch["lengths"][valid].sum())
        counted += int(batch["mask"][valid].sum())
        columns.append(batch.get("packed", batch["tokens"]).size)
        heads.append(batch["loss_positions"].size if "loss_positions" in batch else columns[-1])
        shapes.add((batch["tokens"].shape, columns[-1], heads[-1]))
    spread = f"{np.mean(columns):,.0f} ({min(columns):,} to {max(columns):,})"
    ratios = (f"{sum(columns) / tokens:.2f}", f"{sum(heads) / counted:.2f}")
    return (name, str(len(columns)), *ratios, spread, str(len(shapes)))


def main() -> int:
    """Prints the table of a file."""
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    file, tokenizer, size = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 32
    config = DataConfig(train=(file,), max_length=LONGEST, template="markers", validation_fraction=0.0)
    found = models.load_tokenizer(tokenizer)
    try:
        data, collate = load_dataset(config, "comparison", found, seed=0), collate_pairs
    except UserError:
        data, collate = load_dataset(config, "demonstration", found, seed=0), collate_demonstrations

    def rows(packing: bool = False) -> Iterator[Mapping[str, Any]]:
        as_trained = collate_of(collate, data.train, packing=packing)
        return epoch(BatchIterator(data.train, batch_size=size, seed=0, collate=as_trained))

    budget = max(
        int(np.mean([batch["tokens"].size for batch in rows()])),
        max(len(row) for e in data.train for row in e.rows) * 2 * len(data.train[0].rows),
    )
    tokens = TokenBatches(data.train, tokens=budget, multiple=1, seed=0, collate=collate)
    lines = [
        HEADER,
        cost(f"{size} examples, padded, every column to the head", rows()),
        cost(f"{size} examples, padded", map(with_loss_positions, rows())),
        cost(f"batch_tokens={budget}", map(with_loss_positions, epoch(tokens))),
        cost(f"{size} examples, packed", map(packed, rows(packing=True))),
    ]
    print(f"{len(data.train)} examples")
    for line in lines:
        print("| " + " | ".join(line) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
