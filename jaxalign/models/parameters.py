"""Names and shapes of a decoder's parameters: the same names for every family."""

from typing import Any

from jaxalign.models.config import ModelConfig
from jaxalign.models.mixture import expert_shapes


def parameter_shapes(config: ModelConfig) -> dict[str, Any]:
    """Shapes of all leaves, as a tree of tuples; layers are stacked [L, ...]."""
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_layers
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "q_proj": (d, q),
        "k_proj": (d, kv),
        "v_proj": (d, kv),
        "o_proj": (q, d),
    }
    if config.mixture.experts:
        layer |= expert_shapes(config)
    else:
        layer |= {"up_proj": (d, f), "down_proj": (f, d)}
    if config.gated_mlp and not config.mixture.experts:
        layer["gate_proj"] = (d, f)
    if config.pre_norms:
        layer |= {"input_norm": (d,), "mlp_norm": (d,)}
    if config.post_norms:
        layer |= {"post_attention_norm": (d,), "post_mlp_norm": (d,)}
    if config.qk_norm:
        whole = config.qk_norm_over == "projection"
        layer |= {"q_norm": (q if whole else config.head_dim,), "k_norm": (kv if whole else config.head_dim,)}
    if config.norm == "layer":
        layer |= {"input_norm_bias": (d,), "mlp_norm_bias": (d,)}
    if config.attention_sinks:
        layer["sinks"] = (config.num_heads,)
    biases = {"q_proj": config.qkv_bias, "k_proj": config.qkv_bias, "v_proj": config.qkv_bias}
    biases |= {"o_proj": config.out_bias, "up_proj": config.mlp_bias, "down_proj": config.mlp_bias}
    layer |= {name + "_bias": (layer[name][1],) for name, there in biases.items() if there}
    if config.mlp_bias and config.gated_mlp:
        layer["gate_proj_bias"] = (f,)
    tree: dict[str, Any] = {
        "embed": {"tokens": (config.vocab_size, d)},
        "layers": {name: (layers, *shape) for name, shape in layer.items()},
        "final_norm": {"weight": (d,)},
    }
    if config.norm == "layer":
        tree["final_norm"]["weight_bias"] = (d,)
    if config.positions == "learned":
        tree["embed"]["positions"] = (config.folder_positions or config.max_positions, d)
    if not config.tied_head:
        tree["head"] = {"weight": (config.vocab_size, d)}
    if config.head_bias:
        tree.setdefault("head", {})["bias"] = (config.vocab_size,)
    return tree
