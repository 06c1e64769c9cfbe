"""WPO: weights completions by their likelihood under the policy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def wpo_weights(
    logps: Float[Array, "B T"],
    sum_squared_probs: Float[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
) -> Float[Array, " B"]:
    """Weighted preference optimization: the weight of each completion, with sampled alignment.

    a_t = logps_t - log(sum over the vocabulary of p_t^2)
    weight = exp(mean of a_t over the unmasked tokens)

    The second term is the log of the expected probability of a token drawn from the policy, so the policy's own
    completions have a weight of about 1. Multiply any preference loss of a pair by `wpo_weights(chosen) *
    wpo_weights(rejected)`.

    Args:
      logps: log-probs of the completion's tokens under the policy, nats.
      sum_squared_probs: sum of squared probabilities in [1 / V, 1], as `logprobs.linear_logprobs` returns it.
      mask: tokens that contribute; None for all.

    Returns:
      float32, without gradient; 0 for a row with no unmasked token (1 in TRL).

    Raises:
      AssertionError: shapes differ.

    Source: arXiv:2406.11827, eq. 2.
    """
    check_shapes(logps=logps, sum_squared_probs=sum_squared_probs, mask=mask)
    check_rank(2, logps=logps)
    mask = as_mask(mask, logps)
    likely = jnp.maximum(masked(float32(sum_squared_probs), mask, 1.0), jnp.finfo(jnp.float32).tiny)
    aligned = masked(float32(logps), mask) - jnp.log(likely)
    tokens = jnp.sum(mask, axis=1, dtype=jnp.float32)
    mean = jnp.sum(aligned, axis=1) / jnp.maximum(tokens, 1.0)
    return jax.lax.stop_gradient(jnp.where(tokens > 0, jnp.exp(mean), 0.0))
