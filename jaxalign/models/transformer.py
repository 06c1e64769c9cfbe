"""The decoder: tokens -> hidden states -> logits; whole rows, or one token against a cache.

Parameters live in a Flax NNX module as a nested dict: `embed`, `layers` (stacked,
[L, ...]) and `final_norm`, with the same names for every family. `split` extracts them once; all jitted code uses
the plain dict.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxalign.kernels.frozen import Frozen
from jaxalign.kernels.int8 import Int8, scaled_logits
from jaxalign.kernels.matmul import cached_dtype, matmul_implementation, operand_dtype, product
from jaxalign.kernels.remat import Remat, rematerialized
from jaxalign.models import exact, kv_cache
from jaxalign.models.adapted import Adapter, adapted, merged
from jaxalign.models.attention import attend, attend_cached, segment_starts, visible
from jaxalign.models.block import block, cast, embed, project
from jaxalign.models.config import ModelConfig
from jaxalign.models.kv_cache import KVCache
from jaxalign.models.layers import norm, softcap
from jaxalign.models.mixture import balance_loss, load
from jaxalign.models.parameters import parameter_shapes
from jaxalign.models.rotary import check_length, rope_tables, rope_tables_apart
from jaxalign.target import platform

UNROLLED_LAYERS = 8


class Transformer(nnx.Module):
    """A causal language model.

    Attributes:
      config: its shape; static.
      params: nested dict of arrays, see `parameter_shapes`.
    """

    def __init__(self, config: ModelConfig, params: dict[str, Any]) -> None:
        self.config = config
        self.weights = nnx.data(jax.tree.map(nnx.Param, params))

    @property
    def params(self) -> dict[str, Any]:
        """The leaves as plain arrays."""
        return jax.tree.map(lambda p: p[...], self.weights, is_leaf=lambda x: isinstance(x, nnx.Param))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        lengths: Int[Array, " B"] | None = None,
        max_segments: int = 0,
        adapter: Adapter | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits, float32, for plain use; training takes `hidden` and a chunked head.

        Args:
          tokens: token ids.
          positions: position of each token; counted from 0 within a row (or segment) when None.
          segment_ids: packed rows: 1, 2, ... by segment, 0 for padding.
          max_segments: of packed rows, a number of segments that no row exceeds; 0 where it is not known, which
            keeps cuDNN's attention from being used. Segments may begin at any column, also where a row holds one.
          lengths: right-padded rows: valid tokens per row; all when None.
          adapter: LoRA adapter, or None.
        """
        hidden = self.hidden(
            tokens,
            positions=positions,
            segment_ids=segment_ids,
            lengths=lengths,
            max_segments=max_segments,
            adapter=adapter,
        )
        return self.logits(hidden)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        lengths: Int[Array, " B"] | None = None,
        max_segments: int = 0,
        adapter: Adapter | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, in the compute dtype; arguments as for a call.

        `dropout_key` turns the adapter's dropout on.
        """
        hidden, _ = self.hidden_and_balance(
            tokens,
            positions=positions,
            segment_ids=segment_ids,
            lengths=lengths,
            max_segments=max_segments,
            adapter=adapter,
            dropout_key=dropout_key,
        )
        return hidden

    def hidden_and_balance(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        lengths: Int[Array, " B"] | None = None,
        max_segments: int = 0,
        adapter: Adapter | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[jax.Array, jax.Array] | None]:
        """`hidden`, and of a mixture of experts the load-balancing loss of these rows (`mixture.balance_loss`).

        The loss comes with the number of tokens that it is of, padding left out; it is None for other models.
        """
        if positions is None and segment_ids is None and lengths is None:
            check_length(self.config, tokens.shape[1])
        positions, segments = layout(tokens, positions, segment_ids, lengths)
        # 1 would say that the segment begins at column 0, which rows with segment ids need not.
        most = 1 if segment_ids is None else max(2, max_segments) if max_segments else 0
        hidden, _, routed = self._layers(
            tokens, positions, segments, most, adapter, dropout_key, keep_cache=False
        )
        if routed is None:
            return hidden, None
        counts, probs = routed
        total = jnp.sum(segments > 0).astype(jnp.float32)
        return hidden, (balance_loss(counts, probs, total), total)

    @property
    def head(self) -> Float[Array, "V D"]:
        """The vocabulary projection: in the compute dtype if products use it, else as stored (on CPUs).

        `logprobs.linear_logprobs` casts what it multiplies. On a CPU that spares a second copy and a rounded
        gradient; on other devices the narrower one is what they gather from one another.
        """
        weight = self._head
        if isinstance(weight, Int8) or matmul_implementation(self.config) == "compute_dtype":
            return weight.astype(operand_dtype(self.config))
        return weight

    @property
    def _head(self) -> Any:
        params = self.weights
        return (params["embed"]["tokens"] if self.config.tied_head else params["head"]["weight"])[...]

    @property
    def head_options(self) -> dict[str, Any]:
        """Further arguments of `logprobs.linear_logprobs` besides the head."""
        bias = self.weights["head"]["bias"][...] if self.config.head_bias else None
        dtype = operand_dtype(self.config)
        cap, mesh = self.config.final_softcap or None, self.config.mesh
        return {"softcap": cap, "bias": bias, "product_dtype": dtype, "mesh": mesh}

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """float32 logits of hidden states."""
        if self.config.exact:
            rows = exact.logits(hidden.reshape(-1, hidden.shape[-1]), self._head, self.head_options)
            return rows.reshape(*hidden.shape[:-1], -1)
        weight, dtype = self._head, operand_dtype(self.config)
        if isinstance(weight, Int8):
            out = scaled_logits(hidden, weight, dtype=dtype)
        else:
            out = product("...d,vd->...v", hidden, weight, dtype=dtype)
        options = self.head_options
        if options["bias"] is not None:
            out = out + options["bias"].astype(jnp.float32)
        return softcap(out, self.config.final_softcap)

    def exact_logps(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], temperature: jax.Array | float
    ) -> Float[Array, "B T"]:
        """log p(target) in exact mode, the same bits as a sampler's; without a gradient."""
        logps = exact.linear_logps(
            rearrange(hidden, "b t d -> (b t) d"),
            self._head,
            self.head_options,
            targets.reshape(-1),
            jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), targets.size),
        )
        return logps.reshape(targets.shape)

    # --- decoding ---------------------------------------------------------------------------

    def prefill(
        self,
        tokens: Int[Array, "B P"],
        lengths: Int[Array, " B"],
        *,
        cache_length: int,
        adapter: Adapter | None = None,
        int8_cache: bool = False,
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """Processes right-padded prompts.

        Returns:
          The hidden state at each row's last token, and a cache of `cache_length` columns
          (P and room for completions), as 8-bit integers where `int8_cache`.
        """
        # Moved to the right end: in the cache all rows end at the same column.
        positions = jnp.arange(tokens.shape[1])[None, :] - (tokens.shape[1] - lengths)[:, None]
        segments = (positions >= 0).astype(jnp.int32)
        positions = jnp.maximum(positions, 0)
        tokens = jnp.take_along_axis(tokens, positions, axis=1)
        # One segment that does not begin at column 0: two is the bound for which nothing is taken for granted.
        hidden, cached, _ = self._layers(tokens, positions, segments, 2, adapter, None, keep_cache=True)
        # Cast once: a decoding step reads all of it.
        keys, values = (x.astype(cached_dtype(self.config)) for x in cached)
        return hidden[:, -1], kv_cache.from_prompt(keys, values, lengths, cache_length, int8=int8_cache)

    def decode_weights(self, adapter: Adapter | None = None) -> dict[str, Any]:
        """Weights for `decode` and `logits`: a list of layers, cast once. Call it outside the decode loop.

        The adapter, where given, is added to the weights it adapts (in exact mode it stays beside them). An `Int8`
        stays one; other `Frozen` become floats.
        """
        config, dtype = self.config, operand_dtype(self.config)
        params = self.params

        def layers_of(tree: Any) -> list[Any]:
            return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(config.num_layers)]

        beside = {}
        if adapter is not None and config.exact:
            beside = {"adapter": layers_of(adapter)}  # what is added to the weights is rounded in another way
        elif adapter is not None:
            params = folded(params, adapter, dtype)
        layers = [cast(part, dtype) for part in layers_of(params["layers"])]
        result = {**params, **beside, "layers": layers, "embed": cast(params["embed"], dtype)}
        if not config.tied_head:
            result["head"] = {**params["head"], **cast({"weight": params["head"]["weight"]}, dtype)}
        return result

    def decode(
        self,
        weights: dict[str, Any],
        tokens: Int[Array, " B"],
        cache: KVCache,
        *,
        adapter: Sequence[Any] | None = None,
        members: int = 1,
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """One token a row: writes its column, attends to what is there.

        Args:
          weights: from `decode_weights`.
          tokens: one per row.
          cache: what each row has seen.
          adapter: of adapters that are not in the weights: the leaves of each layer; see `lora.stack_adapters`.
          members: A, how many adapters read each row. The cache then holds A times the heads, those of a member
            together, and what is returned has A rows for each, [B * A, D].

        Returns:
          The hidden state after it [B, D], and the cache one step on.
        """
        config = self.config
        if config.exact:
            if adapter is not None or members != 1:
                raise ValueError("in exact mode a model decodes with one adapter, that of decode_weights")
            return self._decode_exactly(weights, tokens, cache)
        column = cache.column
        positions = jnp.repeat(column - cache.starts, members)
        x = embed(weights, jnp.repeat(tokens, members)[:, None], positions[:, None], config)
        tables = {r: rope_tables(positions[:, None], config, r) for r in config.rotations}
        windows = [kv_cache.window_of(config, layer) for layer in range(config.num_layers)]
        seen = {window: cache.seen(window) for window in set(windows)}
        keys, values = [], []
        for layer, params in enumerate(weights["layers"]):
            part = None if adapter is None else adapter[layer]

            def attention(h: Float[Array, "B T D"], params=params, layer=layer, part=part):
                projected = project(h, params, config, tables[config.layer_rotations[layer]], part, None)
                # Members are heads here: a cache of more rows would be copied at every step.
                q, k, v = (y.reshape(-1, 1, members * y.shape[2], y.shape[3]) for y in projected)
                key = kv_cache.written(cache.keys[layer], rearrange(k, "b t k h -> b k h t"), column, axis=3)
                value = kv_cache.written(
                    cache.values[layer], rearrange(v, "b t k h -> b k t h"), column, axis=2
                )
                keys.append(key)
                values.append(value)
                sinks = params.get("sinks")
                sinks = sinks if sinks is None else jnp.tile(sinks, members)
                out = attend_cached(q[:, 0], key, value, seen[windows[layer]], config, sinks)
                return out.reshape(h.shape[0], 1, -1)

            x = block(x, params, config, attention, part, None)
        cache = replace(cache, keys=tuple(keys), values=tuple(values), column=column + 1)
        return norm(x, weights["final_norm"], "weight", config)[:, 0], cache

    def _decode_exactly(
        self, weights: dict[str, Any], tokens: Int[Array, " B"], cache: KVCache
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """`decode` in exact mode."""
        config, column, parts = self.config, cache.column, weights.get("adapter")
        places = exact.Places(jnp.arange(len(tokens)), cache.starts, jnp.broadcast_to(column, tokens.shape))
        positions = column - cache.starts
        x = embed(weights, tokens[:, None], positions[:, None], config)[:, 0]
        tables = {r: exact.tables(positions, config, r) for r in config.rotations}
        keys, values = [], []
        for layer, params in enumerate(weights["layers"]):

            def stored(k: jax.Array, v: jax.Array, layer: int = layer) -> tuple[Any, Any]:
                key = kv_cache.written(cache.keys[layer], k[..., None], column, axis=3)
                value = kv_cache.written(cache.values[layer], v[:, :, None], column, axis=2)
                keys.append(key)
                values.append(value)
                return key, value

            turns = tables[config.layer_rotations[layer]]
            part, window = parts and parts[layer], kv_cache.window_of(config, layer)
            x, *_ = exact.layer(x, params, part, config, turns, places, window, stored)
        cache = replace(cache, keys=tuple(keys), values=tuple(values), column=column + 1)
        return exact.normed(x, weights["final_norm"], config), cache

    # --- the stack --------------------------------------------------------------------------

    def _layers(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        max_segments: int,
        adapter: Adapter | None,
        dropout_key: jax.Array | None,
        *,
        keep_cache: bool,
    ) -> tuple[jax.Array, Any, Any]:
        """Hidden states; keys and values of each layer, where kept; how each layer of a mixture was routed."""
        config, params = self.config, self.params
        x = embed(params, tokens, positions, config)
        kinds = config.rotations
        tables = {kind: rope_tables_apart(positions, config, kind) for kind in kinds}
        exact_pass = exact.Pass.of(positions, segments, config) if config.exact else None
        slides = np.asarray(config.layer_slides)
        rotations = np.asarray([kinds.index(kind) for kind in config.layer_rotations])

        def body(x: Float[Array, "B T D"], inputs: tuple[Any, ...]):
            layer, part, sliding, rotation, index = inputs
            if slides.any() and not slides.all():
                window = jnp.where(sliding, config.sliding_window, 0)
            else:
                window = config.sliding_window if slides.all() and len(slides) else 0

            def of_layer(tables: Any) -> Any:
                own = tables[kinds[0]]
                for number, kind in enumerate(kinds[1:], 1):
                    own = jax.tree.map(
                        lambda a, b, n=number: jnp.where(rotation == n, b, a), own, tables[kind]
                    )
                return own

            cos_sin = of_layer(tables)
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            kept = routed = None

            def tally(probs: jax.Array, chosen: jax.Array) -> None:
                nonlocal routed
                routed = load(probs, chosen, segments > 0)

            def attention(h: Float[Array, "B T D"]):
                nonlocal kept
                q, k, v = project(h, layer, config, cos_sin, part, key)
                kept = (k, v)
                rows = (positions, segments, window, config)
                return attend(q, k, v, *rows, max_segments=max_segments, sinks=layer.get("sinks"))

            after = block(x, layer, config, attention, part, key, tally)
            if exact_pass is not None:
                turns = of_layer(exact_pass.tables)
                value, kept = exact_pass.layer(x, layer, part, config, turns, window)
                after = exact.with_value(after, value)
            return after, (kept if keep_cache else None, routed)

        level = "none" if keep_cache else config.remat
        body = rematerialized(body, level)
        layers = jnp.arange(config.num_layers)
        inputs = (params["layers"], adapter, jnp.asarray(slides), jnp.asarray(rotations), layers)
        unroll = written_out(config, level, trained=not keep_cache and adapter is None)
        x, (cache, routed) = jax.lax.scan(body, x, inputs, unroll=unroll)
        hidden = norm(x, params["final_norm"], "weight", config)
        if config.exact:
            of_tokens = exact.normed(rearrange(x, "b t d -> (b t) d"), params["final_norm"], config)
            hidden = exact.with_value(hidden, of_tokens.reshape(hidden.shape))
        return hidden, cache, routed


def written_out(config: ModelConfig, level: Remat, *, trained: bool) -> bool:
    """Whether a program holds all layers of a stack, one after another, in place of a loop over them.

    On a CPU few layers: measured faster, 1.7 times for 2 layers (backward, width 64), 1.13 times for 6 (a step of
    width 288, which compiles in 9.6 s in place of 7.1); not where a layer is computed again, which XLA may do there
    before the backward pass needs it, and what was to be saved is held after all.

    On one GPU all of them where their weights are `trained`: a loop copies what it keeps of each layer into stacks
    and out of them, and weights before it converts them. An H200 takes 263 in place of 288 ms for a step of 16 layers
    (width 2,048, 16,384 tokens, remat=minimal), holds 1.8 GiB less, and compiles for 15 s in place of 7
    (`docs/performance_appendix.md`). Not where inputs go to the host: written out, XLA sends each there only when the
    backward pass asks for it.
    """
    if level == "offload":
        return False
    if platform(config.mesh) == "gpu" and trained and (config.mesh is None or config.mesh.size == 1):
        return True
    return level == "none" and config.num_layers <= UNROLLED_LAYERS


def layout(
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segment_ids: Int[Array, "B T"] | None,
    lengths: Int[Array, " B"] | None,
) -> tuple[jax.Array, jax.Array]:
    """Positions and segment ids of rows that are packed, right-padded or full."""
    if segment_ids is not None and lengths is not None:
        raise ValueError("pass segment_ids (packed rows) or lengths (right-padded rows), not both")
    rows, length = tokens.shape
    columns = jnp.broadcast_to(jnp.arange(length), (rows, length))
    if segment_ids is None:
        segments = (
            jnp.ones_like(columns) if lengths is None else (columns < lengths[:, None]).astype(jnp.int32)
        )
    else:
        segments = segment_ids
    if positions is None:
        positions = columns if segment_ids is None else columns - segment_starts(segments)
    return positions, segments


def folded(params: dict[str, Any], adapter: Adapter, dtype: DTypeLike | None = None) -> dict[str, Any]:
    """Parameters with the `adapted` weight in place of each that has an adapter; `merged` where no dtype is given."""
    layers = dict(params["layers"])
    for name, part in adapter.items():
        weight = layers[name]
        layers[name] = merged(weight, part) if dtype is None else adapted(weight, part).astype(dtype)
    return {**params, "layers": layers}


@dataclass(frozen=True)
class Definition:
    """The static part of a model: hashable, made by `split`, read by `merge`."""

    config: ModelConfig


def create(
    config: ModelConfig,
    *,
    key: jax.Array,
    param_dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Transformer:
    """A model with random weights: normal(0, 0.02) matrices, identity norms, zero biases."""
    config = with_dtypes(config, param_dtype, compute_dtype)
    shapes = parameter_shapes(config)
    paths, treedef = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))
    leaves = []
    for index, (path, shape) in enumerate(paths):
        name = jax.tree_util.keystr(path)
        if name.endswith(("_bias']", "['bias']")):
            leaf = jnp.zeros(shape, config.param_dtype)
        elif "norm" in name:
            leaf = jnp.full(shape, 1.0 - config.norm_offset, config.param_dtype)
        else:
            leaf = (0.02 * jax.random.normal(jax.random.fold_in(key, index), shape)).astype(
                config.param_dtype
            )
        leaves.append(leaf)
    return Transformer(config, jax.tree.unflatten(treedef, leaves))


def with_dtypes(
    config: ModelConfig, param_dtype: DTypeLike | None = None, compute_dtype: DTypeLike | None = None
) -> ModelConfig:
    """The config with changed dtypes; None keeps a dtype."""
    return replace(
        config,
        param_dtype=config.param_dtype if param_dtype is None else jnp.dtype(param_dtype).name,
        compute_dtype=config.compute_dtype if compute_dtype is None else jnp.dtype(compute_dtype).name,
    )


def params_count(params: Any) -> int:
    """Number of parameters in a tree; the scales of `Frozen` weights are not counted, nor are adapters on them."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Frozen))
    return sum(int(np.prod(x.shape)) for x in leaves)


__all__ = ["Definition", "Transformer", "create", "params_count", "parameter_shapes", "visible"]
