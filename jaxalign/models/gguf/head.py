"""The head of a GGUF file: its metadata and where each tensor lies; no numbers are read.

Not read with `gguf.GGUFReader`, which makes an array object of every token and merge: 23 s and 600 MB for a vocabulary
as large as Llama 3's, where this takes under a second.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
# The format's numbers for types of values -> how `struct` reads them; then strings and arrays.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Entry:
    """A tensor's line in the head.

    Attributes:
      shape: as NumPy has it, rows first; the file has it the other way round.
      kind: name of its type, such as F16 or Q4_K.
      offset: of its first byte in the file.
      nbytes: its size there.
    """

    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Head:
    """What a file says before its numbers.

    Attributes:
      file: the file.
      metadata: key -> number, text, or array (texts as a list).
      tensors: by their names in the file.
    """

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Entry]


def is_gguf(path: str | Path) -> bool:
    """Whether a path is a GGUF file, by its name or its first bytes."""
    path = Path(path)
    return path.is_file() and (path.suffix == ".gguf" or begins_as_one(path))


def begins_as_one(path: Path) -> bool:
    """Whether the first bytes of a file are those of a GGUF file."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def gguf_in(path: str | Path) -> Path | None:
    """The GGUF file that a path is, or the only one in a folder without config.json; None where there is none."""
    path = Path(path)
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        return files[0] if len(files) == 1 else None
    return path if is_gguf(path) else None


def gguf_module() -> Any:
    """The package `gguf`.

    Raises:
      ModelError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise ModelError("GGUF files need the package gguf: pip install 'jaxalign[gguf]'") from None
    return gguf


def read_head(file: str | Path) -> Head:
    """The head of a file; that of the last one read is kept.

    Raises:
      ModelError: it is no GGUF file, one of another version or byte order, a part of a split one, truncated, or has
        tensors of an unknown type.
    """
    path = Path(file)
    try:
        about = path.stat()
    except OSError:
        raise ModelError(f"{path}: no such file") from None
    return _read_head(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1)
def _read_head(path: Path, size: int, _: int) -> Head:
    types = gguf_module()
    if size < 24:
        raise ModelError(f"{path}: not a GGUF file (it has {size} bytes)")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != MAGIC:
            raise ModelError(f"{path}: not a GGUF file (it begins with {data[:4]!r})")
        (version,) = struct.unpack_from("<I", data, 4)
        if not version & 0xFFFF:
            raise ModelError(f"{path}: a big-endian GGUF file; expected a little-endian one")
        if version not in VERSIONS:
            raise ModelError(f"{path}: GGUF version {version} is not supported; expected 2 or 3")
        cursor = _Cursor(path, data)
        try:
            return _parse(path, cursor, size, types)
        except (struct.error, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: the head of the file is damaged or truncated ({error})") from None


def _parse(path: Path, cursor: "_Cursor", size: int, types: Any) -> Head:
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text()
        if key in metadata:
            raise ModelError(f"{path}: the key {key} is there twice")
        metadata[key] = cursor.value(cursor.number("I"), key)
    entries: dict[str, Entry] = {}
    for _ in range(tensors):
        name, rank = cursor.text(), cursor.number("I")
        if rank > 4:
            raise ModelError(f"{path}: {name} has {rank} axes; the head of the file is damaged")
        shape = tuple(cursor.number("Q") for _ in range(rank))[::-1]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if name in entries:
            raise ModelError(f"{path}: the tensor {name} is there twice")
        try:
            quant = types.GGMLQuantizationType(kind)
        except ValueError:
            raise ModelError(
                f"{path}: {name} has the type {kind}, which gguf {_version()} does not know"
            ) from None
        block, nbytes = types.GGML_QUANT_SIZES[quant]
        if not shape or shape[-1] % block:
            raise ModelError(
                f"{path}: {name} has shape {list(shape)}, whose rows are no whole blocks of {block}"
            )
        entries[name] = Entry(shape, quant.name, offset, prod(shape) // block * nbytes)
    start = _aligned(cursor.at, path, metadata.get("general.alignment", ALIGNMENT))
    placed = {
        name: Entry(entry.shape, entry.kind, start + entry.offset, entry.nbytes)
        for name, entry in entries.items()
    }
    for name, entry in placed.items():
        if entry.offset + entry.nbytes > size:
            raise ModelError(
                f"{path}: the file is truncated: {name} ends at byte {entry.offset + entry.nbytes:,} of {size:,}"
            )
    if (parts := int(metadata.get("split.count", 1))) > 1:
        raise ModelError(
            f"{path}: one of {parts} parts of a split model; join them first: llama-gguf-split --merge FIRST OUT"
        )
    return Head(path, metadata, placed)


class _Cursor:
    """Reads a head from its counts on, value by value."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 8

    def number(self, code: str) -> Any:
        found = struct.unpack_from(f"<{code}", self.data, self.at)[0]
        self.at += struct.calcsize(f"<{code}")
        return found

    def raw(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ModelError(f"{self.path}: the head of the file is damaged or truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def text(self) -> str:
        return self.raw(self.number("Q")).decode()

    def value(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            # Tokens of some files are no UTF-8; a template or name is refused where it is used.
            return self.raw(self.number("Q")).decode(errors="surrogateescape")
        if kind != ARRAY:
            raise ModelError(f"{self.path}: {key} has a value of the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in SCALARS:
            dtype = np.dtype(f"<{'?' if SCALARS[kind] == '?' else SCALARS[kind]}")
            return np.frombuffer(self.raw(count * dtype.itemsize), dtype)
        return [self.value(kind, key) for _ in range(count)]


def _aligned(at: int, path: Path, alignment: Any) -> int:
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ModelError(f"{path}: general.alignment is {alignment!r}; expected a power of two")
    return -(-at // alignment) * alignment


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
