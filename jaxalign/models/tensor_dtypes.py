"""The dtype of a folder's weights, and weights in another."""

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.gguf.head import gguf_in, read_head

ExportDtype = Literal["float32", "bfloat16", "float16"]
# Of weights that do not learn; see `device_dtype`.
AutoDtype = Literal["auto", "float32", "bfloat16"]
# Of matrix products.
ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
# By their names in safetensors files; wider ones are written as float32.
NAMES: dict[str, ExportDtype] = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def folder_dtype(folder: str | Path) -> ExportDtype | None:
    """The dtype that most weights of a model folder have, by the heads of its safetensors files, or of a GGUF file.

    Where it has none (or is no folder) that of its config.json; None where that does not say either, and of quantized
    weights.
    """
    path, counts = Path(folder), Counter[str]()
    if (file := gguf_in(path)) is not None:
        for entry in read_head(file).tensors.values():
            counts[NAMES.get(entry.kind, "")] += prod(entry.shape)
        return counts.most_common(1)[0][0] or None  # type: ignore[return-value]
    for file in path.glob("*.safetensors"):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            try:
                head = json.loads(stream.read(size)) if size <= 100 << 20 else {}
            except ValueError:
                continue  # damaged, which who reads it says
        for name, tensor in head.items():
            if name != "__metadata__" and tensor["dtype"] in NAMES:
                counts[NAMES[tensor["dtype"]]] += prod(tensor["shape"])
    if counts:
        return counts.most_common(1)[0][0]  # type: ignore[return-value]
    try:
        said = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    name = said.get("dtype") or said.get("torch_dtype")
    return name if name in NAMES.values() else None


def device_dtype(setting: str, device: jax.Device) -> str:
    """The dtype that a setting means on a device, for weights that do not learn and for matrix products.

    Args:
      setting: float32, bfloat16 or auto, which is bfloat16 on an accelerator, whatever the files have (those of most
        models have just that), and float32 on a CPU, where bfloat16 is slow.
      device: one of those that hold them.
    """
    if setting != "auto":
        return setting
    return "float32" if device.platform == "cpu" else "bfloat16"


def export_dtype(name: str) -> np.dtype:
    """A dtype that weights can be written in, by its name.

    Raises:
      ModelError: another.
    """
    if name not in NAMES.values():
        raise ModelError(f"dtype: expected {', '.join(dict.fromkeys(NAMES.values()))}, got {name}")
    return jnp.dtype(name)


def in_dtype(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """The tensor `name` in a dtype.

    Raises:
      ModelError: a finite value is beyond the largest of the dtype (65504 in float16); names the tensor.
    """
    with np.errstate(over="ignore"):  # which is looked at below
        cast = np.asarray(array, export_dtype(dtype))
    if (
        dtype == "float16"
        and np.isfinite(np.asarray(array, np.float32)).all()
        and not np.isfinite(cast).all()
    ):
        raise ModelError(
            f"{name}: a weight exceeds the largest float16, 65504; export as bfloat16 or float32"
        )
    return cast
