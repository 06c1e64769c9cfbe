"""A converter by llama.cpp's conventions (`conversion/*.py` of llama.cpp), independent of jaxalign's writer."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
}
MATRIX = gguf.GGMLQuantizationType.F32


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's converter."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def tokens_to(writer: gguf.GGUFWriter, size: int) -> None:
    """Any vocabulary: these files are read for their numbers."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(size)])
    writer.add_token_types([1] * size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def keys_to(writer: gguf.GGUFWriter, config: dict) -> None:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config["rope_parameters"]
    rope, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(size)
        writer.add_value_length(size)
    if config["model_type"] in ("llama", "mistral", "phi3"):
        writer.add_rope_dimension_count(size)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config["model_type"] == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    if config["model_type"] in ("gemma2", "gemma3_text", "phi3"):
        writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if local is not None:
        writer.add_rope_freq_base_swa(local["rope_theta"])


def llama3_factors(config: dict) -> np.ndarray:
    """`LlamaModel.generate_extra_tensors`."""
    rope, dim = config["rope_parameters"], config["head_dim"]
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for frequency in 1.0 / (rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float32) / dim)):
        wave = 2 * np.pi / frequency
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(rope["factor"])
        else:
            smooth = rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.asarray(factors, np.float32)


def convert(
    folder: Path,
    file: Path,
    *,
    kind: gguf.GGMLQuantizationType = MATRIX,
    edit=lambda tensors: None,
    add=lambda writer: None,
    tokens=tokens_to,
    architecture: str = "",
    permuted: bool = True,
    shifted: bool = True,
) -> Path:
    """A folder as a file.

    Args:
      folder: of Hugging Face.
      file: where.
      kind: of matrices.
      edit: changes the tensors, under their names in the file, before they are written.
      add: writes more keys.
      tokens: writes the tokenizer, of so many tokens.
      architecture: what the file says, where it is to say something else.
      permuted, shifted: False leaves a step of the converter out.
    """
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    arch = ARCHITECTURES[family]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    found: dict[str, np.ndarray] = {}
    for name, array in load_file(folder / "model.safetensors").items():
        if permuted and family in ("llama", "mistral") and re.search(r"\.[qk]_proj\.", name):
            key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
            array = permute(array, config[key])
        if shifted and family.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        found[own] = array
    if config["rope_parameters"].get("rope_type") == "llama3":
        found["rope_freqs.weight"] = llama3_factors(config)
    edit(found)
    writer = gguf.GGUFWriter(file, architecture or gguf.MODEL_ARCH_NAMES[arch])
    keys_to(writer, config)
    tokens(writer, config["vocab_size"])
    add(writer)
    for name, array in found.items():
        if array.ndim == 1:
            writer.add_tensor(name, array.astype(np.float32))
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
