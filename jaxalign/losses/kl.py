"""Per-token estimates of the KL divergence from samples."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import check_shapes
from jaxalign.losses.ratios import LARGEST_LOG_RATIO, log_ratios
from jaxalign.masking import as_mask


def kl_penalty(
    logps: Float[Array, "..."],
    ref_logps: Float[Array, "..."],
    mask: Shaped[Array, "..."] | None = None,
    *,
    estimator: Literal["k1", "k2", "k3", "abs"] = "k1",
) -> Float[Array, "..."]:
    """Estimates KL(policy || reference) at tokens sampled from the policy.

    d = logps - ref_logps
    k1 = d;  k2 = d^2 / 2;  k3 = exp(-d) - 1 + d;  abs = |d|

    k1 and k3 are unbiased, k3 is never negative, k2 has the gradient of the KL. k3 takes a d below -20
    for -20, with no gradient: its exp would overflow where the policy all but excludes a token that the
    reference does not.

    Args:
      logps: log-probs of the tokens under the policy, nats; any float dtype, computed in float32.
      ref_logps: of the same tokens under the reference; no gradient.
      mask: tokens that contribute; None for all.
      estimator: which.

    Returns:
      float32 nats, the same shape; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: no such estimator.

    Source: J. Schulman, "Approximating KL divergence" (2020).
    """
    check_shapes(logps=logps, ref_logps=ref_logps, mask=mask)
    mask = as_mask(mask, logps)
    d = log_ratios(logps, ref_logps, mask)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * jnp.square(d)
    if estimator == "k3":
        d = jnp.maximum(d, -LARGEST_LOG_RATIO)
        return jnp.expm1(-d) + d
    if estimator == "abs":
        return jnp.abs(d)
    raise ValueError(f"estimator must be k1, k2, k3 or abs, got {estimator!r}")
