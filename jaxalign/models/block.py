"""One layer of the decoder, and the embeddings before the first: pure functions on arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxalign.kernels.int8 import Int8
from jaxalign.kernels.matmul import operand_dtype
from jaxalign.mesh import constrained
from jaxalign.models.adapted import Adapter
from jaxalign.models.config import ModelConfig
from jaxalign.models.embedding import token_embeddings
from jaxalign.models.layers import HEADS, RESIDUAL, Params, linear, mlp, norm, rms_norm
from jaxalign.models.mixture import Tally, mixture
from jaxalign.models.rotary import rotated


def embed(
    params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], config: ModelConfig
) -> jax.Array:
    """Token (and learned position) embeddings, in the dtype of activations."""
    x = token_embeddings(params["embed"]["tokens"], tokens, config.mesh).astype(operand_dtype(config))
    if config.embedding_scale != 1.0:
        x = x * jnp.asarray(config.embedding_scale, x.dtype)
    if config.positions == "learned":
        x = x + params["embed"]["positions"][positions].astype(x.dtype)
    return constrained(x, RESIDUAL, config.mesh)


def project(
    h: Float[Array, "B T D"],
    params: Params,
    config: ModelConfig,
    tables: tuple[jax.Array, jax.Array],
    adapter: Adapter | None,
    key: jax.Array | None,
):
    """Rotated queries and keys, and values: [B, T, N or K, H]."""

    def projected(name: str, norm_name: str | None = None) -> jax.Array:
        y = linear(h, params, name, config, adapter, key)
        if config.qk_norm and norm_name and config.qk_norm_over == "projection":
            y = rms_norm(y, params[norm_name], config)
        y = y.reshape(*h.shape[:-1], -1, config.head_dim)
        if config.qk_norm and norm_name and config.qk_norm_over == "head":
            y = rms_norm(y, params[norm_name], config)
        return y

    q, k, v = projected("q_proj", "q_norm"), projected("k_proj", "k_norm"), projected("v_proj")
    return rotated(q, tables, config), rotated(k, tables, config), v


def cast(part: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Weights as products read them: all but norms and `Int8` in a dtype."""
    kept = {k for k, v in part.items() if "norm" in k or isinstance(v, Int8)}
    return {k: (v if k in kept else v.astype(dtype)) for k, v in part.items()}


def attended(x: Float[Array, "B T D"], params: Params, config: ModelConfig) -> Float[Array, "B T D"]:
    """What attention reads of a layer's input."""
    return norm(x, params, "input_norm", config) if config.pre_norms else x


def block(
    x: Float[Array, "B T D"],
    params: Params,
    config: ModelConfig,
    attention: Callable[[jax.Array], jax.Array],
    adapter: Adapter | None,
    key: jax.Array | None,
    tally: Tally | None = None,
):
    """One layer; `attention(h)` maps what it reads [B, T, D] to head outputs [B, T, N*H].

    `tally` is told how a mixture routes tokens.
    """

    def fed(x: jax.Array) -> jax.Array:
        h = norm(x, params, "mlp_norm", config) if config.pre_norms else x
        if config.mixture.experts:
            return mixture(h, params, config, tally)
        return mlp(h, params, config, adapter, key)

    heads = constrained(attention(attended(x, params, config)), HEADS, config.mesh)
    mixed = constrained(linear(heads, params, "o_proj", config, adapter, key), RESIDUAL, config.mesh)
    if config.parallel_residual:
        return x + mixed + fed(x)
    if config.post_norms:
        x = x + norm(mixed, params, "post_attention_norm", config)
        return x + norm(fed(x), params, "post_mlp_norm", config)
    x = x + mixed
    return x + fed(x)
