"""Projections, norms and the MLP: pure functions on arrays."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxalign.kernels.frozen import Frozen, frozen_dense
from jaxalign.kernels.matmul import dense, matmul_implementation
from jaxalign.kernels.remat import ADAPTER
from jaxalign.mesh import constrained
from jaxalign.models.adapted import Adapter, gain, low_rank_sum
from jaxalign.models.config import ModelConfig

# Logical axes of activations: between layers [B, T, D], out of attention [B, T, N*H], inside the MLP [B, T, F].
RESIDUAL = ("batch", "length", None)
HEADS = ("batch", "length", "heads")
INNER = ("batch", "length", "mlp")

Params = dict[str, Any]


def linear(
    x: jax.Array,
    params: Params,
    name: str,
    config: ModelConfig,
    adapter: Adapter | None = None,
    key: jax.Array | None = None,
):
    """One projection with its bias and its LoRA adapter, where there are any.

    Args:
      x: [..., K].
      params: the layer's leaves; `name` and, with a bias, `name + "_bias"`; the weight may be `Frozen`.
      name: which projection, for example q_proj.
      config: says the form of products.
      adapter: the layer's adapters by projection: {"a": [K, r], "b": [r, M], "scale": []}, with DoRA "magnitude" [M];
        with a scale [A] the rows of x are adapted in turn (see `lora.stack_adapters`).
      key: dropout key of this layer; None turns adapter dropout off.
    """
    form, weight = matmul_implementation(config), params[name]
    y = frozen_dense(x, weight, form) if isinstance(weight, Frozen) else dense(x, weight, form)
    part = None if adapter is None else adapter.get(name)
    if part is not None:
        inner = x
        if key is not None and "dropout" in part:
            salt = int.from_bytes(name.encode()[:3], "little")
            keep = jax.random.bernoulli(jax.random.fold_in(key, salt), 1.0 - part["dropout"], x.shape)
            inner = jnp.where(keep, x / (1.0 - part["dropout"]).astype(x.dtype), 0)
        inner, scale = dense(inner, part["a"], form), part["scale"].astype(y.dtype)
        if scale.ndim:
            y = y + dense(inner * _own_part(scale, inner), part["b"], form)
        else:
            y = y + dense(checkpoint_name(inner, ADAPTER), part["b"], form) * scale
        if "magnitude" in part:
            # In float32: bfloat16 would round a small change of the magnitude away.
            y = (y.astype(jnp.float32) * gain(low_rank_sum(weight, part), part)).astype(y.dtype)
    bias = params.get(name + "_bias")
    if bias is not None:
        y = y + bias.astype(y.dtype)
    return checkpoint_name(y, name)


def _own_part(scale: jax.Array, inner: jax.Array) -> jax.Array:
    """What the products of all A adapters are multiplied by: a row's own scale in its own adapter's part, else 0."""
    adapters = scale.shape[0]
    row = jnp.arange(inner.shape[0])[:, None] % adapters
    part = jnp.arange(inner.shape[-1])[None, :] // (inner.shape[-1] // adapters)
    own = jnp.where(row == part, scale[part], 0)
    return own.reshape(inner.shape[0], *(1,) * (inner.ndim - 2), -1)


def norm(x: jax.Array, params: Params, name: str, config: ModelConfig) -> jax.Array:
    """RMS or layer norm, computed in float32, in the dtype of x."""
    x32 = x.astype(jnp.float32)
    if config.norm == "layer":
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + config.norm_eps)
    y = x32 * (params[name].astype(jnp.float32) + config.norm_offset)
    bias = params.get(name + "_bias")
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return y.astype(x.dtype)


def rms_norm(x: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """RMS norm over the last axis with a given weight (query and key heads)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + config.norm_eps)
    return (x32 * (weight.astype(jnp.float32) + config.norm_offset)).astype(x.dtype)


def activate(x: jax.Array, activation: str) -> jax.Array:
    """The MLP's nonlinearity."""
    if activation == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activated(
    activation: str, x: Float[Array, "*B M"], gated: Float[Array, "*B M"] | None
) -> Float[Array, "*B M"]:
    """activation(x) * gated (1 where None), computed in float32, in the dtype of x.

    The backward pass reads x and `gated` alone: what it needs of the nonlinearity it computes again, which costs less
    than keeping it. In bfloat16 a CPU would round after each operation otherwise, and take three times as long.
    """
    y = activate(x.astype(jnp.float32), activation)
    return (y if gated is None else y * gated.astype(jnp.float32)).astype(x.dtype)


def _activated_forward(activation: str, x: Float[Array, "*B M"], gated: Float[Array, "*B M"] | None):
    return activated(activation, x, gated), (x, gated)


def _activated_backward(
    activation: str, saved: tuple[jax.Array, jax.Array | None], d_out: Float[Array, "*B M"]
):
    x, gated = saved
    x32, d_out = x.astype(jnp.float32), d_out.astype(jnp.float32)
    y, slope = jax.jvp(lambda x: activate(x, activation), (x32,), (jnp.ones_like(x32),))
    if gated is None:
        return (d_out * slope).astype(x.dtype), None
    return (d_out * gated.astype(jnp.float32) * slope).astype(x.dtype), (d_out * y).astype(gated.dtype)


activated.defvjp(_activated_forward, _activated_backward)


def mlp(
    x: jax.Array,
    params: Params,
    config: ModelConfig,
    adapter: Adapter | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The feed-forward block, [B, T, D] -> [B, T, D]."""
    up = linear(x, params, "up_proj", config, adapter, key)
    if config.gated_mlp:
        gate = linear(x, params, "gate_proj", config, adapter, key)
        inner: jax.Array = activated(config.activation, gate, up)
    else:
        inner = activated(config.activation, up, None)
    inner = constrained(inner, INNER, config.mesh)
    return constrained(linear(inner, params, "down_proj", config, adapter, key), RESIDUAL, config.mesh)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap); x itself where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x
