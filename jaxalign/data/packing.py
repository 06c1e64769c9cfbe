"""Packed rows: the rows of a batch laid end to end in fewer, fuller rows, so that little is computed on padding.

Packing adds a layout to a batch and takes nothing away: an integer for each column of a packed row says
which token of the batch lies there. Rows of tokens stay where they are, and so do all that refer to them.

    tokens   a a a a a .     packed   0  1  2  3  4  8      rows 0 and 1 share a row;
             b b . . . .              6  7  8  ...          a padding column holds rows * columns
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PREFIXES = ("", "kl_")
# Rows that share a packed row, at most: attention on GPUs keeps statistics of float32 for each of so many places.
MAX_SEGMENTS = 32


def best_fit_decreasing(
    lengths: Sequence[int] | np.ndarray, width: int, most: int = MAX_SEGMENTS
) -> list[list[int]]:
    """Rows of `width` tokens that together hold every length once.

    The longest come first, each goes to the fullest row that has room; where no row is full by number, at most
    11/9 of the fewest possible rows and four more are needed (D. S. Johnson, "Near-optimal bin packing algorithms",
    1973).

    Args:
      lengths: tokens, none above `width`; those of 0 tokens go nowhere.
      width: tokens a row.
      most: lengths in a row, at most.

    Returns:
      For each row the indices of what it holds.

    Raises:
      ValueError: a length above the width.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = int(lengths[index])
        if not length:
            break
        if length > width:
            raise ValueError(f"a length of {length} tokens does not fit rows of {width}")
        place = bisect.bisect_left(rooms, (length, -1))
        if place == len(rooms):
            rows.append([])
            room, row = width, len(rows) - 1
        else:
            room, row = rooms.pop(place)
        rows[row].append(index)
        if len(rows[row]) < most:
            bisect.insort(rooms, (room - length, row))
    return rows


def packed(
    batch: Mapping[str, Any], *, parts: int = 1, shards: int = 1, counted: bool = True
) -> dict[str, Any]:
    """The batch with the layout of its rows, packed into rows as wide as it is.

    A batch of B examples is one of `parts` micro-batches of every parts-th example (see
    `training.step.split_rows`); each is packed by itself, and places are counted within it. Shapes come from
    short ladders, so that batches of many lengths share few programs.

    Args:
      batch: tokens, mask [B, ..., T], lengths [B, ...] and perhaps valid [B] (rows of other examples are left
        out); the same with the prefix kl_ where there are such rows.
      parts: micro-batches.
      shards: devices that rows are split over; each gets as many packed rows.
      counted: whether the vocabulary head is to be applied, to the counted tokens alone.

    Returns:
      The batch and, for each prefix, `packed` int32 [parts * R, T]: row * T + column of the token in each
      column, rows * T in padding, in which `rows` are those of a micro-batch. With `counted` also
      `counted` int32 [parts * shards, C]: for each shard's packed rows, flattened, the columns whose hidden
      state predicts a counted token; -1 fills.

    Raises:
      ValueError: B does not divide by `parts`.
    """
    result = dict(batch)
    for prefix in PREFIXES:
        if prefix + "tokens" in batch:
            places, heads = _layout(batch, prefix, parts, shards)
            result[prefix + "packed"] = places
            if counted:
                result[prefix + "counted"] = heads
    return result


def _layout(batch: Mapping[str, Any], prefix: str, parts: int, shards: int) -> tuple[np.ndarray, np.ndarray]:
    mask = np.asarray(batch[prefix + "mask"])
    examples, width = mask.shape[0], mask.shape[-1]
    if examples % parts:
        raise ValueError(f"{examples} rows do not divide by {parts} accumulation steps")
    valid = np.asarray(batch.get("valid", np.ones(examples, bool)))
    mask = mask.reshape(examples, -1, width)
    lengths = np.where(valid[:, None], np.asarray(batch[prefix + "lengths"]).reshape(examples, -1), 0)
    micro = [(lengths[part::parts].ravel(), mask[part::parts].reshape(-1, width)) for part in range(parts)]
    bins = [best_fit_decreasing(found, width) for found, _ in micro]
    rows = len(micro[0][0])
    # Full rows gain nothing, and must not become more of them by the ladder.
    needed = min(rung(max(map(len, bins)), steps=4), rows)
    height = -(-max(needed, 1) // shards) * shards
    layouts = [
        _micro_layout(found, part_bins, part_mask, height, shards)
        for (found, part_mask), part_bins in zip(micro, bins, strict=True)
    ]
    most = max((len(columns) for _, shard in layouts for columns in shard), default=0)
    size = height // shards * width
    heads = np.full((parts, shards, min(rung(max(most, 1), steps=2), size)), -1, np.int32)
    for part, (_, shard) in enumerate(layouts):
        for index, columns in enumerate(shard):
            heads[part, index, : len(columns)] = columns
    # Row r of part p at r * parts + p: what `split_rows` undoes.
    places = np.stack([places for places, _ in layouts], axis=1).reshape(-1, width)
    return places, heads.swapaxes(0, 1).reshape(parts * shards, -1)


def _micro_layout(
    lengths: np.ndarray, bins: list[list[int]], mask: np.ndarray, height: int, shards: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(places [height, T], columns of each shard before a counted token) of one micro-batch."""
    width = mask.shape[1]
    places = np.full((height, width), len(lengths) * width, np.int32)
    for number, members in enumerate(bins):
        # Dealt out, so that every shard has its share of full rows.
        row = number % shards * (height // shards) + number // shards
        column = 0
        for index in members:
            length = int(lengths[index])
            places[row, column : column + length] = index * width + np.arange(length)
            column += length
    # Column 0 of a row never counts, so the token before a counted one is in the same row.
    before = np.append(np.pad(mask[:, 1:], ((0, 0), (0, 1))).ravel(), False)
    return places, [np.flatnonzero(before[part]) for part in places.reshape(shards, -1)]


def rung(number: int, *, steps: int) -> int:
    """The smallest rung not below `number` of a ladder: all numbers up to 2 * `steps`, then `steps` an octave."""
    size = 1
    while size * 2 * steps < number:
        size *= 2
    return -(-number // size) * size
