"""Scalar models: a decoder's trunk with a head that outputs one number per token.

A reward model uses the output at a row's last token, a process reward model at the end of each step of a solution, a
value function at every token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxalign.arrays import product_precision
from jaxalign.kernels.matmul import dense, matmul_implementation
from jaxalign.models.config import MatmulImplementation, ModelConfig
from jaxalign.models.layers import Adapter, Params
from jaxalign.models.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The scalar head.

    Attributes:
      kind: linear, or mlp (one hidden layer with GELU).
      hidden_size: width of the hidden layer; 0 uses the model's.
      dropout: dropout rate on the head's input in training.
      init_std: standard deviation of the last layer's initial weights; -1 uses 1 / sqrt(width + 1), 0 starts at zero.
    """

    kind: Literal["linear", "mlp"] = "linear"
    hidden_size: int = 0
    dropout: float = 0.0
    init_std: float = -1.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"head.dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Marks a scalar model as a process reward model: its scores are logits of steps, at the end of each step.

    Attributes:
      separator: text that ends each step; empty if unknown.
    """

    separator: str = ""


class ScalarModel(nnx.Module):
    """A trunk, a head and a normalizer: score = gain * head(hidden) + bias.

    Attributes:
      config: shape of the trunk; static.
      head_config: the head; static.
      steps: of a process reward model; None where a row has one score, at its last token; static.
    """

    def __init__(
        self,
        config: ModelConfig,
        head_config: HeadConfig,
        params: dict[str, Any],
        steps: StepConfig | None = None,
    ) -> None:
        self.config = config
        self.head_config = head_config
        self.steps = steps
        self.weights = nnx.data(jax.tree.map(nnx.Param, params))

    @property
    def params(self) -> dict[str, Any]:
        """{"trunk", "head", "normalizer"} as plain arrays."""
        return jax.tree.map(lambda p: p[...], self.weights, is_leaf=lambda x: isinstance(x, nnx.Param))

    def per_token(
        self,
        tokens: Int[Array, "B T"],
        *,
        lengths: Int[Array, " B"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        max_segments: int = 0,
        adapter: Adapter | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "B T"]:
        """The score after each token, float32; undefined but finite in padding."""
        params = self.params
        hidden = Transformer(self.config, params["trunk"]).hidden(
            tokens,
            lengths=lengths,
            positions=positions,
            segment_ids=segment_ids,
            max_segments=max_segments,
            adapter=adapter,
            dropout_key=dropout_key,
        )
        raw = apply_head(
            self.head_config,
            params["head"],
            hidden,
            products=matmul_implementation(self.config),
            dropout_key=dropout_key,
        )
        normalizer = params["normalizer"]
        return normalizer["gain"] * raw + normalizer["bias"]

    def __call__(self, tokens: Int[Array, "B T"], *, lengths: Int[Array, " B"]) -> Float[Array, " B"]:
        """The score at each row's last valid token, float32."""
        scores = self.per_token(tokens, lengths=lengths)
        return jnp.take_along_axis(scores, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]


@dataclass(frozen=True)
class ScalarDefinition:
    """The static part of a scalar model."""

    config: ModelConfig
    head_config: HeadConfig
    steps: StepConfig | None = None


def apply_head(
    head_config: HeadConfig,
    params: Params,
    hidden: Float[Array, "*B D"],
    *,
    products: MatmulImplementation,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "*B"]:
    """Raw scores of hidden states, float32; `products` is the form of an MLP head's product."""
    x = hidden
    if dropout_key is not None and head_config.dropout:
        keep = jax.random.bernoulli(
            jax.random.fold_in(dropout_key, 1_000_000), 1 - head_config.dropout, x.shape
        )
        x = jnp.where(keep, x / (1 - head_config.dropout), 0).astype(x.dtype)
    if head_config.kind == "mlp":
        x = dense(x, params["hidden"], products) + params["hidden_bias"].astype(x.dtype)
        x = jax.nn.gelu(x, approximate=True)
    x, score = x.astype(jnp.float32), params["score"].astype(jnp.float32)
    return jnp.einsum("...d,d->...", x, score, precision=product_precision(jnp.float32))


def create_head(config: ModelConfig, head_config: HeadConfig, *, key: jax.Array) -> dict[str, jax.Array]:
    """Initial parameters of a head."""
    d = config.hidden_size
    first, last = jax.random.split(key)
    width = d
    params: dict[str, jax.Array] = {}
    if head_config.kind == "mlp":
        width = head_config.hidden_size or d
        params["hidden"] = jax.random.normal(first, (d, width)) / jnp.sqrt(d)
        params["hidden_bias"] = jnp.zeros(width)
    std = (width + 1) ** -0.5 if head_config.init_std < 0 else head_config.init_std
    params["score"] = std * jax.random.normal(last, (width,))
    return jax.tree.map(lambda x: x.astype(config.param_dtype), params)


def create_scalar_model(
    model: Transformer,
    head_config: HeadConfig | None = None,
    *,
    key: jax.Array,
    steps: StepConfig | None = None,
) -> ScalarModel:
    """A scalar model on the trunk of a causal language model (whose vocabulary head is left out).

    The trunk's arrays are shared, not copied; nothing here changes them. With `steps` it is to be a
    process reward model.
    """
    head_config = head_config or HeadConfig()
    trunk = {name: value for name, value in model.params.items() if name != "head"}
    config = replace(model.config, tied_head=True, head_bias=False)
    params = {
        "trunk": trunk,
        "head": create_head(config, head_config, key=key),
        "normalizer": {"gain": jnp.ones(()), "bias": jnp.zeros(())},
    }
    return ScalarModel(config, head_config, params, steps)


def with_normalizer(frozen: Mapping[str, Any], *, gain: float, bias: float) -> Any:
    """Frozen leaves of a scalar model with another gain and bias."""
    return {**frozen, "normalizer": {"gain": jnp.float32(gain), "bias": jnp.float32(bias)}}


def gain_and_bias(mean: float | np.ndarray, variance: float | np.ndarray) -> tuple[Any, Any]:
    """What brings raw scores of this mean and variance (NumPy, any shape) to mean 0 and variance 1."""
    gain = 1.0 / np.sqrt(np.maximum(variance, 1e-12))
    return gain, -gain * mean
