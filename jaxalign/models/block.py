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
    shape = h.shape[:-1]
    q = linear(h, params, "q_proj", config, adapter, key).reshape(*shape, config.num_heads, config.head_dim)
    k = linear(h, params, "k_proj", config, adapter, key).reshape(
        *shape, config.num_kv_heads, config.head_dim
    )
    v = linear(h, params, "v_proj", config, adapter, key).reshape(
        *shape, config.num_kv_heads, config.head_dim
    )
    if config.qk_norm:
        q, k = rms_norm(q, params["q_norm"], config), rms_norm(k, params["k_norm"], config)
    return rotated(q, tables, config), rotated(k, tables, config), v


def cast(part: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Weights as products read them: all but norms and `Int8` in a dtype."""
    kept = {k for k, v in part.items() if "norm" in k or isinstance(v, Int8)}
    return {k: (v if k in kept else v.astype(dtype)) for k, v in part.items()}


def block(
    x: Float[Array, "B T D"],
    params: Params,
    config: ModelConfig,
    attention: Callable[[jax.Array], jax.Array],
    adapter: Adapter | None,
    key: jax.Array | None,
):
    """One layer; `attention(h)` maps normed input [B, T, D] to head outputs [B, T, N*H]."""
    heads = constrained(attention(norm(x, params, "input_norm", config)), HEADS, config.mesh)
    mixed = constrained(linear(heads, params, "o_proj", config, adapter, key), RESIDUAL, config.mesh)
    if config.parallel_residual:
        return x + mixed + mlp(norm(x, params, "mlp_norm", config), params, config, adapter, key)
    if config.post_norms:
        x = x + norm(mixed, params, "post_attention_norm", config)
        fed = mlp(norm(x, params, "mlp_norm", config), params, config, adapter, key)
        return x + norm(fed, params, "post_mlp_norm", config)
    x = x + mixed
    return x + mlp(norm(x, params, "mlp_norm", config), params, config, adapter, key)
