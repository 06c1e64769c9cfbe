"""Unlikelihood: lowers the probability of unwanted tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked

CERTAIN = -1e-6
"""Above this log-prob the loss goes on along its tangent: float32 log-probs hold no more of 1 - p."""


def unlikelihood_loss(
    logps: Float[Array, "B T"], mask: Shaped[Array, "B T"] | None = None
) -> Float[Array, "B T"]:
    """Unlikelihood: one loss per unwanted token.

    loss = -log(1 - p),  p = exp(logps)

    For p beyond exp(-1e-6) the tangent at that point takes over, so that p = 1 (a loss of 14.8) has a
    finite loss that still pushes down. Its slope there, 1e6, meets the factor 1 - p in
    d(logps)/d(logits); the gradient by the logits stays of order 1.

    Args:
      logps: log p(token), nats, of the tokens that should be less likely; any float dtype,
        computed in float32.
      mask: tokens that contribute (the unwanted ones); None for all.

    Returns:
      float32 nats, unreduced; 0 where masked.

    Raises:
      AssertionError: shapes differ, or not [B, T].

    Source: arXiv:1908.04319. Its authors' code clips 1 - p from below instead, which ends the
    gradient where the model is most certain.
    """
    check_rank(2, logps=logps)
    check_shapes(logps=logps, mask=mask)
    mask = as_mask(mask, logps)
    logps = masked(float32(logps), mask, fill=-1.0)
    certain = logps > CERTAIN
    # p / (1 - p) at CERTAIN is 1 / expm1(-CERTAIN), and expm1(x) = x to within 1e-6.
    tangent = -jax.nn.log1mexp(jnp.float32(-CERTAIN)) + (logps - CERTAIN) / -CERTAIN
    loss = jnp.where(certain, tangent, -jax.nn.log1mexp(-jnp.where(certain, -1.0, logps)))
    return masked(loss, mask)
