"""Mixtures of experts: the feed-forward block of which each token uses a few of many parts.

No token is dropped, whatever the load: the chosen experts' tokens are sorted by expert, and `jax.lax.ragged_dot`
multiplies each run of them by its expert's weights. On a mesh each device routes the rows that it holds, and the
experts of one layer are gathered there, as other weights are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxalign.arrays import product_precision
from jaxalign.kernels.matmul import matmul_implementation, operand_dtype, product
from jaxalign.mesh import constrained, partition_spec
from jaxalign.models.config import ModelConfig
from jaxalign.models.layers import RESIDUAL, Params, activated

EXPERTS = ("experts_gate", "experts_up", "experts_down")
# Takes the router's probabilities [*B, E] and the experts chosen [*B, k] of a layer.
Tally = Callable[[jax.Array, jax.Array], None]


def expert_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's router and experts."""
    d, f, experts = config.hidden_size, config.intermediate_size, config.mixture.experts
    up = (experts, d, f)
    return {"router": (d, experts), "experts_gate": up, "experts_up": up, "experts_down": (experts, f, d)}


def route(
    h: Float[Array, "*B D"], router: Float[Array, "D E"], config: ModelConfig
) -> tuple[Float[Array, "*B E"], Float[Array, "*B k"], Int[Array, "*B k"]]:
    """Probabilities of the experts, and of each token those chosen: their weights and numbers; float32."""
    logits = product("...d,de->...e", h, router, dtype=operand_dtype(config))
    probs = jax.nn.softmax(logits, axis=-1)
    weights, chosen = jax.lax.top_k(probs, config.mixture.per_token)
    if config.mixture.normalized:
        weights = weights / weights.sum(-1, keepdims=True)
    return probs, weights, chosen


def mixture(
    h: Float[Array, "B T D"], params: Params, config: ModelConfig, tally: Tally | None = None
) -> Float[Array, "B T D"]:
    """The feed-forward block; `tally` is told how tokens were routed."""
    probs, weights, chosen = route(h, params["router"], config)
    if tally is not None:
        tally(probs, chosen)
    matrices = [params[name] for name in EXPERTS]
    mesh = config.mesh
    if mesh is None or mesh.size == 1:
        return fed(h, weights, chosen, *matrices, config=config)
    rows = PartitionSpec(*partition_spec(RESIDUAL, h.shape, mesh))
    # The outputs of gate and up are split over `tensor`, and what `down` makes of them is summed.
    split = partition_spec((None, None, "mlp"), matrices[0].shape, mesh)
    back = PartitionSpec(split[0], split[2], split[1])
    y = jax.shard_map(
        lambda *inputs: _summed(fed(*inputs, config=config), split[2]),
        mesh=mesh,
        in_specs=(rows, rows, rows, split, split, back),
        out_specs=rows,
        check_vma=False,
    )(h, weights, chosen, *matrices)
    return constrained(y, RESIDUAL, mesh)


def _summed(y: jax.Array, axis: Any) -> jax.Array:
    return y if axis is None else jax.lax.psum(y.astype(jnp.float32), axis).astype(y.dtype)


def fed(
    h: Float[Array, "B T D"],
    weights: Float[Array, "B T k"],
    chosen: Int[Array, "B T k"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    *,
    config: ModelConfig,
) -> Float[Array, "B T D"]:
    """The weighted sum of what the chosen experts make of each token."""
    width, count = h.shape[-1], chosen.shape[-1]
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=gate.shape[0]).astype(jnp.int32)
    # A permutation of the repeated tokens, whose gradient is one too: nothing is added up in an order that may vary.
    sent = jnp.repeat(h.reshape(-1, width), count, axis=0).at[order].get(unique_indices=True)
    inner: jax.Array = activated(
        config.activation,
        checkpoint_name(_ragged(sent, gate, sizes, config), "gate_proj"),
        checkpoint_name(_ragged(sent, up, sizes, config), "up_proj"),
    )
    out = checkpoint_name(_ragged(inner, down, sizes, config), "down_proj")
    back = out.at[jnp.argsort(order)].get(unique_indices=True).reshape(-1, count, width)
    total = jnp.sum(back.astype(jnp.float32) * weights.reshape(-1, count, 1), axis=1)
    return total.astype(h.dtype).reshape(h.shape)


def _ragged(
    x: Float[Array, "N K"], w: Float[Array, "E K M"], sizes: Int[Array, " E"], config: ModelConfig
) -> Float[Array, "N M"]:
    """Each run of rows times its expert's weights, in the form of products of `kernels.matmul`."""
    form = matmul_implementation(config)
    dtype = jnp.dtype("float32") if form == "float32" else x.dtype
    out = jax.lax.ragged_dot(
        x.astype(dtype),
        w.astype(dtype),
        sizes,
        precision=product_precision(dtype),
        preferred_element_type=x.dtype if form == "compute_dtype" else jnp.float32,
    )
    return out.astype(x.dtype)


def load(
    probs: Float[Array, "B T E"], chosen: Int[Array, "B T k"], there: Bool[Array, "B T"]
) -> tuple[Float[Array, " E"], Float[Array, " E"]]:
    """Of the tokens that are there: how many chose each expert, and the sum of its probabilities."""
    of_each = jax.nn.one_hot(chosen, probs.shape[-1], dtype=jnp.float32).sum(2)
    counts, sums = (jnp.sum(jnp.where(there[..., None], x, 0.0), axis=(0, 1)) for x in (of_each, probs))
    return counts, sums


def balance_loss(
    counts: Float[Array, "L E"], probs: Float[Array, "L E"], tokens: jax.Array | float
) -> Float[Array, ""]:
    """E * sum over experts of (the share of tokens that chose it) * (its mean probability).

    k, the experts a token uses, where all are used alike; more where few experts have most tokens. Shares and means are
    over the tokens of all layers together.

    Args:
      counts, probs: of each layer, from `load`.
      tokens: how many there are.

    Source: arXiv:2101.03961, eqs. 4-6, as `transformers.models.mixtral.load_balancing_loss_func` computes it.
    """
    rows = jnp.maximum(tokens, 1) * counts.shape[0]
    return counts.shape[1] * jnp.sum(counts.sum(0) / rows * (probs.sum(0) / rows))
