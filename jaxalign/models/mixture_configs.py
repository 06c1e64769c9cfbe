"""config.json of the families with mixtures of experts <-> `ModelConfig`, both ways."""

from collections.abc import Mapping
from typing import Any

from jaxalign.models.config import Mixture, ModelConfig
from jaxalign.models.family_configs import (
    common_fields,
    common_out,
    layer_types,
    layer_types_out,
    read_mistral,
    write_mistral,
)

Json = Mapping[str, Any]


def _mixture(config: Json, **more: Any) -> Mixture:
    # transformers 4 and 5 call it otherwise in Qwen3-MoE.
    named = [config[key] for key in ("num_local_experts", "num_experts") if config.get(key) is not None]
    if not named:
        raise KeyError("num_local_experts")
    if len(set(named)) > 1:
        raise ValueError(f"num_local_experts = {named[0]} is not num_experts = {named[1]}")
    if float(config.get("router_jitter_noise") or 0.0):
        raise ValueError("router_jitter_noise is not supported; expected 0")
    if int(named[0]) < 1:
        raise ValueError(f"num_experts = {named[0]}; expected 1 or more")
    return Mixture(
        experts=int(named[0]),
        per_token=int(config["num_experts_per_tok"]),
        balance=float(config.get("router_aux_loss_coef", 0.001)),
        **more,
    )


def read_mixtral(config: Json) -> dict[str, Any]:
    common = read_mistral({"rms_norm_eps": 1e-5, "max_position_embeddings": 131_072, **config})
    return common | {"mixture": _mixture(config)}


def write_mixtral(config: ModelConfig) -> dict[str, Any]:
    return write_mistral(config) | {
        "num_local_experts": config.mixture.experts,
        "num_experts_per_tok": config.mixture.per_token,
        "router_aux_loss_coef": config.mixture.balance,
    }


def read_qwen3_moe(config: Json) -> dict[str, Any]:
    if int(config.get("decoder_sparse_step", 1)) != 1 or config.get("mlp_only_layers"):
        raise ValueError(
            "decoder_sparse_step and mlp_only_layers: layers without experts are not supported; expected 1 and none"
        )
    bias = bool(config.get("attention_bias", False))
    window = int(config.get("sliding_window") or 0) if config.get("use_sliding_window") else 0
    normalized = bool(config.get("norm_topk_prob", False))
    dense = int(config["intermediate_size"])
    return common_fields(config) | {
        "intermediate_size": int(config["moe_intermediate_size"]),
        "mixture": _mixture(config, normalized=normalized, dense_size=dense),
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": True,
        "sliding_window": window,
    }


def write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    return common_out(config) | {
        "intermediate_size": config.mixture.dense_size,
        "moe_intermediate_size": config.intermediate_size,
        "num_experts": config.mixture.experts,
        "num_local_experts": config.mixture.experts,
        "num_experts_per_tok": config.mixture.per_token,
        "norm_topk_prob": config.mixture.normalized,
        "router_aux_loss_coef": config.mixture.balance,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "attention_bias": config.qkv_bias,
        "use_sliding_window": config.sliding_window > 0,
        "sliding_window": config.sliding_window or None,
    }


def read_gpt_oss(config: Json) -> dict[str, Any]:
    method = (config.get("quantization_config") or {}).get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise ValueError(f"quantization_config.quant_method {method!r} is not supported; expected mxfp4")
    if not config.get("rope_scaling") and not config.get("rope_parameters"):
        if "rope_scaling" in config:
            raise ValueError(
                "rope_scaling is null, which transformers 4 and 5 read differently; expected its fields"
            )
        yarn = {
            "rope_type": "yarn",
            "factor": 32.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        }
        config = {**config, "rope_scaling": yarn}
    defaults = {
        "rms_norm_eps": 1e-5,
        "head_dim": 64,
        "rope_theta": 150_000.0,
        "max_position_embeddings": 131_072,
    }
    common = common_fields({**defaults, **config})
    if common["activation"] != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']!r} is not supported; expected silu")
    layers, bias = common["num_layers"], bool(config.get("attention_bias", True))
    sliding = layer_types(config, layers) or tuple(i % 2 == 0 for i in range(layers))
    window = int(config.get("sliding_window", 128) or 0)
    if any(sliding) and not window:
        raise ValueError("sliding_window is null, but layer_types has sliding_attention")
    mixture = _mixture(
        config,
        biased=True,
        limit=float(config.get("swiglu_limit", 7.0)),
        alpha=float(config.get("swiglu_alpha", 1.702)),
    )
    return common | {
        "mixture": mixture,
        "qkv_bias": bias,
        "out_bias": bias,
        "attention_sinks": True,
        "sliding_window": window if any(sliding) else 0,
        "sliding_layers": sliding if any(sliding) else (),
    }


def write_gpt_oss(config: ModelConfig) -> dict[str, Any]:
    return common_out(config) | {
        "num_local_experts": config.mixture.experts,
        "num_experts_per_tok": config.mixture.per_token,
        "router_aux_loss_coef": config.mixture.balance,
        "swiglu_limit": config.mixture.limit,
        "swiglu_alpha": config.mixture.alpha,
        "attention_bias": config.qkv_bias,
        "sliding_window": config.sliding_window or None,
        "layer_types": layer_types_out(config),
    }
