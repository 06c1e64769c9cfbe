"""Tensors of a model's folder, as large as they are: read by slices, written one file after another."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ModelError
from jaxalign.kernels.frozen import Frozen
from jaxalign.models.flax_msgpack import has_flax_tensors, read_flax_tensors
from jaxalign.models.gguf.tensors import GgufTensor
from jaxalign.models.mxfp4 import Mxfp4
from jaxalign.models.tensor_dtypes import NAMES, export_dtype, in_dtype
from jaxalign.processes import fetch, first

Index = tuple[slice, ...]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: its head is known, its numbers are read by slices.

    Attributes:
      file: the file.
      name: of the tensor.
      shape: of the tensor.
      kind: its dtype, as the file calls it.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> np.dtype:
        """Of what is read: JAX's for the file's, so that float64 gives float32.

        Raises:
          ModelError: not a dtype of weights.
        """
        if self.kind not in NAMES:
            raise ModelError(
                f"{self.file}: {self.name} has dtype {self.kind}, expected {', '.join(NAMES)}; "
                "quantized weights are not supported"
            )
        return jnp.dtype(NAMES[self.kind])

    def __getitem__(self, index: Index) -> np.ndarray:
        """The numbers of a slice."""
        return np.asarray(self.raw(index), self.dtype)

    def raw(self, index: Index) -> np.ndarray:
        """A slice as it stands in the file, whatever its dtype."""
        from safetensors import safe_open

        # Opened each time: pages of a file that stays open count as this process's memory once they are touched.
        with safe_open(self.file, framework="np") as reader:
            return reader.get_slice(self.name)[index]


@dataclass(frozen=True)
class Together:
    """Tensors of one shape as one, on whose first axis they lie: the experts of a layer."""

    parts: Sequence[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of them."""
        return len(self.parts), *self.parts[0].shape

    @property
    def dtype(self) -> np.dtype:
        """What holds the numbers of all."""
        return np.result_type(*(part.dtype for part in self.parts))

    def __getitem__(self, index: Index) -> np.ndarray:
        """The numbers of a slice."""
        return np.stack([part[index[1:]] for part in self.parts[index[0]]])


# A msgpack file has no table of its tensors: they come whole.
Source = Stored | GgufTensor | np.ndarray | Together | Mxfp4


@dataclass(frozen=True)
class Leaf:
    """A parameter, or all layers of one, that is still in its files.

    Attributes:
      shape: of the parameter, in our layout.
      tensors: what it is made of: one, or where `stacked` one for each layer.
      part: reads a slice of a parameter, in our layout, from its tensor: `families.read_part`.
      stacked: whether its first axis is the layers.
    """

    shape: tuple[int, ...]
    tensors: Sequence[Source]
    part: Callable[[Source, Index], np.ndarray] = lambda source, index: source[index]
    stacked: bool = False

    def __post_init__(self) -> None:
        for tensor in self.tensors:
            np.dtype(tensor.dtype)  # refuses what is no weight, before any is read

    @property
    def dtype(self) -> np.dtype:
        """What holds the numbers of all its tensors."""
        return np.result_type(*(tensor.dtype for tensor in self.tensors))

    def read(self, index: Index, dtype: np.dtype) -> np.ndarray:
        """The numbers of a slice, read one layer at a time.

        Args:
          index: for each axis a slice with numbers for start and stop, and no step.
          dtype: of what is returned.
        """
        if not self.stacked:
            return np.asarray(self.part(self.tensors[0], index), dtype)
        out = np.empty([one.stop - one.start for one in index], dtype)
        for row, tensor in zip(out, self.tensors[index[0]], strict=True):
            _fill(row, self.part(tensor, index[1:]))
        return out


def _fill(out: np.ndarray, part: np.ndarray) -> None:
    # Of a transposed matrix a strip at a time, which the caches hold: a third of the time.
    width = 64 if part.ndim == 2 and part.flags.f_contiguous else max(1, out.shape[-1])
    for start in range(0, out.shape[-1], width):
        out[..., start : start + width] = part[..., start : start + width]


def read_whole(source: Source) -> np.ndarray:
    """All numbers of a tensor."""
    return source[(slice(None),) * len(source.shape)]


def leaf_of(array: Any) -> Leaf:
    """A parameter whose numbers are known."""
    array = np.asarray(array)
    return Leaf(array.shape, [array])


def read_tensors(path: Path) -> dict[str, Source]:
    """All tensors of a folder by name; only the heads of safetensors files are read.

    Raises:
      ModelError: no weights, only torch pickles, or a damaged file.
    """
    single, index = path / SINGLE, path / INDEX
    if index.is_file():
        files = sorted(set(read_json(index)["weight_map"].values()))
    elif single.is_file():
        files = [single.name]
    elif has_flax_tensors(path):
        return dict(read_flax_tensors(path))
    else:
        if list(path.glob("*.bin")):
            raise ModelError(
                f"{path}: the weights are torch pickles (.bin), which can run arbitrary code when loaded; convert "
                "them with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR, "
                "safe_serialization=True)"
            )
        raise ModelError(
            f"{path}: expected model.safetensors, model.safetensors.index.json or flax_model.msgpack"
        )
    return {tensor.name: tensor for name in files for tensor in _heads(path / name, index.name)}


def _heads(file: Path, index: str) -> Iterator[Stored]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ModelError(f"{file}: named in {index}, but the file does not exist")
    try:
        with safe_open(file, framework="np") as reader:
            for name in reader.keys():  # noqa: SIM118 (not a dict)
                head = reader.get_slice(name)
                yield Stored(file, name, tuple(head.get_shape()), head.get_dtype())
    except SafetensorError as error:
        raise ModelError(f"{file}: not a readable safetensors file ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model's folder.

    Raises:
      ModelError: no such file, or not JSON.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected a Hugging Face folder with {path.name}")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None


# --- writing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outgoing:
    """A tensor that is to be written.

    Attributes:
      shape: as it is written.
      dtype: as `fetch` gives it.
      fetch: its numbers, on the host; where the processes hold parts of it they must all call it, in one order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[], np.ndarray]

    def nbytes(self, dtype: str | None) -> int:
        """Size in a file with this dtype; None for its own."""
        return prod(self.shape) * (export_dtype(dtype) if dtype else self.dtype).itemsize


def outgoing(array: Any) -> Outgoing:
    """A small tensor that is there."""
    return Outgoing(array.shape, array.dtype, lambda: np.ascontiguousarray(on_host(array)))


def on_host(leaf: Any, layer: int | None = None, expert: int | None = None) -> np.ndarray:
    """A parameter, or a layer of it (and there an expert), gathered from the devices and processes that hold it."""
    if isinstance(leaf, Frozen):
        return fetch(_floats(leaf) if layer is None else _floats(_layer(leaf, layer)))
    if not isinstance(leaf, jax.Array):
        part = leaf if layer is None else leaf[layer]
        return np.asarray(part if expert is None else part[expert])
    if layer is not None and expert is not None:
        return fetch(_layer(_layer(leaf, layer), expert))
    # A copy, as an array keeps what it was once gathered to, as long as it lives.
    return fetch(jnp.copy(leaf) if layer is None else _layer(leaf, layer))


# The layer is an argument: one program a shape, not one a layer.
_layer = jax.jit(
    lambda leaf, layer: jax.tree.map(
        partial(jax.lax.dynamic_index_in_dim, index=layer, axis=0, keepdims=False), leaf
    )
)
_floats = jax.jit(lambda leaf: leaf.astype(leaf.dtype))


def write_tensors(
    place: Path, tensors: Mapping[str, Outgoing], max_shard_bytes: int, dtype: str | None
) -> None:
    """Writes the safetensors files of a folder, and their index where there are several.

    The host has the tensors of one file at a time. Of several processes each calls this, as each holds a part of the
    tensors; the first writes.

    Args:
      place: a folder.
      tensors: by name.
      max_shard_bytes: size of a file, at most, but for a single tensor that is larger.
      dtype: of the tensors in the files; None for theirs.

    Raises:
      ModelError: a number that is too large for `dtype`.
    """
    from safetensors.numpy import save_file

    files = _files(tensors, max_shard_bytes, dtype)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        file = SINGLE if len(files) == 1 else f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        held = {}
        for name in names:
            array = tensors[name].fetch()
            if first():
                held[name] = array if dtype is None else in_dtype(name, array, dtype)
        if first():
            save_file(held, place / file, metadata={"format": "pt"})
    if len(files) > 1 and first():
        total = sum(tensor.nbytes(dtype) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (place / INDEX).write_text(json.dumps(index, indent=2))


def _files(tensors: Mapping[str, Outgoing], limit: int, dtype: str | None) -> list[list[str]]:
    files: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        own = tensor.nbytes(dtype)
        if files[-1] and size + own > limit:
            files.append([])
            size = 0
        files[-1].append(name)
        size += own
    return files
