"""Model families as tables: how config.json and tensor names of each map to jaxalign's.

A new family needs its config mapping (both ways) and the names of its tensors, not a copy of the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig
from jaxalign.models.family_configs import (
    read_gemma,
    read_gemma2,
    read_gemma3,
    read_glm,
    read_gpt2,
    read_llama,
    read_mistral,
    read_neox,
    read_olmo2,
    read_olmo3,
    read_phi3,
    read_qwen2,
    read_qwen3,
    read_smollm3,
    text_part,
    write_gemma,
    write_gemma2,
    write_gemma3,
    write_glm,
    write_gpt2,
    write_llama,
    write_mistral,
    write_neox,
    write_olmo2,
    write_olmo3,
    write_phi3,
    write_qwen,
    write_smollm3,
)
from jaxalign.models.mixture import EXPERTS
from jaxalign.models.mixture_configs import (
    read_gpt_oss,
    read_mixtral,
    read_qwen3_moe,
    write_gpt_oss,
    write_mixtral,
    write_qwen3_moe,
)
from jaxalign.models.stops import eos_ids

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face folder and the parameters in it.

    Attributes:
      name: its name there; {i} is the layer. One tensor for each expert ({e}) has an expert's part of its leaf.
      leaves: our names; several where the tensor is fused.
      kind: `linear` ([out, in] there, transposed here), `conv1d` ([in, out] in both) or `plain`.
      fusion: how leaves lie in it: `rows` one after another, `heads` (q, k, v by turns, head by head) or `turns` (by
        turns, number by number).
    """

    name: str
    leaves: tuple[str, ...]
    kind: str = "plain"
    fusion: str = "rows"


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
      architecture: class name for language models.
      read: config.json -> arguments of `ModelConfig`.
      write: `ModelConfig` -> config.json.
      layer: tensors of a layer.
      outer: tensors outside the layers; our names are `group/leaf`.
      head: name of the untied vocabulary projection.
      trunk: prefix of all tensors but heads.
      ignored: endings of tensors that hold no parameters.
      beside: modules of a model with images whose text part this is; their tensors are left out.
      classifier: class name for reward models; "" takes ForSequenceClassification after the architecture's stem.
      token_head: name of the head of ForTokenClassification; "" where transformers has no such class.
    """

    architecture: str
    read: Callable[[Json], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    layer: tuple[Tensor, ...]
    outer: tuple[Tensor, ...]
    head: str = "lm_head"
    trunk: str = "model."
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    beside: tuple[str, ...] = ()
    classifier: str = ""
    token_head: str = "score"

    @property
    def reward_architecture(self) -> str:
        """Class name of the `...ForSequenceClassification` form."""
        return self.classifier or f"{self._stem}ForSequenceClassification"

    @property
    def token_architecture(self) -> str:
        """Class name of the `...ForTokenClassification` form; "" where there is none."""
        return f"{self._stem}ForTokenClassification" if self.token_head else ""

    @property
    def _stem(self) -> str:
        return self.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")


def _linear(
    hf: str, ours: str | tuple[str, ...], kind: str = "linear", fusion: str = "rows"
) -> tuple[Tensor, Tensor]:
    """A weight and its bias (which is there only where the model has one)."""
    leaves = (ours,) if isinstance(ours, str) else ours
    return (
        Tensor(f"{hf}.weight", leaves, kind, fusion),
        Tensor(f"{hf}.bias", tuple(f"{n}_bias" for n in leaves), "plain", fusion),
    )


def _projections(names: Mapping[str, str]) -> tuple[Tensor, ...]:
    return tuple(t for hf, ours in names.items() for t in _linear(f"layers.{{i}}.{hf}", ours))


def _experts(block: str, gate: str, up: str, down: str) -> tuple[Tensor, ...]:
    """A tensor for each expert of each of its three matrices."""
    names = zip((gate, up, down), EXPERTS, strict=True)
    return tuple(
        Tensor(f"layers.{{i}}.{block}.experts.{{e}}.{hf}.weight", (ours,), "linear") for hf, ours in names
    )


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
_OLMO2 = (
    Tensor("layers.{i}.post_attention_layernorm.weight", ("post_attention_norm",)),
    Tensor("layers.{i}.post_feedforward_layernorm.weight", ("post_mlp_norm",)),
    *_projections(_ATTENTION | _MLP),
    *_QK_NORM,
)
_GLM = (
    Tensor("layers.{i}.input_layernorm.weight", ("input_norm",)),
    Tensor("layers.{i}.post_attention_layernorm.weight", ("mlp_norm",)),
    *_projections(_ATTENTION),
    Tensor("layers.{i}.mlp.gate_up_proj.weight", ("gate_proj", "up_proj"), "linear"),
    Tensor("layers.{i}.mlp.down_proj.weight", ("down_proj",), "linear"),
)
_GLM4_NORMS = (
    Tensor("layers.{i}.post_self_attn_layernorm.weight", ("post_attention_norm",)),
    Tensor("layers.{i}.post_mlp_layernorm.weight", ("post_mlp_norm",)),
)
_MIXTRAL = (
    *_LLAMA[:2],
    *_projections(_ATTENTION),
    *_projections({"block_sparse_moe.gate": "router"})[:1],
    *_experts("block_sparse_moe", "w1", "w3", "w2"),
)
_QWEN3_MOE = (
    *_LLAMA[:2],
    *_projections(_ATTENTION),
    *_QK_NORM,
    *_projections({"mlp.gate": "router"})[:1],
    *_experts("mlp", "gate_proj", "up_proj", "down_proj"),
)
_GPT_OSS = (
    *_LLAMA[:2],
    *_projections(_ATTENTION),
    Tensor("layers.{i}.self_attn.sinks", ("sinks",)),
    *_projections({"mlp.router": "router"}),
    Tensor("layers.{i}.mlp.experts.gate_up_proj", ("experts_gate", "experts_up"), "plain", "turns"),
    Tensor(
        "layers.{i}.mlp.experts.gate_up_proj_bias", ("experts_gate_bias", "experts_up_bias"), "plain", "turns"
    ),
    Tensor("layers.{i}.mlp.experts.down_proj", ("experts_down",)),
    Tensor("layers.{i}.mlp.experts.down_proj_bias", ("experts_down_bias",)),
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
    "llama": Family("LlamaForCausalLM", read_llama, write_llama, _LLAMA, _OUTER),
    "mistral": Family("MistralForCausalLM", read_mistral, write_mistral, _LLAMA, _OUTER),
    "qwen2": Family("Qwen2ForCausalLM", read_qwen2, write_qwen, _LLAMA, _OUTER),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        read_qwen3,
        lambda c: write_qwen(c) | {"attention_bias": c.qkv_bias},
        _LLAMA + _QK_NORM,
        _OUTER,
    ),
    "mixtral": Family("MixtralForCausalLM", read_mixtral, write_mixtral, _MIXTRAL, _OUTER),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", read_qwen3_moe, write_qwen3_moe, _QWEN3_MOE, _OUTER),
    "gpt_oss": Family("GptOssForCausalLM", read_gpt_oss, write_gpt_oss, _GPT_OSS, _OUTER),
    "gemma": Family("GemmaForCausalLM", read_gemma, write_gemma, _LLAMA, _OUTER),
    "gemma2": Family("Gemma2ForCausalLM", read_gemma2, write_gemma2, _GEMMA2, _OUTER),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        read_gemma3,
        write_gemma3,
        _GEMMA2 + _QK_NORM,
        _OUTER,
        # Gemma3ForSequenceClassification is that of the models with images.
        classifier="Gemma3TextForSequenceClassification",
        token_head="",
        beside=("vision_tower", "multi_modal_projector"),
    ),
    "phi3": Family("Phi3ForCausalLM", read_phi3, write_phi3, _PHI3, _OUTER),
    "olmo2": Family("Olmo2ForCausalLM", read_olmo2, write_olmo2, _OLMO2, _OUTER, token_head=""),
    "olmo3": Family("Olmo3ForCausalLM", read_olmo3, write_olmo3, _OLMO2, _OUTER, token_head=""),
    "smollm3": Family("SmolLM3ForCausalLM", read_smollm3, write_smollm3, _LLAMA, _OUTER),
    "glm": Family("GlmForCausalLM", read_glm, write_glm, _GLM, _OUTER),
    "glm4": Family(
        "Glm4ForCausalLM",
        lambda c: read_glm(c) | {"post_norms": True},
        write_glm,
        _GLM + _GLM4_NORMS,
        _OUTER,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        read_gpt2,
        write_gpt2,
        _GPT2,
        _GPT2_OUTER,
        trunk="transformer.",
        token_head="classifier",
        ignored=(".attn.bias", ".attn.masked_bias"),
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        read_neox,
        write_neox,
        _NEOX,
        _NEOX_OUTER,
        head="embed_out",
        trunk="gpt_neox.",
        token_head="classifier",
        ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    ),
}


def config_from_json(config: Json, where: str) -> ModelConfig:
    """The `ModelConfig` of a parsed config.json.

    Raises:
      ModelError: a family that is not in the table, or a missing or wrong field; names the file.
    """
    try:
        config = text_part(config)
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from None
    kind = str(config.get("model_type", ""))
    family = FAMILIES.get(kind)
    if family is None:
        raise ModelError(
            f"{where}: model_type {kind!r} is not supported; expected one of {', '.join(FAMILIES)}"
        )
    try:
        arguments = family.read(config)
        return ModelConfig(family=kind, **(arguments | special_tokens(config)))
    except KeyError as error:
        raise ModelError(f"{where}: missing field {error}") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where}: {error}") from None


def special_tokens(config: Json) -> dict[str, Any]:
    """Token ids from a config.json."""
    bos, pad = config.get("bos_token_id"), config.get("pad_token_id")
    return {
        "eos_ids": eos_ids(config),
        "bos_id": -1 if bos is None else int(bos),
        "pad_id": -1 if pad is None else int(pad),
    }


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


def stored_shape(tensor: Tensor, leaves: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that a tensor has in a folder, by those of its leaves in our layout."""
    shape = (*leaves[0][:-1], sum(leaf[-1] for leaf in leaves))
    return (*shape[:-2], *shape[:-3:-1]) if tensor.kind == "linear" else shape


def read_part(
    tensor: Tensor, leaf: int, sizes: Sequence[int], heads: int, source: Any, index: tuple[slice, ...]
) -> np.ndarray:
    """A slice of a leaf, in our layout ([in, out] for projections), from the tensor that it lies in.

    Args:
      tensor: its row of the table.
      leaf: which of the leaves in it.
      sizes: of each leaf along the last axis.
      heads: number of heads.
      source: the tensor; of it only a slice is taken.
      index: slices of the leaf, with numbers for start and stop.
    """
    last, count = index[-1], len(tensor.leaves)

    def read(start: int, stop: int) -> np.ndarray:
        at = (*index[:-1], slice(start, stop))
        return source[*at[:-2], *at[:-3:-1]].swapaxes(-1, -2) if tensor.kind == "linear" else source[at]

    if tensor.fusion == "rows":
        offset = sum(sizes[:leaf])
        return read(offset + last.start, offset + last.stop)
    # All leaves of every head that the slice touches: they lie side by side.
    width = 1 if tensor.fusion == "turns" else sizes[leaf] // heads
    first, end = last.start // width, -(-last.stop // width)
    block = read(first * count * width, end * count * width)
    own = block.reshape(*block.shape[:-1], end - first, count, width)[..., leaf, :]
    return own.reshape(*block.shape[:-1], -1)[..., last.start - first * width : last.stop - first * width]


def fuse(tensor: Tensor, leaves: list[np.ndarray], heads: int) -> np.ndarray:
    """A whole tensor of its leaves: what `read_part` takes apart."""
    array = leaves[0]
    if len(leaves) > 1 and tensor.fusion != "rows":
        count = array.shape[-1] if tensor.fusion == "turns" else heads
        parts = [p.reshape(*p.shape[:-1], count, 1, -1) for p in leaves]
        array = np.concatenate(parts, axis=-2).reshape(*leaves[0].shape[:-1], -1)
    elif len(leaves) > 1:
        array = np.concatenate(leaves, axis=-1)
    return np.ascontiguousarray(array.swapaxes(-1, -2) if tensor.kind == "linear" else array)
