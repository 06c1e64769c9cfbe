"""Named reductions: the choice of denominator is part of the algorithm.

Each divides by a count over the *whole* batch, which a micro-batch is given as `count`,
so that the parts of a split batch add up to the whole.

Over `grpo_loss`, `sequence_mean` makes GRPO as published, `token_mean` with the global count DAPO,
`token_mean` of each micro-batch alone BNPO, `fixed_length_mean` Dr. GRPO.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes
from jaxalign.masking import as_mask, masked, masked_sum


def token_mean(
    x: Float[Array, "B T"], mask: Shaped[Array, "B T"] | None, *, count: Scalar | None = None
) -> Float[Array, ""]:
    """Mean over unmasked tokens: tokens have equal weight, so long rows weigh more.

    Args:
      x: one value per token.
      mask: tokens that contribute; None for all.
      count: unmasked tokens of the whole batch, where x is a part of it.

    Returns:
      float32 scalar; 0 with finite gradients where nothing counts.

    Raises:
      AssertionError: shapes differ.
    """
    check_shapes(x=x, mask=mask)
    mask = as_mask(mask, x)
    number = jnp.sum(mask, dtype=jnp.float32) if count is None else jnp.asarray(count, jnp.float32)
    return masked_sum(x, mask) / jnp.maximum(number, 1.0)


def sequence_mean(
    x: Float[Array, "B T"], mask: Shaped[Array, "B T"] | None, *, count: Scalar | None = None
) -> Float[Array, ""]:
    """Mean of each row's token mean, over rows with any unmasked token: rows have equal weight.

    Args:
      x: one value per token.
      mask: tokens that contribute; None for all.
      count: rows with any unmasked token in the whole batch, where x is a part of it.

    Returns:
      float32 scalar; 0 with finite gradients where nothing counts.

    Raises:
      AssertionError: shapes differ, or x has no time axis.
    """
    check_rank(2, x=x)
    check_shapes(x=x, mask=mask)
    mask = as_mask(mask, x)
    tokens = jnp.sum(mask, axis=1, dtype=jnp.float32)
    rows = jnp.sum(masked(x, mask).astype(jnp.float32), axis=1) / jnp.maximum(tokens, 1.0)
    number = jnp.sum(tokens > 0, dtype=jnp.float32) if count is None else jnp.asarray(count, jnp.float32)
    return jnp.sum(rows) / jnp.maximum(number, 1.0)


def fixed_length_mean(
    x: Float[Array, "B T"], mask: Shaped[Array, "B T"] | None, *, length: Scalar, count: Scalar | None = None
) -> Float[Array, ""]:
    """Row sums divided by one fixed length, then the mean over rows: no length bias (Dr. GRPO).

    Args:
      x: one value per token.
      mask: tokens that contribute; None for all.
      length: the divisor, usually the longest completion allowed, in tokens; positive.
      count: rows with any unmasked token in the whole batch, where x is a part of it.

    Returns:
      float32 scalar; 0 with finite gradients where nothing counts.

    Raises:
      AssertionError: shapes differ, or x has no time axis.
      ValueError: a concrete length out of range.

    Source: arXiv:2503.20783.
    """
    check_range("length", length, 0.0, open_low=True)
    check_rank(2, x=x)
    check_shapes(x=x, mask=mask)
    mask = as_mask(mask, x)
    rows = jnp.sum(jnp.any(mask, axis=1), dtype=jnp.float32)
    number = rows if count is None else jnp.asarray(count, jnp.float32)
    return masked_sum(x, mask) / jnp.asarray(length, jnp.float32) / jnp.maximum(number, 1.0)
