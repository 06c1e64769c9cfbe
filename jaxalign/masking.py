"""Masked arithmetic that is safe where nothing counts. True (or 1) in a mask means "counts"."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

# A score that gets no weight beside any other, finite: differences of two are numbers.
NEGATIVE = -1e30


def as_mask(mask: Shaped[Array, "..."] | None, like: jax.Array) -> jax.Array:
    """A bool mask of the shape of `like`; all True for None."""
    if mask is None:
        return jnp.ones(like.shape, bool)
    mask = jnp.asarray(mask)
    if mask.shape != like.shape:
        raise AssertionError(f"mask has shape {mask.shape}, expected {like.shape}")
    return mask if mask.dtype == jnp.bool_ else mask != 0


def masked(x: Shaped[Array, "..."], mask: jax.Array, fill: float = 0.0) -> jax.Array:
    """x where the mask is True, `fill` elsewhere; what x held there reaches neither value nor gradient."""
    return jnp.where(mask, x, jnp.asarray(fill, jnp.asarray(x).dtype))


def masked_sum(x: Float[Array, "..."], mask: jax.Array) -> Float[Array, ""]:
    """Sum over the unmasked entries, float32."""
    return jnp.sum(masked(x, mask).astype(jnp.float32))


def masked_mean(x: Float[Array, "..."], mask: jax.Array) -> Float[Array, ""]:
    """Mean over the unmasked entries, float32; 0 with finite gradients if all are masked."""
    return masked_sum(x, mask) / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)


def masked_variance(x: Float[Array, "..."], mask: jax.Array, *, unbiased: bool = True) -> Float[Array, ""]:
    """Variance over the unmasked entries, float32; 0 with fewer than two.

    Args:
      x: values.
      mask: True where they count.
      unbiased: divide by n - 1 (Bessel) rather than by n.
    """
    count = jnp.sum(mask, dtype=jnp.float32)
    centred = masked(x.astype(jnp.float32) - masked_mean(x, mask), mask)
    divisor = count - 1.0 if unbiased else count
    return jnp.sum(jnp.square(centred)) / jnp.maximum(divisor, 1.0)
