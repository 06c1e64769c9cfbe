"""Rematerialization: which of a layer's activations wait for the backward pass, by name; the others are computed again.

A ladder: each level keeps less than the one before it and computes more twice.

    level               kept of a layer beside its input              computed again
    none                all that the backward pass reads              nothing
    minimal             every product, attention's output             norms, rotations, activations
    save_qkv_context    queries, keys, values, attention's output     and the products after attention
    save_context        attention's output                            and the products before it
    full                nothing                                       the whole layer
    offload             nothing, and its input in the host's memory   the whole layer

Policies are by name: what is kept is what `jax.ad_checkpoint.checkpoint_name` was called on in `layers.linear`
(a projection, by its own name) and in attention. With its output blockwise, cuDNN's and splash attention keep what
their backward passes read of each query. Plain attention names nothing of the kind: its forward pass runs again at
every level but `none`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "minimal", "save_qkv_context", "save_context", "full", "offload"]

# Attention's output; and of each query what the backward pass needs so that attention is not run again.
CONTEXT, STATISTICS = "context", "attention_statistics"
# The product of an input with a LoRA adapter's first factor.
ADAPTER = "adapter"
# What a layer reads of the one before it.
INPUT = "layer_input"

_ATTENTION = (CONTEXT, STATISTICS)
_QKV = ("q_proj", "k_proj", "v_proj")
KEPT: Mapping[Remat, tuple[str, ...]] = {
    "minimal": (*_QKV, *_ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj", ADAPTER),
    "save_qkv_context": (*_QKV, *_ATTENTION),
    "save_context": _ATTENTION,
    "full": (),
}


def remat_level(value: Remat | bool) -> Remat:
    """The level that a setting names; true and false are `full` and `none`.

    Raises:
      ValueError: no such level.
    """
    if isinstance(value, bool):
        return "full" if value else "none"
    if value not in get_args(Remat):
        raise ValueError(f"remat must be one of {', '.join(get_args(Remat))}, got {value!r}")
    return value


def rematerialized(layer: Callable[..., Any], level: Remat) -> Callable[..., Any]:
    """The same function of arrays, the first of them its input, whose backward pass finds what `level` keeps."""
    if level == "none":
        return layer
    if level == "offload":
        away = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
        return jax.checkpoint(lambda x, *rest: layer(checkpoint_name(x, INPUT), *rest), policy=away)
    names = jax.checkpoint_policies.save_only_these_names(*KEPT[level])
    if CONTEXT not in KEPT[level]:
        return jax.checkpoint(layer, policy=names)
    kept = jax.checkpoint_policies.save_from_both_policies(names, _of_cudnn)
    return jax.checkpoint(layer, policy=kept)


def _of_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether it is cuDNN's attention, whose results (output and statistics) JAX names nowhere."""
    return primitive.name.startswith("dot_product_attention_fwd")
