"""Weights with a low-rank adapter on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxalign.kernels.frozen import Frozen
from jaxalign.kernels.matmul import product

# Attached to a model (`lora.attach`): target -> factors, scale and perhaps dropout, [L, ...] each.
Adapter = Mapping[str, Mapping[str, jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted(Frozen):
    """Frozen weights merged with an adapter, in the place of a sum that would be an array of floats.

    Attributes:
      base: [*L, K, M].
      part: the adapter of this projection, [*L, ...] each.
    """

    base: Any
    part: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the sum."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """What the sum becomes where nothing else is asked for."""
        return self.base.dtype

    def astype(self, dtype: DTypeLike) -> jax.Array:
        """The sum as a plain array."""
        return adapted(self.base, self.part).astype(dtype)


def merged(weight: Any, part: Mapping[str, jax.Array]) -> Any:
    """The weight with its adapter added, in its dtype; of `Frozen` weights no floats are made before they are read."""
    if isinstance(weight, Frozen):
        return Adapted(weight, dict(part))
    return adapted(weight, part).astype(weight.dtype)


def adapted(weight: Any, part: Mapping[str, jax.Array]) -> Float[Array, "*L K M"]:
    """The weight of a projection (of a layer, or all of them) with its adapter added, float32."""
    whole = low_rank_sum(weight, part)
    return whole * gain(whole, part)[..., None, :] if "magnitude" in part else whole


def low_rank_sum(weight: Any, part: Mapping[str, jax.Array]) -> Float[Array, "*L K M"]:
    """W + scale * a b."""
    change = product("...ir,...ro->...io", part["a"], part["b"], dtype=part["a"].dtype)
    return weight.astype(jnp.float32) + change * part["scale"][..., None, None]


def gain(whole: Float[Array, "*L K M"], part: Mapping[str, jax.Array]) -> Float[Array, "*L M"]:
    """DoRA: what each output is multiplied by, so that its weights have the norm `magnitude`.

    The norm that they have has no gradient (arXiv:2402.09353, section 4.3).
    """
    norms = jax.lax.stop_gradient(column_norms(whole))
    return part["magnitude"] / jnp.where(norms > 0, norms, 1.0)


def column_norms(weight: Any) -> Float[Array, "*L M"]:
    """The norm of each output's weights, float32; `weight` is [*L, K, M]."""
    return jnp.sqrt(jnp.sum(jnp.square(weight.astype(jnp.float32)), axis=-2))
