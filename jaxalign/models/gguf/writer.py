"""Writes a model as a GGUF file, one tensor after the other."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.gguf.families import ARCHITECTURES, FACTORS, NAMES, gguf_names, permuted_heads
from jaxalign.models.gguf.head import gguf_module
from jaxalign.models.gguf.settings import factors_of, metadata_of
from jaxalign.models.gguf.tensors import head_order
from jaxalign.models.tensor_dtypes import in_dtype
from jaxalign.models.tensor_files import Outgoing
from jaxalign.models.transformer import Transformer

GgufDtype = Literal["float32", "float16", "bfloat16", "q8_0"]
# Our name -> the format's of a type, and of a file that has mostly it.
TYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}


def write_gguf(
    model: Transformer,
    file: Path,
    tensors: Mapping[str, Outgoing],
    vocabulary: Mapping[str, Any],
    dtype: str,
    name: str,
) -> None:
    """Writes a file; the host holds one tensor at a time.

    Args:
      model: the model.
      file: where; what is there is overwritten.
      tensors: of the model, by Hugging Face names.
      vocabulary: see `vocabulary_of`.
      dtype: of matrices, see `GgufDtype`; norms and biases are float32.
      name: of the model, in the file.

    Raises:
      ModelError: a family or setting that the format does not have, or a number that is too large for the dtype.
    """
    gguf, config = gguf_module(), model.config
    keys = metadata_of(config)
    architecture = NAMES[config.family]
    row = ARCHITECTURES[architecture]
    known, heads = gguf_names(row, config.family, config.num_layers), permuted_heads(row, config)
    if missing := sorted(set(tensors) - set(known)):
        raise ModelError(f"GGUF has no name for {missing[0]} in a {architecture} model")
    writer = gguf.GGUFWriter(file, architecture)
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(gguf.LlamaFileType[TYPES[dtype][1]])
        for key, value in [(f"{architecture}.{key}", value) for key, value in keys.items()] + list(
            vocabulary.items()
        ):
            _add(writer, key, value)
        kinds = {hf: kind_of(tensor.shape, dtype) for hf, tensor in tensors.items()}
        extra = {} if (factors := factors_of(config)) is None else {FACTORS: factors}
        for own, array in extra.items():
            writer.add_tensor_info(own, array.shape, array.dtype, array.nbytes)
        for hf, tensor in tensors.items():
            quant = gguf.GGMLQuantizationType[kinds[hf]]
            block, size = gguf.GGML_QUANT_SIZES[quant]
            nbytes = prod(tensor.shape) // block * size
            # A dtype that is not uint8: the shape is that of the numbers, and not of their bytes.
            writer.add_tensor_info(known[hf], tensor.shape, np.dtype(np.float32), nbytes, quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in extra.values():
            writer.write_tensor_data(array)
        for hf, tensor in tensors.items():
            array = to_file(tensor.fetch(), heads.get(known[hf], 0), is_shifted(row.shifted, known[hf]))
            if kinds[hf] == "F16":
                in_dtype(known[hf], array, "float16")
            writer.write_tensor_data(gguf.quantize(array, gguf.GGMLQuantizationType[kinds[hf]]))
    finally:
        writer.close()


def kind_of(shape: tuple[int, ...], dtype: str) -> str:
    """The type of a tensor: F32 for norms and biases; Q8_0's blocks are of 32, and F16 takes what has others."""
    if len(shape) == 1:
        return "F32"
    if dtype == "q8_0" and shape[-1] % 32:
        return "F16"
    return TYPES[dtype][0]


def is_shifted(ending: str, name: str) -> bool:
    """Whether a file has a tensor plus one."""
    return bool(ending) and name.endswith(ending)


def to_file(array: np.ndarray, heads: int, shifted: bool) -> np.ndarray:
    """A tensor of Hugging Face's layout in the file's, float32."""
    array = np.asarray(array, np.float32)
    if heads:
        there = np.empty_like(array)
        there[head_order(len(array), heads)] = array
        array = there
    return np.ascontiguousarray(array + np.float32(1) if shifted else array)


def rounded(array: np.ndarray, kind: str, shifted: bool) -> np.ndarray:
    """The numbers that a reader of the file must find: those of a tensor in its type."""
    gguf = gguf_module()
    quant = gguf.GGMLQuantizationType[kind]
    array = to_file(array, 0, shifted)
    found = gguf.dequantize(gguf.quantize(array, quant), quant) if kind != "F32" else array
    return found - np.float32(1) if shifted else found


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
