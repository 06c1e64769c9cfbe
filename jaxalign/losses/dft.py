"""Dynamic fine-tuning: the supervised loss, weighted by the token's own probability."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def dft_loss(logps: Float[Array, "B T"], mask: Shaped[Array, "B T"] | None = None) -> Float[Array, "B T"]:
    """Dynamic fine-tuning: one loss per token.

    loss = -stop_gradient(p) * log p,  p = exp(logps)

    The weight takes away the 1 / p in the gradient of log p, so that improbable tokens do not
    dominate: the gradient by the logits is that of -p.

    Args:
      logps: log p(token), nats, as `jaxalign.logprobs.linear_logprobs` gives them; any float
        dtype, computed in float32.
      mask: tokens that contribute; None for all.

    Returns:
      float32 nats, unreduced; at most 1 / e; 0 where masked.

    Raises:
      AssertionError: shapes differ, or not [B, T].

    Source: arXiv:2508.05629.
    """
    check_rank(2, logps=logps)
    check_shapes(logps=logps, mask=mask)
    logps = masked(float32(logps), as_mask(mask, logps))
    return -jax.lax.stop_gradient(jnp.exp(logps)) * logps
