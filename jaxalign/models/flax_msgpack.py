"""`flax_model.msgpack`, as the Flax classes of transformers 4 wrote it.

Its trees have the Hugging Face names as nested keys, with Flax's own leaf names and
layouts: `kernel` is [in, out], `embedding` and `scale` stand for weights.
"""

from pathlib import Path

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig
from jaxalign.models.families import FAMILIES


def read_flax_tensors(path: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of the file under the names and layouts of a safetensors file.

    Raises:
      ModelError: the file cannot be read.
    """
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:
        raise ModelError(f"{path}: not a readable Flax msgpack file ({type(error).__name__})") from None
    kinds = {t.name: t.kind for t in FAMILIES[config.family].layer}
    tensors = {}
    for keys, array in _leaves(tree, ()):
        name = ".".join(keys[:-1]) + {"kernel": ".weight", "embedding": ".weight", "scale": ".weight"}.get(
            keys[-1], f".{keys[-1]}"
        )
        array = np.asarray(array)
        generic = ".".join("{i}" if part.isdigit() else part for part in name.split("."))
        kind = kinds.get(generic.removeprefix(FAMILIES[config.family].trunk), "plain")
        # GPT-2's FlaxConv1D keeps its kernel transposed, [out, in]; Dense kernels are [in, out].
        if keys[-1] == "kernel" or (keys[-1] == "weight" and kind == "conv1d"):
            array = array.T
        tensors[name] = array
    return tensors


def _leaves(tree, keys: tuple[str, ...]):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*keys, str(name)))
        else:
            yield (*keys, str(name)), value
