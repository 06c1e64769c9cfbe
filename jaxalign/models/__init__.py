"""Causal language models and scalar models: Hugging Face folders in and out."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from jaxalign.kernels.config import AttentionImplementation, Choice, MatmulImplementation
from jaxalign.kernels.int8 import Int8
from jaxalign.kernels.matmul import choose_matmul, matmul_implementation, operand_dtype
from jaxalign.kernels.quantize import Weights, quantize_params
from jaxalign.kernels.remat import Remat, remat_level
from jaxalign.models.attention import attention_for, choose_attention
from jaxalign.models.composite import Composite, CompositeDefinition, Model, ModelDefinition
from jaxalign.models.config import ModelConfig
from jaxalign.models.heads import (
    HeadConfig,
    ScalarDefinition,
    ScalarModel,
    StepConfig,
    apply_head,
    create_scalar_model,
    gain_and_bias,
    with_normalizer,
)
from jaxalign.models.huggingface import (
    check_vocabulary,
    load_config,
    load_pretrained,
    load_tokenizer,
    save_pretrained,
)
from jaxalign.models.layers import Params
from jaxalign.models.lora import LoraConfig, attach, create_adapter, merge_adapter
from jaxalign.models.peft import load_adapter, save_adapter
from jaxalign.models.reward_folders import (
    is_reward_ensemble,
    load_reward_ensemble,
    load_reward_model,
    save_reward_ensemble,
    save_reward_model,
)
from jaxalign.models.sharding import param_logical_axes
from jaxalign.models.stops import stopping, tokenizer_stops
from jaxalign.models.transformer import Definition, Transformer, create, params_count

__all__ = [
    "AttentionImplementation",
    "Choice",
    "Definition",
    "HeadConfig",
    "Int8",
    "LoraConfig",
    "ModelConfig",
    "MatmulImplementation",
    "Remat",
    "ScalarDefinition",
    "ScalarModel",
    "StepConfig",
    "Transformer",
    "Weights",
    "apply_head",
    "attach",
    "check_vocabulary",
    "attention_for",
    "choose_attention",
    "choose_matmul",
    "create",
    "create_adapter",
    "create_scalar_model",
    "gain_and_bias",
    "is_reward_ensemble",
    "load_adapter",
    "load_config",
    "load_pretrained",
    "load_reward_ensemble",
    "load_reward_model",
    "load_tokenizer",
    "merge",
    "merge_adapter",
    "operand_dtype",
    "param_logical_axes",
    "params_count",
    "matmul_implementation",
    "quantize",
    "quantize_params",
    "remat_level",
    "save_adapter",
    "save_pretrained",
    "save_reward_ensemble",
    "save_reward_model",
    "split",
    "tokenizer_stops",
    "with_config",
    "with_normalizer",
    "with_remat",
    "with_stops",
]


def split(model: Model) -> tuple[Any, Any]:
    """(definition, parameters): the static part, hashable, and a nested dict of arrays."""
    if isinstance(model, ScalarModel):
        return ScalarDefinition(model.config, model.head_config, model.steps), model.params
    if isinstance(model, Composite):
        return model.definition, model.params
    return Definition(model.config), model.params


def merge(definition: ModelDefinition, params: Params) -> Any:
    """The inverse of `split`; cheap, also under jit."""
    if isinstance(definition, ScalarDefinition):
        return ScalarModel(definition.config, definition.head_config, params, definition.steps)
    if isinstance(definition, CompositeDefinition):
        return definition.merge(params)
    return Transformer(definition.config, params)


def with_config(model: Model, **changes: Any) -> Any:
    """The same parameters with changed config fields, for example attention, products or mesh."""
    definition, params = split(model)
    return merge(replace(definition, config=replace(definition.config, **changes)), params)


def quantize(model: Model, weights: Weights = "int8") -> Any:
    """The model with quantized weights (see `quantize_params`), which do not learn.

    A model with int8 weights cannot be saved. The float weights stay in memory as long as the original model does;
    `load_pretrained(folder, weights=...)` never holds all of them.
    """
    if weights == "same":
        return model
    definition, params = split(model)
    return merge(definition, quantize_params(params, weights))


def with_remat(model: Model, remat: Remat | bool = "full") -> Any:
    """The same model with another level of rematerialization (see `models.remat`).

    Raises:
      ValueError: no such level.
    """
    return with_config(model, remat=remat_level(remat))


def with_stops(model: Model, ids: Iterable[int]) -> Any:
    """The model with these tokens added to its stop tokens (`eos_ids`); the same model if it has them already.

    Raises:
      ModelError: a token outside its vocabulary.
    """
    definition, params = split(model)
    stops = stopping(definition, ids)
    return model if stops is definition else merge(stops, params)
