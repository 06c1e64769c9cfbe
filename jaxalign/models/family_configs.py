"""config.json of each family <-> `ModelConfig`, both ways.

Readers take what transformers 4 and 5 wrote; writers write what both read.
"""

from collections.abc import Mapping
from typing import Any

from jaxalign.models.config import ModelConfig
from jaxalign.models.rope_configs import partial_rotary, read_rope, write_rope

Json = Mapping[str, Any]


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
        raise ValueError(f"activation {name!r} is not supported; expected one of {', '.join(known)}")
    return known[name]


def common_fields(config: Json, *, theta: float = 10_000.0, rotary: float | None = None) -> dict[str, Any]:
    """Fields of all families with rotary positions.

    Args:
      config: the body.
      theta: rotary base where none is given.
      rotary: the part of a head that rotates, of families that read it; in others it must be all.

    Raises:
      ValueError: a setting that is not supported.
    """
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    if rotary is None and (part := partial_rotary(config)) != 1.0:
        raise ValueError(f"partial_rotary_factor = {part}: not supported in this family; expected 1")
    return {
        "vocab_size": int(config["vocab_size"]),
        "hidden_size": int(config["hidden_size"]),
        "intermediate_size": int(config["intermediate_size"]),
        "num_layers": int(config["num_hidden_layers"]),
        "num_heads": heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": head_dim,
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "activation": _activation(config.get("hidden_activation") or config.get("hidden_act") or "silu"),
        **read_rope(config, theta=theta),
        **({} if rotary is None else {"rotary_dim": int(head_dim * rotary)}),
        "tied_head": bool(config.get("tie_word_embeddings", False)),
    }


def common_out(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `common_fields`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation),
        "tie_word_embeddings": config.tied_head,
        **write_rope(config),
    }


def read_llama(config: Json) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return common_fields(config) | {
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias", False)),
    }


def write_llama(config: ModelConfig) -> dict[str, Any]:
    return common_out(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def read_mistral(config: Json) -> dict[str, Any]:
    return common_fields(config) | {"sliding_window": int(config.get("sliding_window") or 0)}


def write_mistral(config: ModelConfig) -> dict[str, Any]:
    return common_out(config) | {"sliding_window": config.sliding_window or None}


def layer_types(config: Json, layers: int) -> tuple[bool, ...]:
    """Per layer, whether it slides; empty where `layer_types` is not there.

    Raises:
      ValueError: another kind of attention, or another number of layers.
    """
    types = config.get("layer_types") or ()
    if unknown := sorted(set(types) - {"sliding_attention", "full_attention"}):
        raise ValueError(
            f"layer_types: {unknown[0]} is not supported; expected full_attention or sliding_attention"
        )
    if types and len(types) != layers:
        raise ValueError(f"layer_types has {len(types)} entries for {layers} layers")
    return tuple(t == "sliding_attention" for t in types)


def layer_types_out(config: ModelConfig) -> list[str]:
    """The inverse of `layer_types`."""
    return ["sliding_attention" if slides else "full_attention" for slides in config.layer_slides]


def read_qwen2(config: Json) -> dict[str, Any]:
    common = common_fields(config)
    window = int(config.get("sliding_window") or 0) if config.get("use_sliding_window") else 0
    sliding = ()
    if window:
        first = int(config.get("max_window_layers", 0))
        sliding = layer_types(config, common["num_layers"]) or tuple(
            i >= first for i in range(common["num_layers"])
        )
    return common | {"qkv_bias": True, "sliding_window": window, "sliding_layers": sliding}


def write_qwen(config: ModelConfig) -> dict[str, Any]:
    types = layer_types_out(config)
    return common_out(config) | {
        "use_sliding_window": bool(config.sliding_window),
        "sliding_window": config.sliding_window or None,
        "max_window_layers": types.index("sliding_attention") if config.sliding_window else config.num_layers,
        "layer_types": types,
    }


def read_qwen3(config: Json) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return read_qwen2(config) | {"qkv_bias": bias, "out_bias": bias, "qk_norm": True}


def read_gemma(config: Json) -> dict[str, Any]:
    common = common_fields(config)
    activation = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    bias = bool(config.get("attention_bias", False))
    return common | {
        "tied_head": bool(config.get("tie_word_embeddings", True)),
        "norm_offset": 1.0,
        # The first releases said "gelu" and meant the tanh form; transformers reads them so.
        "activation": "gelu_tanh" if activation == "gelu" else _activation(activation),
        "qkv_bias": bias,
        "out_bias": bias,
        "embedding_scale": float(common["hidden_size"]) ** 0.5,
    }


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    activation = {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation)
    return common_out(config) | {
        "hidden_activation": activation,
        "hidden_act": activation,
        "attention_bias": config.qkv_bias,
    }


def read_gemma2(config: Json) -> dict[str, Any]:
    common = common_fields(config)
    layers = common["num_layers"]
    sliding = layer_types(config, layers) or tuple(i % 2 == 0 for i in range(layers))
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


def write_gemma2(config: ModelConfig) -> dict[str, Any]:
    return common_out(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": config.sliding_window,
        "layer_types": layer_types_out(config),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.final_softcap or None,
        "query_pre_attn_scalar": round(config.query_scale**-2),
    }


# What transformers takes where `text_config` says nothing, as in the folders of the 4B, 12B and 27B.
_GEMMA3_TEXT = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
}


def text_part(config: Json) -> Json:
    """The config.json of the language model in a folder that also reads images (Gemma 3); others as they are.

    Raises:
      ValueError: there is no such part.
    """
    if config.get("model_type") != "gemma3":
        return config
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise ValueError("text_config: missing; expected that of a Gemma 3 model")
    above = {
        k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(k) is not None
    }
    tied = {"tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))}
    return {**_GEMMA3_TEXT, **text, **above, **tied, "model_type": "gemma3_text"}


def read_gemma3(config: Json) -> dict[str, Any]:
    if config.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention = true is not supported; expected false")
    layers = int(config["num_hidden_layers"])
    pattern = int(config.get("sliding_window_pattern", 6))
    sliding = layer_types(config, layers) or tuple((i + 1) % pattern != 0 for i in range(layers))
    base = float(config.get("rope_local_base_freq") or 10_000.0)
    return read_gemma2({"rope_theta": 1_000_000.0, **config}) | {
        "qk_norm": True,
        "sliding_layers": sliding,
        "rope_theta_local": _local_theta(config, base),
    }


def _local_theta(config: Json, theta: float) -> float:
    """The rotary base of sliding-window layers, which are not scaled; `theta` where they have none of their own."""
    parameters = (config.get("rope_parameters") or {}).get("sliding_attention")
    local = read_rope({"rope_parameters": parameters}, theta=theta)
    if local["rope_scaling"].kind != "none":
        raise ValueError(
            "rope_parameters.sliding_attention: scaling is not supported; expected rope_type default"
        )
    return local["rope_theta"]


def _rope_by_kind(config: ModelConfig) -> dict[str, Any]:
    """`write_rope` of families with settings by kind of layer."""
    rope = write_rope(config)
    local = {"rope_type": "default", "rope_theta": config.rope_theta_local}
    both = {"full_attention": rope["rope_parameters"], "sliding_attention": local}
    return rope | {"rope_parameters": both}


def write_gemma3(config: ModelConfig) -> dict[str, Any]:
    local = {"rope_local_base_freq": config.rope_theta_local}
    return write_gemma2(config) | _rope_by_kind(config) | local


def read_phi3(config: Json) -> dict[str, Any]:
    common = common_fields(config, rotary=partial_rotary(config))
    return common | {"sliding_window": int(config.get("sliding_window") or 0)}


def write_phi3(config: ModelConfig) -> dict[str, Any]:
    partial = config.rotary_size / config.head_dim
    out = common_out(config) | {
        "sliding_window": config.sliding_window or None,
        "partial_rotary_factor": partial,
        "pad_token_id": config.pad_id if config.pad_id >= 0 else None,
    }
    out.setdefault("original_max_position_embeddings", out["max_position_embeddings"])
    if config.rope_scaling.kind == "longrope":
        # transformers 4 takes these three fields and no other.
        out["rope_scaling"]["type"] = out["rope_scaling"].pop("rope_type")
    out["rope_parameters"] = out["rope_parameters"] | {"partial_rotary_factor": partial}
    return out


def read_olmo2(config: Json) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return common_fields({"rms_norm_eps": 1e-5, **config}) | {
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": True,
        "qk_norm_over": "projection",
        "pre_norms": False,
        "post_norms": True,
    }


def write_olmo2(config: ModelConfig) -> dict[str, Any]:
    return common_out(config) | {"attention_bias": config.qkv_bias}


def read_olmo3(config: Json) -> dict[str, Any]:
    theta = float(config.get("rope_theta") or 500_000.0)
    common = read_olmo2({"rope_theta": theta, **config})
    layers = common["num_layers"]
    window = config.get("sliding_window", 4096)
    sliding = layer_types(config, layers) or tuple((i + 1) % 4 != 0 for i in range(layers))
    if window is None and any(sliding):
        raise ValueError("sliding_window is null, but layer_types has sliding_attention")
    return common | {
        "sliding_window": int(window or 0) if any(sliding) else 0,
        "sliding_layers": sliding if any(sliding) else (),
        "rope_theta_local": _local_theta(config, theta),
    }


def write_olmo3(config: ModelConfig) -> dict[str, Any]:
    kinds = {"sliding_window": config.sliding_window or None, "layer_types": layer_types_out(config)}
    return write_olmo2(config) | _rope_by_kind(config) | kinds


def read_smollm3(config: Json) -> dict[str, Any]:
    llama = read_llama({"rope_theta": 2_000_000.0, "tie_word_embeddings": True, **config})
    layers, interval = llama["num_layers"], int(config.get("no_rope_layer_interval") or 4)
    given = config.get("no_rope_layers")
    # Its name notwithstanding, 1 is a layer that rotates.
    rotates = tuple(map(bool, given or [(i + 1) % interval for i in range(layers)]))
    window = int(config.get("sliding_window") or 0) if config.get("use_sliding_window") else 0
    sliding = layer_types(config, layers)
    if any(sliding) and not window:
        raise ValueError(
            "layer_types has sliding_attention; expected use_sliding_window true and a sliding_window"
        )
    sliding = sliding or tuple(window > 0 and not turns for turns in rotates)
    return llama | {
        "rotary_layers": rotates,
        "sliding_window": window if any(sliding) else 0,
        "sliding_layers": sliding if any(sliding) else (),
    }


def write_smollm3(config: ModelConfig) -> dict[str, Any]:
    return write_llama(config) | {
        "no_rope_layers": [int(turns) for turns in config.rotary_layers],
        "use_sliding_window": config.sliding_window > 0,
        "sliding_window": config.sliding_window or None,
        "layer_types": layer_types_out(config),
    }


def read_glm(config: Json) -> dict[str, Any]:
    config = {"rms_norm_eps": 1.5625e-7, "head_dim": 128, **config}
    common = common_fields(config, rotary=partial_rotary(config, 0.5))
    return common | {"rotary_interleaved": True, "qkv_bias": bool(config.get("attention_bias", True))}


def write_glm(config: ModelConfig) -> dict[str, Any]:
    partial = config.rotary_size / config.head_dim
    out = common_out(config) | {"attention_bias": config.qkv_bias, "partial_rotary_factor": partial}
    out["rope_parameters"] = out["rope_parameters"] | {"partial_rotary_factor": partial}
    return out


def read_gpt2(config: Json) -> dict[str, Any]:
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


def write_gpt2(config: ModelConfig) -> dict[str, Any]:
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


def read_neox(config: Json) -> dict[str, Any]:
    parameters = config.get("rope_parameters") or {}
    fraction = float(parameters.get("partial_rotary_factor") or config.get("rotary_pct") or 0.25)
    theta = float(parameters.get("rope_theta") or config.get("rotary_emb_base") or 10_000.0)
    common = common_fields({**config, "hidden_act": config.get("hidden_act", "gelu")}, rotary=fraction)
    bias = bool(config.get("attention_bias", True))
    return common | {
        "norm": "layer",
        "norm_eps": float(config.get("layer_norm_eps", 1e-5)),
        "gated_mlp": False,
        "rope_theta": theta,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": True,
        "parallel_residual": bool(config.get("use_parallel_residual", True)),
    }


def write_neox(config: ModelConfig) -> dict[str, Any]:
    fraction = config.rotary_size / config.head_dim
    out = common_out(config)
    out["rope_parameters"] = out["rope_parameters"] | {"partial_rotary_factor": fraction}
    return out | {
        "hidden_act": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "layer_norm_eps": config.norm_eps,
        "rotary_pct": fraction,
        "rotary_emb_base": config.rope_theta,
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel_residual,
    }
