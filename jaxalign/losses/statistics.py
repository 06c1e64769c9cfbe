"""Masked means and variances for advantages; no public names."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.masking import masked


def centre(
    x: Float[Array, "..."], mask: Shaped[Array, "..."], axis: int | None = None
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(mean over the unmasked entries, x minus it), exactly 0 where all unmasked values are equal.

    The rounding of a plain mean leaves 1e-7 of x there, which a small standard deviation beside a small
    epsilon would blow up to advantages of order 1.
    """
    lowest = float(jnp.finfo(jnp.float32).min)
    anchor = jnp.max(masked(x, mask, lowest), axis=axis, keepdims=axis is not None, initial=lowest)
    count = jnp.sum(mask, axis=axis, keepdims=axis is not None, dtype=jnp.float32)
    anchor = jax.lax.stop_gradient(jnp.where(count > 0, anchor, 0.0))
    moved = masked(x - anchor, mask)
    mean = jnp.sum(moved, axis=axis, keepdims=axis is not None) / jnp.maximum(count, 1.0)
    return anchor + mean, masked(moved - mean, mask)


def mean_square(
    centred: Float[Array, "..."],
    mask: Shaped[Array, "..."],
    axis: int | None = None,
    *,
    unbiased: bool = True,
) -> Float[Array, "..."]:
    """Variance of values that are centered and 0 where masked: divided by n - 1, or by n."""
    count = jnp.sum(mask, axis=axis, keepdims=axis is not None, dtype=jnp.float32)
    total = jnp.sum(jnp.square(centred), axis=axis, keepdims=axis is not None)
    return total / jnp.maximum(count - 1.0 if unbiased else count, 1.0)


def divide(centred: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """centred / scale, and 0 where scale is 0: equal rewards without an epsilon."""
    return jnp.where(scale > 0, centred / jnp.where(scale > 0, scale, 1.0), 0.0)
