"""Dense products, norms, rotary embeddings and the MLP: pure functions on arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxalign.models.config import ModelConfig, RopeScaling
from jaxalign.models.remat import ADAPTER

Params = dict[str, jax.Array]


@jax.custom_vjp
def dense(x: Float[Array, "*B K"], w: Float[Array, "K M"]) -> Float[Array, "*B M"]:
    """x @ w, accumulated in float32, in the dtype of x.

    The weight gradient is one product x^T dy in the parameter's own layout: what autodiff
    writes goes through a transposed copy of dy on XLA's CPU backend (7 times slower for
    an MLP there) and plain bf16 products leave its fast path.
    """
    out = jax.lax.dot_general(
        x, w.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return out.astype(x.dtype)


def _dense_forward(x, w):
    return dense(x, w), (x, w)


def _dense_backward(saved, dy):
    x, w = saved
    dy = dy.astype(x.dtype)
    last = dy.ndim - 1
    dx = jax.lax.dot_general(
        dy, w.astype(x.dtype), (((last,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    rows = tuple(range(last))
    dw = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dw.astype(w.dtype)


dense.defvjp(_dense_forward, _dense_backward)


def linear(
    x: jax.Array, params: Params, name: str, adapter: dict | None = None, key: jax.Array | None = None
):
    """One projection with its bias and its LoRA adapter, where there are any.

    Args:
      x: [..., K].
      params: the layer's leaves; `name` and, with a bias, `name + "_bias"`.
      name: which projection, for example q_proj.
      adapter: the layer's adapters by projection: {"a": [K, r], "b": [r, M], "scale": []}.
      key: dropout key of this layer; None turns adapter dropout off.
    """
    y = dense(x, params[name])
    bias = params.get(name + "_bias")
    if bias is not None:
        y = y + bias.astype(y.dtype)
    part = None if adapter is None else adapter.get(name)
    if part is not None:
        inner = x
        if key is not None and "dropout" in part:
            salt = int.from_bytes(name.encode()[:3], "little")
            keep = jax.random.bernoulli(jax.random.fold_in(key, salt), 1.0 - part["dropout"], x.shape)
            inner = jnp.where(keep, x / (1.0 - part["dropout"]).astype(x.dtype), 0)
        inner = checkpoint_name(dense(inner, part["a"]), ADAPTER)
        y = y + dense(inner, part["b"]) * part["scale"].astype(y.dtype)
    return checkpoint_name(y, name)


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


def rope_frequencies(size: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Inverse frequencies [size / 2], float64, after scaling."""
    inverse = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    if scaling.kind == "linear":
        return inverse / scaling.factor
    if scaling.kind == "llama3":
        wavelength = 2 * np.pi / inverse
        low = scaling.original_positions / scaling.low_frequency_factor
        high = scaling.original_positions / scaling.high_frequency_factor
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        smooth = (scaling.original_positions / wavelength - scaling.low_frequency_factor) / span
        between = (1 - smooth) * inverse / scaling.factor + smooth * inverse
        return np.where(
            wavelength > low, inverse / scaling.factor, np.where(wavelength < high, inverse, between)
        )
    return inverse


def rope_tables(
    positions: Int[Array, "B T"], config: ModelConfig, *, local: bool
) -> tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]:
    """Cosines and sines, float32, R = rotary size / 2; `local` for sliding-window layers."""
    own = local and config.rope_theta_local is not None
    theta = config.rope_theta_local if own else config.rope_theta
    scaling = RopeScaling() if own else config.rope_scaling
    frequencies = jnp.asarray(rope_frequencies(config.rotary_size, float(theta or 1.0), scaling), jnp.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]


def rotate(x: Float[Array, "B T N H"], tables: tuple[jax.Array, jax.Array]) -> Float[Array, "B T N H"]:
    """Rotates the leading dimensions of each head (halves paired, as Hugging Face does)."""
    cos, sin = tables
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    a, b = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def activate(x: jax.Array, config: ModelConfig) -> jax.Array:
    """The MLP's nonlinearity."""
    if config.activation == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=config.activation == "gelu_tanh")


def mlp(
    x: jax.Array,
    params: Params,
    config: ModelConfig,
    adapter: dict | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The feed-forward block, [..., D] -> [..., D]."""
    up = linear(x, params, "up_proj", adapter, key)
    if config.gated_mlp:
        up = activate(linear(x, params, "gate_proj", adapter, key), config) * up
    else:
        up = activate(up, config)
    return linear(up, params, "down_proj", adapter, key)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap); x itself where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x
