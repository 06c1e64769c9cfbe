"""A model's configuration as metadata of a GGUF file, and what the file does not say of it."""

import math
from typing import Any

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig, RopeScaling
from jaxalign.models.gguf.families import ARCHITECTURES, NAMES, llama3_factors


def metadata_of(config: ModelConfig) -> dict[str, Any]:
    """The keys of a model's architecture, without the prefix; ints, floats and lists of bools.

    Raises:
      ModelError: a family or setting that llama.cpp does not have.
    """
    if config.family not in NAMES:
        raise ModelError(
            f"a {config.family} model cannot be written as GGUF; expected one of {', '.join(sorted(NAMES))}"
        )
    row = ARCHITECTURES[NAMES[config.family]]
    scaling = config.rope_scaling
    keys: dict[str, Any] = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.rotary_size,
        "vocab_size": config.vocab_size,
    }
    if scaling.kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    elif scaling.kind == "llama3":
        keys["rope.scaling.original_context_length"] = scaling.original_positions
    if config.sliding_window and config.family in ("mistral", "gemma2", "gemma3_text", "phi3"):
        keys["attention.sliding_window"] = config.sliding_window
    if row.window_layers and config.sliding_window:
        every = row.window_layers
        if config.layer_slides != tuple((i + 1) % every != 0 for i in range(config.num_layers)):
            keys["attention.sliding_window_pattern"] = list(config.layer_slides)
    if config.family == "gemma2":
        keys["attn_logit_softcapping"] = float(config.attention_softcap)
    if config.final_softcap or config.family == "gemma2":
        keys["final_logit_softcapping"] = float(config.final_softcap)
    if config.rope_theta_local is not None:
        keys["rope.freq_base_swa"] = float(config.rope_theta_local)
    return keys


def factors_of(config: ModelConfig) -> np.ndarray | None:
    """The tensor `rope_freqs.weight` of a model; None where it has none."""
    scaling: RopeScaling = config.rope_scaling
    if scaling.kind != "llama3":
        return None
    return llama3_factors(
        config.rope_theta,
        config.rotary_size,
        factor=scaling.factor,
        low_freq_factor=scaling.low_frequency_factor,
        high_freq_factor=scaling.high_frequency_factor,
        original_max_position_embeddings=scaling.original_positions,
    ).astype(np.float32)


def differences(config: ModelConfig, again: ModelConfig) -> list[str]:
    """Fields in which what a file says of a model differs from the model, beside dtypes and how it is computed."""
    found = []
    for name in COMPARED:
        ours, theirs = (_effective(one, name) for one in (config, again))
        same = ours == theirs
        if isinstance(ours, float) and isinstance(theirs, float):
            same = math.isclose(ours, theirs, rel_tol=1e-6)
        if not same:
            found.append(f"{name} ({ours}, read as {theirs})")
    return found


COMPARED = (
    "vocab_size hidden_size intermediate_size num_layers num_heads num_kv_heads head_dim max_positions norm norm_eps "
    "norm_offset activation gated_mlp positions rope_theta rope_scaling local_theta rotary_size sliding_window "
    "layer_slides qk_norm qkv_bias out_bias mlp_bias head_bias parallel_residual post_norms attention_softcap "
    "final_softcap scale embedding_scale tied_head stops"
).split()


def _effective(config: ModelConfig, name: str) -> Any:
    if name == "scale":
        return config.query_scale or config.head_dim**-0.5
    if name == "local_theta":
        return config.rope_theta_local or config.rope_theta
    if name == "stops":
        return set(config.eos_ids)
    if name == "sliding_window" and not any(config.layer_slides):
        return 0
    if name == "rope_scaling":
        return _scaling(config)
    return getattr(config, name)


def _scaling(config: ModelConfig) -> Any:
    factors = factors_of(config)
    if factors is None:
        return (config.rope_scaling.kind, float(config.rope_scaling.factor))
    return tuple(float(f"{x:.4e}") for x in factors)
