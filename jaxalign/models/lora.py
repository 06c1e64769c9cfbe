"""Low-rank adapters (LoRA): a tree separate from the parameters, merged on request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxalign.errors import ModelError
from jaxalign.kernels.quantize import Weights
from jaxalign.models.adapted import Adapter, column_norms
from jaxalign.models.config import ModelConfig
from jaxalign.models.heads import ScalarModel
from jaxalign.models.transformer import Transformer, folded, parameter_shapes

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation (arXiv:2106.09685).

    Attributes:
      enabled: train a LoRA adapter and freeze the base model.
      rank: rank r of the adapter.
      alpha: scale of the adapter: its output is multiplied by alpha / rank.
      rslora: multiply by alpha / sqrt(rank) instead (arXiv:2312.03732), so that high ranks learn as fast as low ones.
      dora: also train the norm of each output's weights, apart from their direction (arXiv:2402.09353).
      dropout: dropout rate on the adapter's input in training.
      targets: projections that get an adapter; `all` selects every one.
      base_weights: how the frozen weights of the projections are kept, while the adapter trains in float32: same (as
        model.param_dtype says), int8 (8.1 bits a weight) or nf4 (4.1 bits: QLoRA, arXiv:2305.14314). Embeddings,
        norms and the head stay in model.param_dtype. The reference model is the same, without the adapter.
    """

    enabled: bool = False
    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    base_weights: Literal["same", "int8", "nf4"] = "same"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank must be 1 or more, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must lie in [0, 1), got {self.dropout}")
        unknown = [t for t in self.targets if t not in (*TARGETS, "all")]
        if unknown:
            raise ValueError(
                f"lora.targets: {', '.join(unknown)}: expected some of {', '.join(TARGETS)}, or all"
            )

        if self.base_weights != "same" and not self.enabled:
            raise ValueError(
                f"lora.base_weights={self.base_weights} needs lora.enabled=true: quantized weights do not learn"
            )

    @property
    def weights(self) -> Weights:
        """How the weights under the adapter are kept, in the words of `models.quantize`."""
        return "int8_projections" if self.base_weights == "int8" else self.base_weights

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def targets_of(config: ModelConfig, lora: LoraConfig) -> tuple[str, ...]:
    """The projections of this model that get an adapter.

    Raises:
      ModelError: those of a mixture's experts.
    """
    if config.mixture.experts and (asked := [t for t in lora.targets if t in ("all", *TARGETS[4:])]):
        raise ModelError(
            f"lora.targets: {', '.join(asked)}: the experts of a mixture ({config.family}) cannot have adapters; "
            f"expected some of {', '.join(TARGETS[:4])}"
        )
    there = [t for t in TARGETS if config.gated_mlp or t != "gate_proj"]
    return tuple(there) if "all" in lora.targets else tuple(t for t in there if t in lora.targets)


def create_adapter(
    config: ModelConfig, lora: LoraConfig, *, key: jax.Array, layers: Mapping[str, Any] | None = None
) -> dict[str, dict[str, jax.Array]]:
    """Creates an adapter that does not change the model yet: a is Kaiming-uniform, b is 0.

    Args:
      config: the model's shape.
      lora: the adapter's settings.
      key: source of a.
      layers: the model's weights `params["layers"]`, of which DoRA needs the norms.

    Returns:
      target -> {"a": [L, K, r], "b": [L, r, M]}, with DoRA also "magnitude" [L, M]; float32: the trained leaves.
      Scale and dropout are static and enter with `attach`.

    Raises:
      ValueError: DoRA without `layers`.
    """
    if lora.dora and layers is None:
        raise ValueError(
            "an adapter with lora.dora begins with the norms of the model's weights: pass layers"
        )
    shapes = parameter_shapes(config)["layers"]
    adapter = {}
    for index, name in enumerate(targets_of(config, lora)):
        depth, inputs, outputs = shapes[name]
        bound = inputs**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, index), (depth, inputs, lora.rank), minval=-bound, maxval=bound
        )
        adapter[name] = {"a": a, "b": jnp.zeros((depth, lora.rank, outputs))}
        if layers is not None and lora.dora:
            # One layer at a time: a float32 copy of all would be as large as the model.
            adapter[name]["magnitude"] = jax.lax.map(column_norms, layers[name])
    return adapter


def attach(adapter: Adapter, lora: LoraConfig) -> Any:
    """The trained leaves with their scale and dropout, [L] each: the `adapter` argument of a model."""
    result = {}
    for name, part in adapter.items():
        layers = part["a"].shape[0]
        result[name] = {**part, "scale": jnp.full(layers, lora.scale, jnp.float32)}
        if lora.dropout:
            result[name]["dropout"] = jnp.full(layers, lora.dropout, jnp.float32)
    return result


def stack_adapters(adapters: Sequence[Any]) -> Any:
    """Attached adapters on one model as one tree, by which rows that take turns are adapted: row r by r modulo A.

    The factors of all A lie side by side, so that they are one plain product (a product for each adapter took 4.5
    times as long to decode with on a CPU), of which a row keeps its own part. Adapters may differ in rank and
    targets: what one lacks is zeros, which change nothing.

    Returns:
      target -> {"a": [L, K, A * r], "b": [L, A * r, M], "scale": [L, A]}, without dropout.

    Raises:
      ValueError: a DoRA adapter, which also scales what the model itself gives, for all rows alike.
    """
    if any(map(has_magnitudes, adapters)):
        raise ValueError("DoRA adapters cannot be stacked; merge them (`merge_adapter`)")
    result = {}
    for name in sorted({name for adapter in adapters for name in adapter}):
        there = [adapter[name] for adapter in adapters if name in adapter]
        rank = max(part["a"].shape[-1] for part in there)
        parts = [adapter.get(name) for adapter in adapters]
        result[name] = {
            "a": jnp.concatenate([_ranked(part, there[0], "a", rank) for part in parts], axis=2),
            "b": jnp.concatenate([_ranked(part, there[0], "b", rank) for part in parts], axis=1),
            "scale": jnp.stack([(there[0] if part is None else part)["scale"] for part in parts], axis=1),
        }
    return result


def has_magnitudes(adapter: Adapter) -> bool:
    """Whether it is a DoRA adapter."""
    return any("magnitude" in part for part in adapter.values())


def _ranked(
    part: Mapping[str, jax.Array] | None, like: Mapping[str, jax.Array], factor: str, rank: int
) -> jax.Array:
    """A factor of a target [L, ...] with its rank filled up by zeros; all zeros where there is none."""
    axis = 2 if factor == "a" else 1
    array = jnp.zeros_like(like[factor]) if part is None else part[factor]
    missing = [(0, 0)] * array.ndim
    missing[axis] = (0, rank - array.shape[axis])
    return jnp.pad(array, missing)


def merge_adapter(model: Transformer | ScalarModel, adapter: Adapter) -> Any:
    """The model with an attached adapter added to its weights; the original model is not changed.

    On quantized weights the sum is made where it is read, and kept nowhere (`adapted.Adapted`).

    Raises:
      ValueError: the adapter has a target that the model lacks.
    """
    params = model.params
    trunk = params["trunk"] if isinstance(model, ScalarModel) else params
    unknown = [name for name in adapter if name not in trunk["layers"]]
    if unknown:
        raise ValueError(f"the adapter has targets that the model lacks: {', '.join(unknown)}")
    if isinstance(model, ScalarModel):
        params = {**params, "trunk": folded(trunk, adapter)}
        return ScalarModel(model.config, model.head_config, params, model.steps)
    return Transformer(model.config, folded(params, adapter))
