"""Tensors of a GGUF file as those of a Hugging Face folder: read by slices, dequantized row by row."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.gguf.head import Entry, Head, gguf_module

Index = tuple[slice, ...]
# What is no quantized type: its dtype in the file.
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file, in the layout of Hugging Face.

    Attributes:
      file: the file.
      name: of the tensor, there.
      entry: where it lies.
      heads: where llama.cpp's `llama` interleaves the halves of each head's rows (of queries and keys): the number of
        heads; 0 where rows are as they are.
      shift: what the file adds to each number (1 for norms of Gemma).
    """

    file: Path
    name: str
    entry: Entry
    heads: int = 0
    shift: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.entry.shape

    @property
    def dtype(self) -> np.dtype:
        """Of what is read: the file's, float32 of what is quantized or wider.

        Raises:
          ModelError: a type that is no weight, or that the package gguf cannot dequantize.
        """
        if self.entry.kind in FLOATS:
            return jnp.dtype("float32" if self.entry.kind == "F64" or self.shift else FLOATS[self.entry.kind])
        if not dequantizable(self.entry.kind):
            raise ModelError(
                f"{self.file}: {self.name} has the type {self.entry.kind}, which the package gguf cannot dequantize"
            )
        return np.dtype(np.float32)

    def __getitem__(self, index: Index) -> np.ndarray:
        """The numbers of a slice; of a quantized tensor whole rows are dequantized."""
        rows = prod(self.shape[:-1])
        start, stop, _ = index[0].indices(self.shape[0])
        if len(self.shape) == 1:
            # Rows of one number each where it is a bias, whose heads are permuted too.
            whole = self._rows(slice(0, 1), rows)[0]
            return self._done(whole[head_order(len(whole), self.heads)] if self.heads else whole, index)
        if self.heads:
            picked = head_order(rows, self.heads)[start:stop]
            return self._done(self._rows(picked, rows), (slice(None), *index[1:]))
        return self._done(self._rows(slice(start, stop), rows), (slice(None), *index[1:]))

    def _rows(self, rows: slice | np.ndarray, count: int) -> np.ndarray:
        entry = self.entry
        # Mapped each time: pages that stay mapped count as this process's memory once they are touched.
        data = np.memmap(self.file, np.uint8, "r", entry.offset, (count, entry.nbytes // count))
        raw = np.ascontiguousarray(data[rows])
        if entry.kind in FLOATS:
            return raw.view(jnp.dtype(FLOATS[entry.kind]))
        gguf = gguf_module()
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[entry.kind])

    def _done(self, array: np.ndarray, index: Index) -> np.ndarray:
        part = np.asarray(array[index], self.dtype)
        return part - np.float32(self.shift) if self.shift else part


def head_order(rows: int, heads: int) -> np.ndarray:
    """Rows of the file in the order that Hugging Face has them.

    llama.cpp rotates neighbours of a head (2i, 2i + 1), Hugging Face its halves (i, i + half), which the converter
    interleaves.
    """
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


@lru_cache
def dequantizable(kind: str) -> bool:
    """Whether the package gguf can read the type, tried on a block of zeros."""
    gguf = gguf_module()
    quant = gguf.GGMLQuantizationType[kind]
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[quant][1]), np.uint8), quant)
    except NotImplementedError:
        return False
    return True


def read_gguf_tensors(head: Head, names: Mapping[str, str], heads: Mapping[str, int], shifted: str) -> dict:
    """All tensors of a file under Hugging Face names, as far as these have one; no number is read.

    Args:
      head: of the file.
      names: the file's name -> that of Hugging Face.
      heads: the file's names of the tensors with permuted rows -> number of heads.
      shifted: ending of the file's names of tensors that are stored plus one; "" for none.
    """
    return {
        names.get(name, name): GgufTensor(
            head.file, name, entry, heads.get(name, 0), float(bool(shifted) and name.endswith(shifted))
        )
        for name, entry in head.tensors.items()
    }
