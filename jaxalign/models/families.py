"""The families as tables: how each one's config.json and tensor names map to ours.

A family is not a copy of the model. To add one, write its config mapping (both ways)
and the names of its tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig, RopeScaling

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face folder and the leaves it holds.

    Attributes:
      name: its name there; {i} is the layer.
      leaves: our names; several where the tensor is fused.
      kind: `linear` ([out, in] there, transposed here), `conv1d` ([in, out] in both) or `plain`.
      fusion: how leaves lie in it: `rows` one after another, or `heads` (q, k, v by turns, head by head).
    """

    name: str
    leaves: tuple[str, ...]
    kind: str = "plain"
    fusion: str = "rows"


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
      architecture: class name for language models; the reward form replaces ForCausalLM.
      read: config.json -> arguments of `ModelConfig`.
      write: `ModelConfig` -> config.json.
      layer: tensors of a layer.
      outer: tensors outside the layers; our names are `group/leaf`.
      head: name of the untied vocabulary projection.
      trunk: prefix of all tensors but heads.
      ignored: endings of tensors that hold no parameters.
    """

    architecture: str
    read: Callable[[Json], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    layer: tuple[Tensor, ...]
    outer: tuple[Tensor, ...]
    head: str = "lm_head"
    trunk: str = "model."
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)


def _rope(config: Json) -> tuple[float, RopeScaling]:
    """Rotary base and scaling from either place: `rope_parameters` (transformers 5) or the older fields."""
    parameters = config.get("rope_parameters") or {}
    if any(isinstance(v, Mapping) for v in parameters.values()):
        parameters = parameters.get("full_attention") or {}
    scaling = dict(config.get("rope_scaling") or {}) | dict(parameters)
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return theta, RopeScaling()
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=float(scaling["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            kind="llama3",
            factor=float(scaling["factor"]),
            low_frequency_factor=float(scaling["low_freq_factor"]),
            high_frequency_factor=float(scaling["high_freq_factor"]),
            original_positions=int(scaling["original_max_position_embeddings"]),
        )
    raise ModelError(f"config.json: rope_type {kind!r} is not supported; expected default, linear or llama3")


def _rope_out(config: ModelConfig) -> dict[str, Any]:
    """Both places, so that transformers 4 and 5 read the same model."""
    scaling = config.rope_scaling
    body: dict[str, Any] = {"rope_type": "default" if scaling.kind == "none" else scaling.kind}
    if scaling.kind != "none":
        body["factor"] = scaling.factor
    if scaling.kind == "llama3":
        body |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    result: dict[str, Any] = {"rope_theta": config.rope_theta}
    result["rope_parameters"] = body | {"rope_theta": config.rope_theta}
    if scaling.kind != "none":
        result["rope_scaling"] = body
    return result


def _activation(name: str) -> str:
    known = {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
    }
    if name not in known:
        raise ModelError(f"config.json: activation {name!r} is not supported; expected one of {', '.join(known)}")
    return known[name]


def _common(config: Json) -> dict[str, Any]:
    heads = int(config["num_attention_heads"])
    theta, scaling = _rope(config)
    return {
        "vocab_size": int(config["vocab_size"]),
        "hidden_size": int(config["hidden_size"]),
        "intermediate_size": int(config["intermediate_size"]),
        "num_layers": int(config["num_hidden_layers"]),
        "num_heads": heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or config["hidden_size"] // heads),
        "max_positions": int(config.get("max_position_embeddings", 2048)),
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "activation": _activation(config.get("hidden_activation") or config.get("hidden_act") or "silu"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tied_head": bool(config.get("tie_word_embeddings", False)),
    }


def _common_out(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_head,
        **_rope_out(config),
    }


def _llama(config: Json) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return _common(config) | {
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias", False)),
    }


def _llama_out(config: ModelConfig) -> dict[str, Any]:
    return _common_out(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def _mistral(config: Json) -> dict[str, Any]:
    return _common(config) | {"sliding_window": int(config.get("sliding_window") or 0)}


def _mistral_out(config: ModelConfig) -> dict[str, Any]:
    return _common_out(config) | {"sliding_window": config.sliding_window or None}


def _layer_types(config: Json, layers: int) -> tuple[bool, ...]:
    types = config.get("layer_types")
    return tuple(t == "sliding_attention" for t in types) if types else ()


def _qwen2(config: Json) -> dict[str, Any]:
    common = _common(config)
    window = int(config.get("sliding_window") or 0) if config.get("use_sliding_window") else 0
    sliding = ()
    if window:
        first = int(config.get("max_window_layers", 0))
        sliding = _layer_types(config, common["num_layers"]) or tuple(
            i >= first for i in range(common["num_layers"])
        )
    return common | {"qkv_bias": True, "sliding_window": window, "sliding_layers": sliding}


def _qwen_out(config: ModelConfig) -> dict[str, Any]:
    types = ["sliding_attention" if s else "full_attention" for s in config.layer_slides]
    return _common_out(config) | {
        "use_sliding_window": bool(config.sliding_window),
        "sliding_window": config.sliding_window or None,
        "max_window_layers": types.index("sliding_attention") if config.sliding_window else config.num_layers,
        "layer_types": types,
    }


def _qwen3(config: Json) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return _qwen2(config) | {"qkv_bias": bias, "out_bias": bias, "qk_norm": True}


def _gemma2(config: Json) -> dict[str, Any]:
    common = _common(config)
    layers = common["num_layers"]
    sliding = _layer_types(config, layers) or tuple(i % 2 == 0 for i in range(layers))
    return common | {
        "tied_head": bool(config.get("tie_word_embeddings", True)),
        "norm_offset": 1.0,
        "activation": _activation(config.get("hidden_activation") or "gelu_pytorch_tanh"),
        "post_norms": True,
        "sliding_window": int(config.get("sliding_window") or 4096),
        "sliding_layers": sliding,
        "attention_softcap": float(config.get("attn_logit_softcapping") or 0.0),
        "final_softcap": float(config.get("final_logit_softcapping") or 0.0),
        "query_scale": float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
        "embedding_scale": float(common["hidden_size"]) ** 0.5,
    }


def _gemma2_out(config: ModelConfig) -> dict[str, Any]:
    return _common_out(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": config.sliding_window,
        "layer_types": ["sliding_attention" if s else "full_attention" for s in config.layer_slides],
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.final_softcap or None,
        "query_pre_attn_scalar": round(config.query_scale**-2, 6),
    }


def _gemma3(config: Json) -> dict[str, Any]:
    config = config.get("text_config") or config
    layers = int(config["num_hidden_layers"])
    pattern = int(config.get("sliding_window_pattern", 6))
    sliding = _layer_types(config, layers) or tuple((i + 1) % pattern != 0 for i in range(layers))
    local = ((config.get("rope_parameters") or {}).get("sliding_attention") or {}).get("rope_theta")
    theta, scaling = _rope({"rope_theta": 1_000_000.0, **config})
    return _gemma2(config) | {
        "qk_norm": True,
        "sliding_layers": sliding,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_theta_local": float(local or config.get("rope_local_base_freq", 10_000.0)),
    }


def _gemma3_out(config: ModelConfig) -> dict[str, Any]:
    rope = _rope_out(config)
    return _gemma2_out(config) | {
        **rope,
        "rope_local_base_freq": config.rope_theta_local,
        "rope_parameters": {
            "full_attention": rope["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_theta_local},
        },
    }


def _phi3(config: Json) -> dict[str, Any]:
    common = _common(config)
    partial = float((config.get("rope_parameters") or {}).get("partial_rotary_factor") or 0.0)
    partial = partial or float(config.get("partial_rotary_factor") or 1.0)
    return common | {
        "sliding_window": int(config.get("sliding_window") or 0),
        "rotary_dim": int(common["head_dim"] * partial),
    }


def _phi3_out(config: ModelConfig) -> dict[str, Any]:
    partial = config.rotary_size / config.head_dim
    out = _common_out(config) | {
        "sliding_window": config.sliding_window or None,
        "partial_rotary_factor": partial,
        "original_max_position_embeddings": config.max_positions,
        "pad_token_id": config.pad_id if config.pad_id >= 0 else None,
    }
    out["rope_parameters"] = out["rope_parameters"] | {"partial_rotary_factor": partial}
    return out


def _gpt2(config: Json) -> dict[str, Any]:
    hidden, heads = int(config["n_embd"]), int(config["n_head"])
    return {
        "vocab_size": int(config["vocab_size"]),
        "hidden_size": hidden,
        "intermediate_size": int(config.get("n_inner") or 4 * hidden),
        "num_layers": int(config["n_layer"]),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "max_positions": int(config.get("n_positions") or config.get("n_ctx") or 1024),
        "norm": "layer",
        "norm_eps": float(config.get("layer_norm_epsilon", 1e-5)),
        "activation": _activation(config.get("activation_function", "gelu_new")),
        "gated_mlp": False,
        "positions": "learned",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tied_head": bool(config.get("tie_word_embeddings", True)),
    }


def _gpt2_out(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "tie_word_embeddings": config.tied_head,
    }


def _neox(config: Json) -> dict[str, Any]:
    common = _common({**config, "hidden_act": config.get("hidden_act", "gelu")})
    parameters = config.get("rope_parameters") or {}
    fraction = float(parameters.get("partial_rotary_factor") or config.get("rotary_pct") or 0.25)
    theta = float(parameters.get("rope_theta") or config.get("rotary_emb_base") or 10_000.0)
    bias = bool(config.get("attention_bias", True))
    return common | {
        "norm": "layer",
        "norm_eps": float(config.get("layer_norm_eps", 1e-5)),
        "gated_mlp": False,
        "rope_theta": theta,
        "rotary_dim": int(common["head_dim"] * fraction),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": True,
        "parallel_residual": bool(config.get("use_parallel_residual", True)),
    }


def _neox_out(config: ModelConfig) -> dict[str, Any]:
    fraction = config.rotary_size / config.head_dim
    out = _common_out(config)
    out["rope_parameters"] = out["rope_parameters"] | {"partial_rotary_factor": fraction}
    return out | {
        "hidden_act": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "layer_norm_eps": config.norm_eps,
        "rotary_pct": fraction,
        "rotary_emb_base": config.rope_theta,
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel_residual,
    }


def _linear(hf: str, ours: str | tuple[str, ...], kind: str = "linear", fusion: str = "rows") -> tuple[Tensor, Tensor]:
    """A weight and its bias (which is there only where the model has one)."""
    leaves = (ours,) if isinstance(ours, str) else ours
    return (
        Tensor(f"{hf}.weight", leaves, kind, fusion),
        Tensor(f"{hf}.bias", tuple(f"{n}_bias" for n in leaves), "plain", fusion),
    )


def _projections(names: Mapping[str, str]) -> tuple[Tensor, ...]:
    return tuple(t for hf, ours in names.items() for t in _linear(f"layers.{{i}}.{hf}", ours))


_ATTENTION = {f"self_attn.{p}": p for p in ("q_proj", "k_proj", "v_proj", "o_proj")}
_MLP = {f"mlp.{p}": p for p in ("gate_proj", "up_proj", "down_proj")}
_OUTER = (
    Tensor("embed_tokens.weight", ("embed/tokens",)),
    Tensor("norm.weight", ("final_norm/weight",)),
)
_LLAMA = (
    Tensor("layers.{i}.input_layernorm.weight", ("input_norm",)),
    Tensor("layers.{i}.post_attention_layernorm.weight", ("mlp_norm",)),
    *_projections(_ATTENTION | _MLP),
)
_QK_NORM = (
    Tensor("layers.{i}.self_attn.q_norm.weight", ("q_norm",)),
    Tensor("layers.{i}.self_attn.k_norm.weight", ("k_norm",)),
)
_GEMMA2 = (
    Tensor("layers.{i}.input_layernorm.weight", ("input_norm",)),
    Tensor("layers.{i}.post_attention_layernorm.weight", ("post_attention_norm",)),
    Tensor("layers.{i}.pre_feedforward_layernorm.weight", ("mlp_norm",)),
    Tensor("layers.{i}.post_feedforward_layernorm.weight", ("post_mlp_norm",)),
    *_projections(_ATTENTION | _MLP),
)
_PHI3 = (
    Tensor("layers.{i}.input_layernorm.weight", ("input_norm",)),
    Tensor("layers.{i}.post_attention_layernorm.weight", ("mlp_norm",)),
    Tensor("layers.{i}.self_attn.qkv_proj.weight", ("q_proj", "k_proj", "v_proj"), "linear"),
    Tensor("layers.{i}.self_attn.o_proj.weight", ("o_proj",), "linear"),
    Tensor("layers.{i}.mlp.gate_up_proj.weight", ("gate_proj", "up_proj"), "linear"),
    Tensor("layers.{i}.mlp.down_proj.weight", ("down_proj",), "linear"),
)
_GPT2 = (
    Tensor("h.{i}.ln_1.weight", ("input_norm",)),
    Tensor("h.{i}.ln_1.bias", ("input_norm_bias",)),
    Tensor("h.{i}.ln_2.weight", ("mlp_norm",)),
    Tensor("h.{i}.ln_2.bias", ("mlp_norm_bias",)),
    *_linear("h.{i}.attn.c_attn", ("q_proj", "k_proj", "v_proj"), "conv1d"),
    *_linear("h.{i}.attn.c_proj", "o_proj", "conv1d"),
    *_linear("h.{i}.mlp.c_fc", "up_proj", "conv1d"),
    *_linear("h.{i}.mlp.c_proj", "down_proj", "conv1d"),
)
_GPT2_OUTER = (
    Tensor("wte.weight", ("embed/tokens",)),
    Tensor("wpe.weight", ("embed/positions",)),
    Tensor("ln_f.weight", ("final_norm/weight",)),
    Tensor("ln_f.bias", ("final_norm/weight_bias",)),
)
_NEOX = (
    Tensor("layers.{i}.input_layernorm.weight", ("input_norm",)),
    Tensor("layers.{i}.input_layernorm.bias", ("input_norm_bias",)),
    Tensor("layers.{i}.post_attention_layernorm.weight", ("mlp_norm",)),
    Tensor("layers.{i}.post_attention_layernorm.bias", ("mlp_norm_bias",)),
    *_linear("layers.{i}.attention.query_key_value", ("q_proj", "k_proj", "v_proj"), "linear", "heads"),
    *_linear("layers.{i}.attention.dense", "o_proj"),
    *_linear("layers.{i}.mlp.dense_h_to_4h", "up_proj"),
    *_linear("layers.{i}.mlp.dense_4h_to_h", "down_proj"),
)
_NEOX_OUTER = (
    Tensor("embed_in.weight", ("embed/tokens",)),
    Tensor("final_layer_norm.weight", ("final_norm/weight",)),
    Tensor("final_layer_norm.bias", ("final_norm/weight_bias",)),
)

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _llama, _llama_out, _LLAMA, _OUTER),
    "mistral": Family("MistralForCausalLM", _mistral, _mistral_out, _LLAMA, _OUTER),
    "qwen2": Family("Qwen2ForCausalLM", _qwen2, _qwen_out, _LLAMA, _OUTER),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _qwen3,
        lambda c: _qwen_out(c) | {"attention_bias": c.qkv_bias},
        _LLAMA + _QK_NORM,
        _OUTER,
    ),
    "gemma2": Family("Gemma2ForCausalLM", _gemma2, _gemma2_out, _GEMMA2, _OUTER),
    "gemma3_text": Family("Gemma3ForCausalLM", _gemma3, _gemma3_out, _GEMMA2 + _QK_NORM, _OUTER),
    "phi3": Family("Phi3ForCausalLM", _phi3, _phi3_out, _PHI3, _OUTER),
    "gpt2": Family(
        "GPT2LMHeadModel",
        _gpt2,
        _gpt2_out,
        _GPT2,
        _GPT2_OUTER,
        trunk="transformer.",
        ignored=(".attn.bias", ".attn.masked_bias"),
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        _neox,
        _neox_out,
        _NEOX,
        _NEOX_OUTER,
        head="embed_out",
        trunk="gpt_neox.",
        ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    ),
}


def config_from_json(config: Json, where: str) -> ModelConfig:
    """Our config from a parsed config.json.

    Raises:
      ModelError: a family that is not in the table, or a missing or wrong field; names the file.
    """
    kind = str(config.get("model_type", ""))
    family = FAMILIES.get(kind)
    if family is None:
        raise ModelError(f"{where}: model_type {kind!r} is not supported; expected one of {', '.join(FAMILIES)}")
    try:
        arguments = family.read(config)
        return ModelConfig(family=kind, **(arguments | special_tokens(config)))
    except KeyError as error:
        raise ModelError(f"{where}: the field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where}: {error}") from None


def special_tokens(config: Json) -> dict[str, Any]:
    """Token ids from a config.json or generation_config.json."""
    eos = config.get("eos_token_id")
    eos = () if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),)
    bos, pad = config.get("bos_token_id"), config.get("pad_token_id")
    return {"eos_ids": eos, "bos_id": -1 if bos is None else int(bos), "pad_id": -1 if pad is None else int(pad)}


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model."""
    family = FAMILIES[config.family]
    eos: Any = None
    if config.eos_ids:
        eos = config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids)
    return family.write(config) | {
        "model_type": config.family,
        "architectures": [family.architecture],
        "bos_token_id": config.bos_id if config.bos_id >= 0 else None,
        "eos_token_id": eos,
        "pad_token_id": config.pad_id if config.pad_id >= 0 else None,
        "dtype": config.param_dtype,
        "torch_dtype": config.param_dtype,
    }


def unfuse(tensor: Tensor, array: np.ndarray, sizes: list[int], heads: int) -> list[np.ndarray]:
    """The leaves that lie in one tensor, each in our layout ([in, out] for projections)."""
    if tensor.kind == "linear":
        array = array.T
    if len(tensor.leaves) == 1:
        return [array]
    if tensor.fusion == "heads":
        shape = (*array.shape[:-1], heads, len(tensor.leaves), -1)
        parts = np.moveaxis(array.reshape(shape), -2, 0)
        return [p.reshape(*array.shape[:-1], -1) for p in parts]
    return np.split(array, np.cumsum(sizes)[:-1], axis=-1)


def fuse(tensor: Tensor, leaves: list[np.ndarray], heads: int) -> np.ndarray:
    """The inverse of `unfuse`."""
    array = leaves[0]
    if len(leaves) > 1 and tensor.fusion == "heads":
        parts = [p.reshape(*p.shape[:-1], heads, 1, -1) for p in leaves]
        array = np.concatenate(parts, axis=-2).reshape(*leaves[0].shape[:-1], -1)
    elif len(leaves) > 1:
        array = np.concatenate(leaves, axis=-1)
    return np.ascontiguousarray(array.T if tensor.kind == "linear" else array)
