"""GMPO: a policy loss on the geometric mean of clipped ratios."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes
from jaxalign.losses.ratios import exp_ratio, log_ratios, row_advantages, row_means
from jaxalign.masking import as_mask


def gmpo_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip_low: Scalar = 0.4,
    clip_high: Scalar = 0.4,
) -> Float[Array, " B"]:
    """Geometric-mean policy optimization: one loss per row, the mean over rows is the objective.

    d = logps - old_logps
    c = min(d, clip_high) where A > 0, max(d, -clip_low) elsewhere
    loss = -A * exp(mean_t c)

    Each token is clipped by itself, before the mean; the clip is in log space. The mean is held within
    +-20 nats, so that extremes stay finite.

    Args:
      logps: log-probs under the policy that is trained, nats.
      old_logps: under the policy that sampled; no gradient.
      advantages: one per row; no gradient.
      mask: tokens that contribute; None for all.
      clip_low, clip_high: how far a log-ratio counts below and above 0, in nats, not negative.

    Returns:
      float32, one per row; -A where the policies are equal; 0 where a row has no unmasked token.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2507.20673.
    """
    check_range("clip_low", clip_low, 0.0)
    check_range("clip_high", clip_high, 0.0)
    check_rank(2, logps=logps)
    check_shapes(logps=logps, old_logps=old_logps, mask=mask)
    mask = as_mask(mask, logps)
    advantages = row_advantages(advantages, logps, mask)
    d = log_ratios(logps, old_logps, mask)
    upper = jnp.minimum(d, jnp.asarray(clip_high, jnp.float32))
    lower = jnp.maximum(d, -jnp.asarray(clip_low, jnp.float32))
    clipped = jnp.where(advantages[:, None] > 0, upper, lower)
    return -advantages * exp_ratio(row_means(clipped, mask))
