"""LD-DPO: log-probs without a length bias."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def length_desensitized_logps(
    logps: Float[Array, "B T"],
    mask: Shaped[Array, "B T"] | None,
    shared_length: Int[Array, " B"],
    *,
    alpha: Scalar,
) -> Float[Array, " B"]:
    """Length-desensitized log-prob of a completion: tokens beyond the other completion's length have less weight.

    logp = sum of its first shared_length unmasked tokens + alpha * sum of those that follow

    Use it for all four log-probs of `dpo_loss` (or another preference loss), including the reference's.

    Args:
      logps: log-probs of tokens, nats.
      mask: tokens that contribute; None for all.
      shared_length: the unmasked tokens of the shorter completion of the pair, on both of its sides.
      alpha: weight of the tokens that follow, in [0, 1]; 1 is the plain sum.

    Returns:
      float32 nats, one per row; 0 for a row with no unmasked token.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete alpha out of range.

    Source: arXiv:2409.06411.
    """
    check_range("alpha", alpha, 0.0, 1.0)
    check_shapes(logps=logps, mask=mask)
    check_rank(2, logps=logps)
    mask = as_mask(mask, logps)
    check_shapes(rows_of_logps=jnp.any(mask, axis=1), shared_length=shared_length)
    place = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    shared = place <= shared_length.astype(jnp.int32)[:, None]
    weight = jnp.where(shared, 1.0, jnp.asarray(alpha, jnp.float32))
    return jnp.sum(weight * masked(float32(logps), mask), axis=1)
