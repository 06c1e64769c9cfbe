"""Packed rows: the rows of a batch laid end to end in fewer, fuller rows, to avoid computing on padding.

Packing adds a layout to a batch and removes nothing: an integer for each column of a packed row is the index of the
batch's token there. The rows of tokens, and everything that refers to them, do not change.

    tokens   a a a a a .     packed   0  1  2  3  4  8      rows 0 and 1 share a row;
             b b . . . .              6  7  8  ...          a padding column holds rows * columns

Packed or not, a batch may say which hidden states predict tokens that contribute, so that the vocabulary head is
applied to no others.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange

from jaxalign.buckets import bucket

PREFIXES = ("", "kl_")
# Rows that share a packed row, at most: attention on GPUs keeps statistics of float32 for each of so many places.
MAX_SEGMENTS = 32
# What a vocabulary head may be applied to, as parts of all columns: so batches share programs.
HEAD_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)


def best_fit_decreasing(
    lengths: Sequence[int] | np.ndarray, width: int, most: int = MAX_SEGMENTS
) -> list[list[int]]:
    """Rows of `width` tokens that together hold every length once.

    The longest come first, each goes to the fullest row that has room; where no row is full by number, at most
    11/9 of the fewest possible rows and four more are needed (D. S. Johnson, "Near-optimal bin packing algorithms",
    1973).

    Args:
      lengths: tokens, none above `width`; those of 0 tokens go nowhere.
      width: tokens per row.
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
    batch: Mapping[str, Any],
    *,
    num_microbatches: int = 1,
    shards: int = 1,
    length_shards: int = 1,
    loss_positions: bool = True,
    least: int = 0,
) -> dict[str, Any]:
    """The batch with the layout of its rows, packed into rows as wide as it is.

    A batch of B examples is `num_microbatches`, M, micro-batches of every M-th example (see
    `training.core.step.split_rows`); each is packed by itself, and indices are counted within it. Shapes come from
    few buckets, so that batches of many lengths share few programs.

    Args:
      batch: tokens, mask [B, ..., T], lengths [B, ...] and perhaps valid [B] (rows of other examples are left
        out); the same with the prefix kl_ where there are such rows.
      num_microbatches: micro-batches.
      shards: devices that rows are split over; each gets as many packed rows.
      length_shards: devices that the columns of a row are split over; each gets as many places of `loss_positions`.
      loss_positions: whether the vocabulary head is to be applied, to the unmasked tokens alone.
      least: packed rows R of a micro-batch at least.

    Returns:
      The batch and, for each prefix, `packed` int32 [M * R, T]: row * T + column of the token in each
      column, rows * T in padding, in which `rows` are those of a micro-batch. With `loss_positions` also
      `loss_positions` int32 [M * shards, C]: for each shard's packed rows, flattened, the columns whose hidden
      state predicts an unmasked token; -1 fills. Where `length_shards` is above 1 and the width divides by it,
      [M * shards, length_shards, C]: likewise for each part of the columns of those rows.

    Raises:
      ValueError: B does not divide by `num_microbatches`.
    """
    result = dict(batch)
    for prefix in _prefixes(batch):
        micro = _micro_batches(batch, prefix, num_microbatches)
        bins = [best_fit_decreasing(lengths, mask.shape[1]) for lengths, mask in micro]
        # Full rows gain nothing, and must not become more of them by rounding up.
        needed = max(min(bucket(max(map(len, bins)), per_octave=4), len(micro[0][0])), least, 1)
        height = -(-needed // shards) * shards
        places = [
            end_to_end(lengths, part_bins, mask.shape[1], height, shards)
            for (lengths, mask), part_bins in zip(micro, bins, strict=True)
        ]
        # Row r of micro-batch m at r * M + m: what `split_rows` undoes.
        result[prefix + "packed"] = np.stack(places, axis=1).reshape(-1, places[0].shape[1])
        if loss_positions:
            masks = [mask for _, mask in micro]
            result[prefix + "loss_positions"] = _loss_positions(places, masks, shards, length_shards)
    return result


def packed_alike(
    batches: Sequence[Mapping[str, Any]],
    *,
    num_microbatches: int = 1,
    shards: int = 1,
    length_shards: int = 1,
    loss_positions: bool = True,
) -> list[dict[str, Any]]:
    """Batches of one shape, each `packed` for itself, so that one program takes them all.

    They have as many packed rows as the largest, and with `loss_positions` as many of those. Rows with the prefix
    kl_ are not looked at.
    """
    options: dict[str, Any] = {
        "num_microbatches": num_microbatches,
        "shards": shards,
        "length_shards": length_shards,
        "loss_positions": loss_positions,
    }
    alike = [packed(batch, **options) for batch in batches]
    rows = max(len(batch["packed"]) for batch in alike)
    alike = [
        batch if len(batch["packed"]) == rows else packed(batch, **options, least=rows // num_microbatches)
        for batch in alike
    ]
    if not loss_positions:
        return alike
    positions = max(batch["loss_positions"].shape[-1] for batch in alike)
    return [batch | {"loss_positions": _wider(batch["loss_positions"], positions)} for batch in alike]


def _wider(positions: np.ndarray, room: int) -> np.ndarray:
    beside = [(0, 0)] * (positions.ndim - 1)
    return np.pad(positions, [*beside, (0, room - positions.shape[-1])], constant_values=-1)


def with_loss_positions(
    batch: Mapping[str, Any], *, num_microbatches: int = 1, shards: int = 1, length_shards: int = 1
) -> dict[str, Any]:
    """The batch, its rows as they are, with the places to which the vocabulary head is to be applied.

    Args:
      batch, num_microbatches, shards, length_shards: as for `packed`; `loss_token_moments`, where the batch has it,
        are the mean and the standard deviation of the unmasked tokens of an example, by which nearly all batches of a
        width get one C.

    Returns:
      The batch and, for each prefix, `loss_positions` int32 [M * S, C]: for each of the S equal parts of a
      micro-batch's rows, flattened, the columns whose hidden state predicts an unmasked token; -1 fills. S is
      `shards` where the rows of a micro-batch divide by it, else 1; with `length_shards` as for `packed`. Where
      nearly all columns are such places there are no `loss_positions`, and the head is to be applied to all.

    Raises:
      ValueError: B does not divide by `num_microbatches`.
    """
    result = dict(batch)
    for prefix in _prefixes(batch):
        masks = [
            np.where(lengths[:, None] > 0, mask, False)
            for lengths, mask in _micro_batches(batch, prefix, num_microbatches)
        ]
        examples = batch[prefix + "tokens"].shape[0] // num_microbatches
        places = np.arange(masks[0].size, dtype=np.int32).reshape(masks[0].shape)
        shares = shards if examples % shards == 0 else 1
        mean, deviation = batch.get("loss_token_moments", (0.0, 0.0))
        least = (examples // shares) * mean + 3 * math.sqrt(examples // shares) * deviation
        positions = _loss_positions(
            [places] * num_microbatches, masks, shares, length_shards, math.ceil(least)
        )
        if positions.size < num_microbatches * places.size:
            result[prefix + "loss_positions"] = positions
    return result


def with_loss_positions_alike(
    batches: Sequence[Mapping[str, Any]],
    *,
    num_microbatches: int = 1,
    shards: int = 1,
    length_shards: int = 1,
) -> list[dict[str, Any]]:
    """Batches of one shape, each `with_loss_positions`, as many of them in all; none where one of them has none."""
    positioned = [
        with_loss_positions(
            batch, num_microbatches=num_microbatches, shards=shards, length_shards=length_shards
        )
        for batch in batches
    ]
    if not all("loss_positions" in batch for batch in positioned):
        return [
            {name: value for name, value in batch.items() if name != "loss_positions"} for batch in positioned
        ]
    positions = max(batch["loss_positions"].shape[-1] for batch in positioned)
    return [batch | {"loss_positions": _wider(batch["loss_positions"], positions)} for batch in positioned]


def _prefixes(batch: Mapping[str, Any]) -> list[str]:
    return [prefix for prefix in PREFIXES if prefix + "tokens" in batch]


def _micro_batches(
    batch: Mapping[str, Any], prefix: str, num_microbatches: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(lengths [rows], 0 where the example is not valid; mask [rows, T]) of each micro-batch."""
    mask = np.asarray(batch[prefix + "mask"])
    examples, width = mask.shape[0], mask.shape[-1]
    if examples % num_microbatches:
        raise ValueError(f"{examples} rows are not divisible by {num_microbatches} accumulation steps")
    valid = np.asarray(batch.get("valid", np.ones(examples, bool)))
    mask = mask.reshape(examples, -1, width)
    lengths = np.where(valid[:, None], np.asarray(batch[prefix + "lengths"]).reshape(examples, -1), 0)
    return [
        (lengths[part::num_microbatches].ravel(), mask[part::num_microbatches].reshape(-1, width))
        for part in range(num_microbatches)
    ]


def end_to_end(
    lengths: Sequence[int] | np.ndarray,
    bins: Sequence[Sequence[int]],
    width: int,
    height: int,
    shards: int = 1,
) -> np.ndarray:
    """Lays rows out as `best_fit_decreasing` says.

    Args:
      lengths: tokens of each of N rows.
      bins: for each packed row the indices of what it holds.
      width: columns T of a row, packed or not.
      height: packed rows R, as many as there are bins at least.
      shards: parts of the packed rows that get as many bins each.

    Returns:
      int32 [R, T]: row * T + column of the token in each column of the packed rows; N * T in padding.
    """
    places = np.full((height, width), len(lengths) * width, np.int32)
    for number, members in enumerate(bins):
        # Dealt out, so that every shard has its share of full rows.
        row = number % shards * (height // shards) + number // shards
        column = 0
        for index in members:
            length = int(lengths[index])
            places[row, column : column + length] = index * width + np.arange(length)
            column += length
    return places


def segments(places: Any, size: int, width: int) -> dict[str, Any]:
    """The arguments that tell a model of rows that share a packed row.

    Args:
      places: int32 [R, T], of `end_to_end`; on the host or the device.
      size: N * T, as `places` has it in padding.
      width: T.

    Returns:
      positions and segment_ids, int32 [R, T]: a row is a segment, and no other has its number; both 0 in padding.
    """
    # A multiple of the width stands in padding: column 0.
    return {"positions": places % width, "segment_ids": (places < size) * (places // width + 1)}


def _loss_positions(
    places: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    shards: int,
    length_shards: int = 1,
    least: int = 0,
) -> np.ndarray:
    """[M * shards, C] or [M * shards, L, C]: in each shard of each micro-batch's rows, the columns before an unmasked
    token; L is `length_shards` where the width divides by it, else the axis is not there."""
    columns = []
    parts = length_shards if places[0].shape[1] % length_shards == 0 else 1
    for where, mask in zip(places, masks, strict=True):
        # Column 0 of a row never counts, so the token before a counted one is in the same row.
        before = np.append(np.pad(mask[:, 1:], ((0, 0), (0, 1))).ravel(), False)
        split = rearrange(where, "(s r) (l c) -> (s l) (r c)", s=shards, l=parts)
        columns.append([np.flatnonzero(before[part]) for part in split])
    size = places[0].size // (shards * parts)
    most = max(max(len(part_columns) for part in columns for part_columns in part), min(least, size))
    room = next(room for room in (math.ceil(size * share) for share in HEAD_SHARES) if room >= most)
    positions = np.full((shards * parts, len(columns), room), -1, np.int32)
    for part, of_part in enumerate(columns):
        for shard, part_columns in enumerate(of_part):
            positions[shard, part, : len(part_columns)] = part_columns
    if parts == 1:
        return positions.reshape(-1, room)
    return rearrange(positions, "(s l) m c -> (s m) l c", l=parts)
