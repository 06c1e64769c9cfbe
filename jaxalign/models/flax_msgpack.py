"""`flax_model.msgpack`, one file or sharded, as the Flax classes of transformers 4 wrote it.

Its trees have the Hugging Face names as nested keys, with Flax's own leaf names: `kernel`,
`embedding` and `scale` all stand for `weight`. Those classes left out some of what config.json
says: they rotate by base 10000 whatever `rope_theta` is, and Mistral's window sees one key more
than torch's. We follow config.json, as the torch classes do.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import ModelError

FILE = "flax_model.msgpack"
INDEX = "flax_model.msgpack.index.json"
_WEIGHTS = ("kernel", "embedding", "scale")


def has_flax_tensors(folder: Path) -> bool:
    """Whether the folder has weights in this format."""
    return (folder / FILE).is_file() or (folder / INDEX).is_file()


def read_flax_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of all tensors in a folder, under the names and layouts of a safetensors file.

    Raises:
      ModelError: a file or the index cannot be read, or a shard is missing.
    """
    files = [FILE]
    if not (folder / FILE).is_file():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{folder / INDEX}: not a readable index ({type(error).__name__})") from None
    for name in files:
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: named in {INDEX}, but the file does not exist")
        for keys, array in _leaves(_read(folder / name), ()):
            # Flax keeps every kernel the other way round: Dense as [in, out] where torch's Linear has
            # [out, in], and GPT-2's FlaxConv1D as [out, in] where torch's Conv1D has [in, out].
            array = array.T if keys[-1] == "kernel" else array
            yield ".".join((*keys[:-1], "weight" if keys[-1] in _WEIGHTS else keys[-1])), array


def _read(file: Path) -> dict[str, Any]:
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:
        raise ModelError(f"{file}: not a readable Flax msgpack file ({type(error).__name__})") from None
    if not isinstance(tree, dict):
        raise ModelError(f"{file}: not a readable Flax msgpack file (it contains no parameter tree)")
    return tree


def _leaves(tree: dict[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*keys, str(name)))
        else:
            yield (*keys, str(name)), np.asarray(value)
