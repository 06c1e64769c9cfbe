"""RLOO: a clipped policy loss that treats a completion as one action."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_rank, check_shapes
from jaxalign.losses.ratios import check_clips, clipped_surrogate, exp_ratio, log_ratios, row_advantages
from jaxalign.masking import as_mask


def rloo_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
) -> Float[Array, " B"]:
    """REINFORCE leave-one-out, clipped: one loss per row, the mean over rows is the objective.

    r = exp(sum_t (logps - old_logps)), the ratio of the whole completion
    loss = max(-A * r, -A * clip(r, 1 - clip_low, 1 + clip_high))

    The paper has no clip; where policy and old policy are equal its gradient is the paper's. The
    difference of each token is taken first and summed then; the sum is held within +-20 nats, so that
    extremes stay finite.

    Args:
      logps: log-probs under the policy that is trained, nats.
      old_logps: under the policy that sampled; no gradient.
      advantages: one per row, as `leave_one_out_advantages` gives them; no gradient. The KL to a
        reference, if wanted, is subtracted from the rewards: its k1 estimate summed over the row.
      mask: tokens that contribute; None for all.
      clip_low, clip_high: clip range below and above 1; clip_low in [0, 1].

    Returns:
      float32, one per row; -A where the policies are equal; 0 where a row has no unmasked token.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2402.14740.
    """
    check_clips(clip_low, clip_high)
    check_rank(2, logps=logps)
    check_shapes(logps=logps, old_logps=old_logps, mask=mask)
    mask = as_mask(mask, logps)
    advantages = row_advantages(advantages, logps, mask)
    ratio = exp_ratio(jnp.sum(log_ratios(logps, old_logps, mask), axis=1))
    return clipped_surrogate(ratio, advantages, clip_low, clip_high)
