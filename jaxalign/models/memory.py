"""How much memory models take: their weights."""

import math
from typing import Any

import jax

from jaxalign.kernels.frozen import Frozen
from jaxalign.kernels.matmul import choose_matmul
from jaxalign.kernels.nf4 import NF4
from jaxalign.kernels.quantize import quantize_params
from jaxalign.models.adapted import Adapted
from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import parameter_shapes, params_count
from jaxalign.target import platform


def sized(count: float) -> str:
    """Bytes as people read them: `256.6 MiB`."""
    unit, name = next(((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB")) if count >= u), (2**10, "KiB"))
    return f"{count / unit:,.1f} {name}"


def number_of_weights(config: ModelConfig) -> int:
    """How many parameters a model of this shape has."""
    shapes = jax.tree.leaves(parameter_shapes(config), is_leaf=lambda s: isinstance(s, tuple))
    return sum(math.prod(shape) for shape in shapes)


def weight_sizes(config: ModelConfig) -> dict[str, int]:
    """Bytes of a model's weights by what they are kept in: float32, bfloat16 and int8 (the rest of it float32).

    Experts have no int8.
    """

    def tree(dtype: str) -> Any:
        shapes = parameter_shapes(config)
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, dtype), shapes, is_leaf=lambda s: isinstance(s, tuple)
        )

    trees = {name: tree(name) for name in ("float32", "bfloat16")}
    if not config.mixture.experts:
        trees["int8"] = jax.eval_shape(quantize_params, trees["float32"])
    return {name: bytes_of(weights) for name, weights in trees.items()}


def cache_sizes(config: ModelConfig) -> dict[str, int]:
    """Bytes of the keys and values of one token, by what they are kept in; of int8 with their scales."""
    heads = 2 * config.num_layers * config.num_kv_heads
    return {
        "float32": heads * config.head_dim * 4,
        "bfloat16": heads * config.head_dim * 2,
        "int8": heads * (config.head_dim + 4),
    }


def kept_in(config: ModelConfig, params: Any) -> str:
    """The dtype of a model's matrices: int8 or nf4 where they are quantized."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Frozen))
    quantized = [
        leaf.base if isinstance(leaf, Adapted) else leaf for leaf in leaves if isinstance(leaf, Frozen)
    ]
    if not quantized:
        return config.param_dtype
    return "nf4" if isinstance(quantized[0], NF4) else "int8"


def bytes_of(*trees: Any) -> int:
    """Bytes of the arrays of trees; of one that stands in several places, once."""
    return sum({id(leaf): leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees)}.values())


def bytes_a_device(tree: Any) -> int:
    """The most bytes of a tree that one device holds."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)


def weights_text(
    config: ModelConfig,
    params: Any,
    *,
    key: str = "param_dtype",
    setting: str = "",
    files: str | None = None,
    why: str = "",
) -> str:
    """A model's size in words: `134,515,008 parameters, 256.6 MiB in bfloat16`.

    On a mesh also what a device holds of it; and where products have another dtype, or weights were rounded.

    Args:
      config, params: the model.
      key: of the configuration, that says the dtype of the parameters.
      setting: what it says.
      files: the dtype that the weights were read in; None where that is not known.
      why: products have their dtype, where that was not said.
    """
    whole, part, dtype = bytes_of(params), bytes_a_device(params), kept_in(config, params)
    text = f"{params_count(params):,} parameters, {sized(whole)} in {dtype}"
    text += "" if part == whole else f", {sized(part)} a device"
    chosen = choose_matmul(config, platform(config.mesh))
    if chosen.implementation == "float32" != config.compute_dtype:
        text += f"; products in float32, not {config.compute_dtype} ({chosen.reason})"
    elif config.compute_dtype != config.param_dtype or (why and config.compute_dtype != "float32"):
        text += f"; products in {config.compute_dtype}" + (f" ({why})" if why else "")
    if setting == "auto" and dtype == "bfloat16" and files not in (None, dtype):
        text += f"; rounded from {files}, which {key}=float32 would not do"
    return text
