"""Mixtures of experts: the feed-forward block of which each token uses a few of many parts.

No token is dropped, whatever the load: the chosen experts' tokens are sorted by expert, and `jax.lax.ragged_dot`
multiplies each run of them by its expert's weights. On a mesh each device routes the rows that it holds, and the
experts of one layer are gathered there, as other weights are. Where the mesh axis `expert` splits the experts, tokens
travel instead: each device reads those of all devices along the axis, computes what its own experts make of them, and
sends each device the part of its tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxalign.arrays import product_precision
from jaxalign.kernels.matmul import matmul_implementation, operand_dtype, product
from jaxalign.mesh import constrained, entry_axes, partition_spec
from jaxalign.models.config import ModelConfig
from jaxalign.models.layers import RESIDUAL, Params, activated

EXPERTS = ("experts_gate", "experts_up", "experts_down")
# Takes the router's probabilities [*B, E] and the experts chosen [*B, k] of a layer.
Tally = Callable[[jax.Array, jax.Array], None]


def expert_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's router and experts."""
    d, f, experts = config.hidden_size, config.intermediate_size, config.mixture.experts
    up = (experts, d, f)
    shapes = {"router": (d, experts), "experts_gate": up, "experts_up": up, "experts_down": (experts, f, d)}
    if config.mixture.biased:
        shapes |= {f"{name}_bias": (*shape[:-2], shape[-1]) for name, shape in shapes.items()}
    return shapes


def route(
    h: Float[Array, "*B D"], params: Params, config: ModelConfig
) -> tuple[Float[Array, "*B E"], Float[Array, "*B k"], Int[Array, "*B k"]]:
    """Probabilities of the experts, and of each token those chosen: their weights and numbers; float32."""
    logits = product("...d,de->...e", h, params["router"], dtype=operand_dtype(config))
    if config.mixture.biased:
        logits = logits + params["router_bias"].astype(jnp.float32)
    probs = jax.nn.softmax(logits, axis=-1)
    weights, chosen = jax.lax.top_k(probs, config.mixture.per_token)
    if config.mixture.normalized:
        weights = weights / weights.sum(-1, keepdims=True)
    return probs, weights, chosen


def mixture(
    h: Float[Array, "B T D"], params: Params, config: ModelConfig, tally: Tally | None = None
) -> Float[Array, "B T D"]:
    """The feed-forward block; `tally` is told how tokens were routed."""
    probs, weights, chosen = route(h, params, config)
    if tally is not None:
        tally(probs, chosen)
    names = EXPERTS + tuple(f"{name}_bias" for name in EXPERTS) if config.mixture.biased else EXPERTS
    weights_of = [params[name] for name in names]
    mesh = config.mesh
    if mesh is None or mesh.size == 1:
        return fed(h, weights, chosen, *weights_of, config=config)
    rows = PartitionSpec(*partition_spec(RESIDUAL, h.shape, mesh))
    # The outputs of gate and up are split over `tensor`, and what `down` makes of them is summed.
    own, _, axis = partition_spec(("experts", None, "mlp"), weights_of[0].shape, mesh)
    split, back, bias = PartitionSpec(own, None, axis), PartitionSpec(own, axis), PartitionSpec(own, axis)
    parts = 1 if axis is None else mesh.shape[axis]
    feed = functools.partial(fed, config=config, parts=parts)
    if own is not None:
        feed = functools.partial(_fed_by_group, feed, own, apart=own in entry_axes(rows[0]))
    # In a `shard_map` that leaves axes to the partitioner, those that are left of its own mesh are meant.
    inside = jax.sharding.get_abstract_mesh().manual_axes
    y = jax.shard_map(
        lambda *inputs: _summed(feed(*inputs), axis),
        mesh=None if inside else mesh,
        axis_names=set(mesh.axis_names) - set(inside),
        in_specs=(rows, rows, rows, *(split, split, back, bias, bias, PartitionSpec(own))[: len(weights_of)]),
        out_specs=rows,
        check_vma=False,
    )(h, weights, chosen, *weights_of)
    return constrained(y, RESIDUAL, mesh)


def _summed(y: jax.Array, axis: Any) -> jax.Array:
    return y if axis is None else jax.lax.psum(y.astype(jnp.float32), axis).astype(y.dtype)


def _fed_by_group(
    feed: Callable[..., jax.Array],
    axis: str,
    h: Float[Array, "B T D"],
    weights: Float[Array, "B T k"],
    chosen: Int[Array, "B T k"],
    *experts: jax.Array,
    apart: bool,
) -> Float[Array, "B T D"]:
    """What the experts of all devices along `axis` make of this device's tokens; `experts` are its own.

    `apart`: whether each device has other tokens; else all have these.
    """
    first = jax.lax.axis_index(axis) * experts[0].shape[0]
    if not apart:
        return _summed(feed(h, weights, chosen - first, *experts, all_here=False), axis)
    tokens, weights, chosen = (jax.lax.all_gather(x, axis, tiled=True) for x in (h, weights, chosen))
    y = feed(tokens, weights, chosen - first, *experts, all_here=False)
    # Not `psum_scatter`, which would add in the dtype of activations, or send float32.
    parts = jax.lax.all_to_all(y.reshape(-1, *h.shape), axis, split_axis=0, concat_axis=0)
    return parts.astype(jnp.float32).sum(0).astype(h.dtype)


def fed(
    h: Float[Array, "B T D"],
    weights: Float[Array, "B T k"],
    chosen: Int[Array, "B T k"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    gate_bias: Float[Array, "E F"] | None = None,
    up_bias: Float[Array, "E F"] | None = None,
    down_bias: Float[Array, "E D"] | None = None,
    *,
    config: ModelConfig,
    parts: int = 1,
    all_here: bool = True,
) -> Float[Array, "B T D"]:
    """The weighted sum of what the chosen experts make of each token; one of `parts` that are added up.

    Unless they are `all_here`, numbers outside [0, E) are experts that are not, which add nothing: their tokens come
    last, in no run, where `ragged_dot` may leave anything.
    """
    width, count, experts = h.shape[-1], chosen.shape[-1], gate.shape[0]
    flat = chosen.reshape(-1)
    if not all_here:
        flat = jnp.where((flat >= 0) & (flat < experts), flat, experts)
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=experts).astype(jnp.int32)
    # A permutation of the repeated tokens, whose gradient is one too: nothing is added up in an order that may vary.
    sent = jnp.repeat(h.reshape(-1, width), count, axis=0).at[order].get(unique_indices=True)
    own = flat[order]

    def here(x: jax.Array) -> jax.Array:
        return x if all_here else jnp.where((own < experts)[:, None], x, 0)

    def times(x: jax.Array, w: jax.Array, bias: jax.Array | None, name: str) -> jax.Array:
        y = _ragged(x, w, sizes, config)
        return checkpoint_name(here(y if bias is None else y + bias.astype(y.dtype)[own]), name)

    sent = here(sent)
    gated, raised = times(sent, gate, gate_bias, "gate_proj"), times(sent, up, up_bias, "up_proj")
    inner: jax.Array = (
        clamped(gated, raised, config)
        if config.mixture.limit
        else activated(config.activation, gated, raised)
    )
    out = times(inner, down, None if down_bias is None else down_bias / parts, "down_proj")
    back = out.at[jnp.argsort(order)].get(unique_indices=True).reshape(-1, count, width)
    total = jnp.sum(back.astype(jnp.float32) * weights.reshape(-1, count, 1), axis=1)
    return total.astype(h.dtype).reshape(h.shape)


def clamped(gate: Float[Array, "N F"], up: Float[Array, "N F"], config: ModelConfig) -> Float[Array, "N F"]:
    """gpt-oss's nonlinearity (see `config.Mixture.limit`), in float32, in the dtype of `gate`."""
    limit = config.mixture.limit
    low = jnp.minimum(gate.astype(jnp.float32), limit)
    bounded = jnp.clip(up.astype(jnp.float32), -limit, limit)
    return (low * jax.nn.sigmoid(config.mixture.alpha * low) * (bounded + 1)).astype(gate.dtype)


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
