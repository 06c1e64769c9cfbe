"""The architectures of GGUF files: metadata -> config.json, and names of tensors.

What the file does not say is what llama.cpp takes for the architecture: Gemma's pattern of sliding layers, scale of
queries and embeddings, the order of rotated rows. Keys of the architecture that are not in the tables are refused.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig
from jaxalign.models.families import FAMILIES
from jaxalign.models.gguf.head import Head
from jaxalign.models.gguf.tensors import GgufTensor, read_gguf_tensors

EMBEDDING, HEAD, FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
TOKENS = "tokenizer.ggml.tokens"
# Module of Hugging Face -> of GGUF, within a layer.
_ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_LLAMA = _ATTENTION | _MLP | {"post_attention_layernorm": "ffn_norm"}
_GEMMA2 = (
    _ATTENTION
    | _MLP
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
)
_PHI3 = _LLAMA | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
_OUTER = {"embed_tokens.weight": EMBEDDING, "norm.weight": "output_norm.weight"}


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
      family: our name; see `models.families`.
      modules: of a layer, Hugging Face's -> the file's.
      extra: reads the keys that only it has, into the fields of config.json.
      permuted: whether rows of queries and keys are interleaved (see `tensors.head_order`).
      shifted: ending of the names of tensors that are stored plus one.
      window_layers: every so many-th layer attends to all and not to the sliding window; 0 for no such pattern.
      large: number of layers of Gemma's 27B, which scales queries by another size than its heads'; 0 for none.
    """

    family: str
    modules: Mapping[str, str]
    extra: "Callable[[Keys, dict[str, Any]], dict[str, Any]]" = lambda keys, common: {}
    permuted: bool = False
    shifted: str = ""
    window_layers: int = 0
    large: int = 0


@dataclass
class Keys:
    """The keys of an architecture in a file, each of which must be asked for.

    Attributes:
      head: of the file.
      architecture: what it names.
      asked: keys that were asked for.
    """

    head: Head
    architecture: str
    asked: set[str] = field(default_factory=set)

    def find(self, name: str) -> Any:
        """The value of a key; None where it is not there."""
        self.asked.add(name)
        return self.head.metadata.get(f"{self.architecture}.{name}")

    def number(self, name: str, default: float | None = None) -> float:
        """A number, floats as the shortest decimal that a float32 has: 1e-05, not 9.99999974e-06."""
        value = self.find(name)
        if value is None:
            value = default
        if value is None:
            raise self.wrong(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(
                name, f"is {value if np.ndim(value) == 0 else 'an array'!r}; expected one number"
            )
        return value if isinstance(value, int) else float(str(np.float32(value)))

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.number(name, default)
        if value != int(value):
            raise self.wrong(name, f"is {value}; expected a whole number")
        return int(value)

    def must_be(self, name: str, *allowed: Any, why: str) -> None:
        """Refuses a key with another value."""
        value = self.find(name)
        if value is not None and (np.ndim(value) or value not in allowed):
            raise self.wrong(name, f"is {'an array' if np.ndim(value) else repr(value)}: {why}")

    def end(self) -> None:
        """Refuses keys that were not asked for."""
        prefix = f"{self.architecture}."
        left = [k for k in self.head.metadata if k.startswith(prefix) and k[len(prefix) :] not in self.asked]
        if left:
            raise ModelError(
                f"{self.head.file}: {', '.join(sorted(left)[:4])}: not supported for {self.architecture} models"
            )

    def wrong(self, name: str, what: str) -> ModelError:
        """An error that names the key."""
        return ModelError(f"{self.head.file}: {self.architecture}.{name} {what}")


def architecture_of(head: Head) -> Architecture:
    """The row of a file.

    Raises:
      ModelError: not a language model, or an architecture that is not in the table.
    """
    kind = head.metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"{head.file}: general.type is {kind!r}; expected a language model")
    name = head.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{head.file}: general.architecture {name!r} is not supported; expected one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def config_json(head: Head) -> dict[str, Any]:
    """The config.json that a file stands for.

    Raises:
      ModelError: a key that is missing, wrong, or means something that no model here has; names it.
    """
    row = architecture_of(head)
    keys = Keys(head, str(head.metadata["general.architecture"]))
    body = _common(keys, row) | _rope(keys, row)
    body |= row.extra(keys, body)
    keys.end()
    return body | _special_tokens(head)


def _common(keys: Keys, row: Architecture) -> dict[str, Any]:
    tensors = keys.head.tensors
    if EMBEDDING not in tensors:
        raise ModelError(f"{keys.head.file}: missing tensor {EMBEDDING}")
    vocabulary = tensors[EMBEDDING].shape[0]
    heads, hidden = keys.whole("attention.head_count"), keys.whole("embedding_length")
    size = keys.whole("attention.key_length", hidden // max(1, heads))
    keys.must_be("attention.value_length", size, why=f"keys have {size}, and values must have as many")
    keys.must_be("vocab_size", vocabulary, why=f"{EMBEDDING} has {vocabulary} rows")
    keys.must_be("expert_count", 0, why="mixtures of experts are not supported")
    keys.must_be("expert_used_count", 0, why="mixtures of experts are not supported")
    keys.must_be("attention.causal", True, why="only causal models are supported")
    keys.must_be("pooling_type", 0, why="this is a model of embeddings, not a language model")
    keys.must_be("use_parallel_residual", False, why="not supported")
    keys.must_be("tensor_data_layout", "Meta AI original pth", why="not supported")
    layers = keys.whole("block_count")
    return {
        "model_type": row.family,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": size,
        "max_position_embeddings": keys.whole("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": HEAD not in tensors,
    }


def _rope(keys: Keys, row: Architecture) -> dict[str, Any]:
    size = keys.whole(
        "attention.key_length", keys.whole("embedding_length") // keys.whole("attention.head_count")
    )
    rotated = keys.whole("rope.dimension_count", size)
    if row.family != "phi3" and rotated != size:
        raise keys.wrong("rope.dimension_count", f"is {rotated}, but heads have {size}: not supported")
    body: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(keys.number("rope.freq_base", 10_000.0)),
    }
    kind = keys.find("rope.scaling.type") or ("none" if _factor(keys) == 1.0 else "linear")
    if kind not in ("none", "linear"):
        raise keys.wrong("rope.scaling.type", f"is {kind!r}; expected none or linear")
    if kind == "linear" and _factor(keys) != 1.0:
        body |= {"rope_type": "linear", "factor": _factor(keys)}
    keys.must_be("rope.scaling.attn_factor", 1.0, why="attention scaled by the length is not supported")
    keys.find("rope.scaling.finetuned")  # says of the training, and changes nothing
    original = keys.whole("rope.scaling.original_context_length", 0)
    if FACTORS in keys.head.tensors:
        if body["rope_type"] != "default":
            raise keys.wrong("rope.scaling.type", f"is linear, and {FACTORS} scales too: not supported")
        body |= _llama3(keys.head, body["rope_theta"], rotated, original)
    if row.family == "phi3":
        body["partial_rotary_factor"] = rotated / size
    return {"rope_parameters": body}


def _factor(keys: Keys) -> float:
    old = keys.number("rope.scale_linear", 0.0)
    return float(keys.number("rope.scaling.factor", old) or 1.0)


def _llama3(head: Head, theta: float, size: int, original: int) -> dict[str, Any]:
    """The settings of llama3 scaling whose factors a file has; they depend on the length over each bound alone."""
    tensor = GgufTensor(head.file, FACTORS, head.tensors[FACTORS])
    if tensor.shape != (size // 2,):
        raise ModelError(f"{head.file}: {FACTORS} has shape {list(tensor.shape)}, expected {[size // 2]}")
    factors = np.asarray(tensor[(slice(None),)], np.float64)
    for length in [original] if original else [2**k for k in range(3, 24)]:
        body = {
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": length,
        }
        if np.allclose(llama3_factors(theta, size, **body), factors, rtol=1e-5, atol=0):
            return body | {"rope_type": "llama3"}
    raise ModelError(
        f"{head.file}: {FACTORS}: not the factors of llama3 scaling with bounds 1 and 4, which alone is supported"
    )


def llama3_factors(
    theta: float,
    size: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> np.ndarray:
    """What llama3 scaling divides each frequency by (`LlamaModel.generate_extra_tensors` of llama.cpp's converter)."""
    waves = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    smooth = original_max_position_embeddings / waves - low_freq_factor
    smooth = np.clip(smooth / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def _special_tokens(head: Head) -> dict[str, Any]:
    ids = special_ids(head)
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    return {
        "bos_token_id": ids["bos"],
        "eos_token_id": list(dict.fromkeys(ends)) or None,
        "pad_token_id": ids["padding"],
    }


def special_ids(head: Head) -> dict[str, int | None]:
    """Ids of the special tokens, with those that llama.cpp takes for a SentencePiece vocabulary.

    Raises:
      ModelError: an id that is outside the vocabulary.
    """
    spm = head.metadata.get("tokenizer.ggml.model") == "llama"
    usual = {"bos": 1, "eos": 2, "unknown": 0} if spm else {}
    found: dict[str, int | None] = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = head.metadata.get(key, usual.get(name))
        if value is not None and not 0 <= value < len(head.metadata.get(TOKENS, [])):
            raise ModelError(f"{head.file}: {key} is {value}, outside the vocabulary")
        found[name] = value
    return found


def _biases(keys: Keys, module: str) -> bool:
    """Whether layers have biases, which no key says."""
    return f"blk.0.{module}.bias" in keys.head.tensors


def _llama_extra(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    window = keys.whole("attention.sliding_window", 0)
    body = {"attention_bias": _biases(keys, "attn_q"), "mlp_bias": _biases(keys, "ffn_gate")}
    if window:
        # llama.cpp reads no window here, and attends to all; jaxalign writes it of Mistral's models.
        body = {"model_type": "mistral", "sliding_window": window}
    return body


def _gemma2_extra(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "sliding_window": keys.whole("attention.sliding_window", 4096),
        "layer_types": _layer_types(keys, common, 2),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": query_scalar(ARCHITECTURES["gemma2"], common),
    }


def _gemma3_extra(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    window = keys.whole("attention.sliding_window", 0)
    types = _layer_types(keys, common, 6)
    rope = common["rope_parameters"]
    local = float(keys.number("rope.freq_base_swa", 10_000.0))
    return {
        "sliding_window": window,
        "layer_types": types if window else ["full_attention"] * len(types),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "query_pre_attn_scalar": query_scalar(ARCHITECTURES["gemma3"], common),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _layer_types(keys: Keys, common: dict[str, Any], pattern: int) -> list[str]:
    layers, said = common["num_hidden_layers"], keys.find("attention.sliding_window_pattern")
    if np.ndim(said) == 1:
        slides = [bool(x) for x in said]
    else:
        every = pattern if said is None else int(said)
        slides = [every == 0 or (i + 1) % every != 0 for i in range(layers)]
    if len(slides) != layers:
        raise keys.wrong("attention.sliding_window_pattern", f"has {len(slides)} entries for {layers} layers")
    return ["sliding_attention" if x else "full_attention" for x in slides]


def query_scalar(row: Architecture, common: Mapping[str, Any]) -> int:
    """Queries are divided by the root of this: no key has it, llama.cpp knows it by the number of layers."""
    if row.large and common["num_hidden_layers"] == row.large:
        return common["hidden_size"] // common["num_attention_heads"]
    return common["head_dim"]


def _phi3_extra(keys: Keys, common: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_window": keys.whole("attention.sliding_window", 0)}


_NORMS = "norm.weight"
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", _LLAMA, _llama_extra, permuted=True),
    "qwen2": Architecture("qwen2", _LLAMA),
    "qwen3": Architecture("qwen3", _LLAMA),
    "gemma": Architecture("gemma", _LLAMA, shifted=_NORMS),
    "gemma2": Architecture("gemma2", _GEMMA2, _gemma2_extra, shifted=_NORMS, window_layers=2, large=46),
    "gemma3": Architecture("gemma3_text", _GEMMA2, _gemma3_extra, shifted=_NORMS, window_layers=6, large=62),
    "phi3": Architecture("phi3", _PHI3, _phi3_extra),
}
# Our family -> the name of its architecture in a file.
NAMES = {row.family: name for name, row in ARCHITECTURES.items()} | {"mistral": "llama"}


def gguf_names(row: Architecture, family: str, layers: int) -> dict[str, str]:
    """Names of all tensors that a model of the architecture can have: Hugging Face's -> the file's."""
    known = FAMILIES[family]
    names = {known.trunk + hf: name for hf, name in _OUTER.items()} | {f"{known.head}.weight": HEAD}
    for tensor in known.layer:
        module, _, ending = tensor.name.removeprefix("layers.{i}.").rpartition(".")
        for layer in range(layers):
            names[known.trunk + tensor.name.format(i=layer)] = f"blk.{layer}.{row.modules[module]}.{ending}"
    return names


def permuted_heads(row: Architecture, config: ModelConfig) -> dict[str, int]:
    """The file's names of tensors with interleaved rows -> their number of heads."""
    if not row.permuted:
        return {}
    counts = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    return {
        f"blk.{layer}.{module}.{ending}": count
        for layer in range(config.num_layers)
        for module, count in counts.items()
        for ending in ("weight", "bias")
    }


def tensors_of(head: Head, config: ModelConfig) -> dict[str, GgufTensor]:
    """A file's tensors under Hugging Face names; those that the architecture does not have keep theirs."""
    row = architecture_of(head)
    names = {ours: hf for hf, ours in gguf_names(row, config.family, config.num_layers).items()}
    found = read_gguf_tensors(head, names, permuted_heads(row, config), row.shifted)
    found.pop(FACTORS, None)  # read by `_llama3`
    return found
