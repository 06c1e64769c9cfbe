"""Tokenized examples in columns: what an Arrow record batch of them holds, and how it is read back one by one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from jaxalign.data.examples import Example
from jaxalign.data.records import Message, Prompt

SCHEMA = pa.schema(
    {
        "row": pa.int64(),  # number of the row in its file
        "place": pa.string(),  # what stands in `source` behind the file and a colon
        "ids": pa.list_(pa.int32()),  # of all rows, one behind the other
        "mask": pa.list_(pa.bool_()),
        "weights": pa.list_(pa.float32()),  # null where the example has none
        "row_lengths": pa.list_(pa.int32()),
        "prompt_length": pa.int32(),
        "prompt_ids": pa.list_(pa.int32()),  # null where the first row begins with them
        "length": pa.int32(),  # tokens of the longest row, else of the prompt
        "counted": pa.int32(),
        "best": pa.int32(),
        "margin": pa.float64(),
        "labels": pa.list_(pa.float64()),
        "group": pa.uint64(),
        "digest": pa.uint64(),  # of what two equal examples share, with the next column
        "digest2": pa.uint64(),
        "prompt_text": pa.string(),
        "prompt": pa.string(),  # JSON; null where it is the text
        "columns": pa.string(),  # JSON; null for none
        "truncated": pa.bool_(),
        "note": pa.string(),  # null for none
    }
)
# Arrow's names are NumPy's, but for two.
KINDS = {"float": np.float32, "double": np.float64, "bool": np.bool_} | {
    name: np.dtype(name) for name in ("int32", "int64", "uint64")
}
_ONE_TURN = '[["user",null]]'


def batch_of(examples: Sequence[Example], numbers: Sequence[int], path: str) -> pa.RecordBatch:
    """Examples as a record batch.

    Args:
      examples: any number.
      numbers: the number of each one's row in the file.
      path: the file, which `source` begins with.
    """
    lengths = [[len(row) for row in e.rows] for e in examples]
    sizes = np.fromiter(map(sum, lengths), np.int64, len(examples))
    total = int(sizes.sum())
    ids = np.fromiter(chain.from_iterable(row for e in examples for row in e.rows), np.int32, total)
    masks = [b"".join(map(bytes, e.masks)) for e in examples]
    digests = _digests(examples, ids, masks, lengths)
    begin = len(path) + 1
    weighted = [list(chain.from_iterable(e.weights)) if e.weights else None for e in examples]
    columns = {
        "row": np.asarray(numbers, np.int64),
        "place": _texts([e.source[begin:] for e in examples]),
        "ids": _lists(ids, sizes),
        "mask": _lists(np.frombuffer(b"".join(masks), bool), sizes),
        "weights": _maybe_lists(weighted, np.float32),
        "row_lengths": _lists(
            np.fromiter(chain.from_iterable(lengths), np.int32),
            np.fromiter(map(len, lengths), np.int64, len(lengths)),
        ),
        "prompt_length": np.asarray([len(e.prompt_tokens) for e in examples], np.int32),
        "prompt_ids": _maybe_lists([_own_prompt(e) for e in examples], np.int32),
        "length": np.asarray(
            [max(n) if n else len(e.prompt_tokens) for n, e in zip(lengths, examples, strict=True)], np.int32
        ),
        "counted": np.asarray([mask.count(True) for mask in masks], np.int32),
        "best": np.asarray([e.best for e in examples], np.int32),
        "margin": np.asarray([e.margin for e in examples], np.float64),
        "labels": _maybe_lists([[float(x) for x in e.labels] or None for e in examples], np.float64),
        "group": np.asarray([int(e.group or "0", 16) for e in examples], np.uint64),
        "digest": digests[:, 0],
        "digest2": digests[:, 1],
        "prompt_text": _texts([e.prompt_text for e in examples]),
        "prompt": _texts([_prompt_json(e.prompt, e.prompt_text) for e in examples]),
        "columns": _texts([_json(e.columns) if e.columns else None for e in examples]),
        "truncated": np.asarray([e.truncated for e in examples], bool),
        "note": _texts([e.note or None for e in examples]),
    }
    arrays = [_numbers(c) if isinstance(c, np.ndarray) else c for c in columns.values()]
    return pa.record_batch(arrays, schema=SCHEMA)


# Arrays are built of buffers, and buffers are read: Arrow's own conversions load pandas, which takes a second.


def _numbers(values: np.ndarray) -> pa.Array:
    body = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(body)])


def _lists(values: np.ndarray, sizes: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    child = _numbers(values)
    buffers = [_bits(valid), pa.py_buffer(_offsets(sizes))]
    return pa.Array.from_buffers(pa.list_(child.type), len(sizes), buffers, children=[child])


def _texts(values: Sequence[str | None]) -> pa.Array:
    bodies = [b"" if value is None else value.encode() for value in values]
    sizes = np.fromiter(map(len, bodies), np.int64, len(bodies))
    valid = np.asarray([value is not None for value in values], bool)
    buffers = [_bits(valid), pa.py_buffer(_offsets(sizes)), pa.py_buffer(b"".join(bodies))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def _maybe_lists(values: Sequence[Sequence[Any] | None], kind: Any) -> pa.Array:
    """A column of lists that is mostly null."""
    valid = np.asarray([value is not None for value in values], bool)
    sizes = np.asarray([len(value or ()) for value in values], np.int64)
    return _lists(np.asarray(list(chain.from_iterable(value or () for value in values)), kind), sizes, valid)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if offsets[-1] >= 2**31:
        raise OverflowError("together they hold more than 2 GiB")
    return offsets.astype(np.int32)


def _bits(valid: np.ndarray | None) -> Any:
    return None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _array(column: Any) -> np.ndarray:
    """The values of a column of numbers, what stands for nulls too."""
    body, begin, count = column.buffers()[1], column.offset, len(column)
    if body is None:
        return np.zeros(0, KINDS[str(column.type)])
    if pa.types.is_boolean(column.type):
        first = begin // 8
        bits = np.frombuffer(body, np.uint8)[first : -(-(begin + count) // 8)]
        return np.unpackbits(bits, bitorder="little")[begin - 8 * first :][:count].astype(bool)
    return np.frombuffer(body, KINDS[str(column.type)])[begin : begin + count]


def _offsets_of(column: Any) -> np.ndarray:
    """[N + 1], of a column of lists or texts."""
    body = column.buffers()[1]
    offsets = np.zeros(1, np.int32) if body is None or not body.size else np.frombuffer(body, np.int32)
    return offsets[column.offset : column.offset + len(column) + 1]


def _own_prompt(example: Example) -> Sequence[int] | None:
    prompt = example.prompt_tokens
    return None if example.rows and example.rows[0][: len(prompt)] == prompt else prompt


def _digests(
    examples: Sequence[Example],
    ids: np.ndarray,
    masks: Sequence[bytes],
    lengths: Sequence[Sequence[int]],
) -> np.ndarray:
    """uint64 [N, 2]: 128 bits of what duplicates share, so that no two others are ever taken for them."""
    digests, body, begin = bytearray(), memoryview(ids.tobytes()), 0
    for example, mask, own in zip(examples, masks, lengths, strict=True):
        end = begin + ids.itemsize * len(mask)
        state = hashlib.blake2b(body[begin:end], digest_size=16)
        # Equal tokens of which others count train something else.
        state.update(mask)
        if example.weights:
            state.update(repr(example.weights).encode())
        if not own:
            state.update(repr(example.prompt_tokens).encode())
        elif len(own) > 1 or example.labels:
            # Numbers as such: 1 and 1.0 and True are one label.
            state.update(repr((list(own), int(example.best), [float(x) for x in example.labels])).encode())
        digests += state.digest()
        begin = end
    return np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)


# Made once: `json.dumps` makes one for each value.
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _prompt_json(prompt: Prompt, text: str) -> str | None:
    """Null for the prompt's text; else a list of role, content (null for the text), weight and what else there is."""
    if isinstance(prompt, str):
        return None if prompt == text else _json(prompt)
    if len(prompt) == 1:
        turn = prompt[0]
        if turn.role == "user" and turn.content == text and turn.weight == 1.0 and not turn.extra:
            return _ONE_TURN
    turns = []
    for turn in prompt:
        more = [turn.weight, turn.extra] if turn.extra or turn.weight != 1.0 else []
        turns.append([turn.role, None if turn.content == text else turn.content, *more])
    return _json(turns)


def _prompt(stored: str | None, text: str) -> Prompt:
    if stored is None:
        return text
    if stored == _ONE_TURN:
        return (Message("user", text),)
    value = json.loads(stored)
    if isinstance(value, str):
        return value
    return tuple(Message(role, text if said is None else said, *more) for role, said, *more in value)


class Columns:
    """A record batch that is read example by example.

    Args:
      batch: of `SCHEMA`; its memory may be a file's.
      path: the file of the examples' `source`.
    """

    def __init__(self, batch: pa.RecordBatch, path: str) -> None:
        self._batch, self._path = batch, path

    def __len__(self) -> int:
        return self._batch.num_rows

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers."""
        return _array(self._batch.column(name))

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(offsets [N + 1], values) of a column of lists without nulls."""
        column = self._batch.column(name)
        return _offsets_of(column), _array(column.values)

    def some(self, name: str) -> Iterator[tuple[int, Any]]:
        """(index, value) of a column that is mostly null, where it is not."""
        column = self._nullable[name]
        if column is not None:
            yield from ((i, value) for i, value in enumerate(column.to_pylist()) if value is not None)

    def example(self, index: int) -> Example:
        """One example."""
        masks, weights, rows = self._rows(index)
        scalar = {name: column[index] for name, column in self._numbers.items()}
        text = self._batch.column("prompt_text")[index].as_py()
        columns, note = self._some("columns", index), self._some("note", index)
        prompt = self._some("prompt_ids", index)
        if prompt is None:
            prompt = rows[0][: scalar["prompt_length"]] if rows else ()
        return Example(
            rows=rows,
            masks=masks,
            prompt_tokens=tuple(prompt),
            prompt_text=text,
            best=int(scalar["best"]),
            margin=float(scalar["margin"]),
            labels=tuple(self._some("labels", index) or ()),
            group=f"{int(scalar['group']):016x}",
            columns=json.loads(columns) if columns else {},
            source=f"{self._path}:{self._batch.column('place')[index].as_py()}",
            truncated=bool(scalar["truncated"]),
            prompt=_prompt(self._some("prompt", index), text),
            weights=weights,
            note=note or "",
        )

    def _rows(self, index: int) -> tuple[Any, Any, Any]:
        (starts, lengths), (offsets, ids), mask = self._lengths, self._ids, self._mask
        begin, end = int(offsets[index]), int(offsets[index + 1])
        # Bits are unpacked for this example alone.
        counts = _array(mask.slice(begin, end - begin)).tolist()
        tokens = ids[begin:end].tolist()
        weights = self._some("weights", index)
        cuts = np.cumsum(lengths[starts[index] : starts[index + 1]]).tolist()
        spans = list(zip([0, *cuts], cuts, strict=False))
        return (
            tuple(tuple(counts[a:b]) for a, b in spans),
            () if weights is None else tuple(tuple(weights[a:b]) for a, b in spans),
            tuple(tuple(tokens[a:b]) for a, b in spans),
        )

    def _some(self, name: str, index: int) -> Any:
        """The value of a column that is mostly null."""
        column = self._nullable[name]
        return None if column is None else column[index].as_py()

    @cached_property
    def _nullable(self) -> dict[str, Any]:
        names = ("weights", "prompt_ids", "labels", "prompt", "columns", "note")
        columns = {name: self._batch.column(name) for name in names}
        return {name: None if c.null_count == len(c) else c for name, c in columns.items()}

    @cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        return {
            name: self.numbers(name) for name in ("prompt_length", "best", "margin", "group", "truncated")
        }

    @cached_property
    def _ids(self) -> tuple[np.ndarray, np.ndarray]:
        return self.lists("ids")

    @cached_property
    def _lengths(self) -> tuple[np.ndarray, np.ndarray]:
        return self.lists("row_lengths")

    @cached_property
    def _mask(self) -> Any:
        return self._batch.column("mask").values


# What training, rewards and samples may depend on: all but where a row stood and what is derived from the rest.
_CONTENT = (
    "ids", "mask", "weights", "row_lengths", "prompt_length", "prompt_ids", "best", "margin", "labels", "group",
    "prompt_text", "prompt", "columns",
)  # fmt: skip


class Fingerprint:
    """A hash of examples that come in batches; how they are cut into batches changes nothing."""

    def __init__(self) -> None:
        # Of every column what is null, how long values are, and the values.
        self._states = {name: [hashlib.blake2b(digest_size=16) for _ in range(3)] for name in _CONTENT}

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes the next examples."""
        for name, (nulls, *states) in self._states.items():
            column = batch.column(name)
            missing = column.null_count
            nulls.update(
                bytes(len(column)) if missing == len(column) else _array(column.is_valid()).tobytes()
            )
            if missing < len(column):
                for state, values in zip(states, _values(column), strict=True):
                    state.update(values)

    def hexdigest(self) -> str:
        """The hash, 32 digits."""
        whole = b"".join(state.digest() for states in self._states.values() for state in states)
        return hashlib.sha256(whole).hexdigest()[:32]


def _values(column: Any) -> tuple[bytes, bytes]:
    """Lengths of a column's values, null ones left out, and the values."""
    column = column.drop_null()
    if pa.types.is_list(column.type):
        offsets = _offsets_of(column)
        return np.diff(offsets).tobytes(), _array(column.values)[offsets[0] : offsets[-1]].tobytes()
    if pa.types.is_string(column.type):
        offsets, body = _offsets_of(column), memoryview(column.buffers()[2] or b"")
        return np.diff(offsets).tobytes(), bytes(body[offsets[0] : offsets[-1]])
    return b"", _array(column).tobytes()
