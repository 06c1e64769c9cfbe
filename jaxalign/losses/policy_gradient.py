"""Policy gradients from advantages: plain, and clipped around the sampling policy."""

from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_rank, check_shapes, float32
from jaxalign.losses.ratios import (
    check_clips,
    clipped_surrogate,
    exp_ratio,
    log_ratios,
    token_advantages,
)
from jaxalign.masking import as_mask, masked


def reinforce_loss(
    logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """REINFORCE: one loss per token, whose gradient is the policy gradient.

    loss = -A * logps

    Args:
      logps: log-probs under the policy that is trained, which is the one that sampled, nats.
      advantages: one per row or one per token; no gradient.
      mask: tokens that contribute; None for all.

    Returns:
      float32, unreduced; 0 where masked.

    Raises:
      AssertionError: shapes differ.

    Source: Williams (1992), "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning".
    """
    check_rank(2, logps=logps)
    check_shapes(logps=logps, mask=mask)
    mask = as_mask(mask, logps)
    return -token_advantages(advantages, logps, mask) * masked(float32(logps), mask)


def gpg_loss(
    logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Group policy gradient: `reinforce_loss` with `gpg_advantages`; reduce it with `token_mean`.

    loss = -A * logps

    No ratio, no clip, no reference; what the method adds is in its advantages, which make up for
    the groups that give no gradient.

    Args:
      logps, mask: as in `reinforce_loss`.
      advantages: those of `gpg_advantages`; no gradient.

    Returns:
      float32, unreduced; 0 where masked.

    Raises:
      AssertionError: shapes differ.

    Source: arXiv:2504.02546.
    """
    return reinforce_loss(logps, advantages, mask)


def ppo_policy_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    dual_clip: Scalar | None = None,
) -> Float[Array, "B T"]:
    """PPO's clipped surrogate, one loss per token.

    r = exp(logps - old_logps)
    loss = max(-A * r, -A * clip(r, 1 - clip_low, 1 + clip_high))
    dual clip, where A < 0: loss = min(loss, -A * dual_clip)

    The log-ratio is held within +-20 nats, so that extremes stay finite.

    Args:
      logps: log-probs under the policy that is trained, nats.
      old_logps: under the policy that sampled; no gradient.
      advantages: one per row or one per token; no gradient.
      mask: tokens that contribute; None for all.
      clip_low, clip_high: clip range below and above 1; clip_low in [0, 1].
      dual_clip: bound on the ratio where the advantage is negative, above 1; None for none.

    Returns:
      float32, unreduced; -A where the policies are equal; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:1707.06347, eq. 7; asymmetric: arXiv:2503.14476; dual clip: arXiv:1912.09729, eq. 5.
    """
    check_clips(clip_low, clip_high, dual_clip)
    check_rank(2, logps=logps)
    check_shapes(logps=logps, old_logps=old_logps, mask=mask)
    mask = as_mask(mask, logps)
    advantages = token_advantages(advantages, logps, mask)
    ratio = exp_ratio(log_ratios(logps, old_logps, mask))
    return masked(clipped_surrogate(ratio, advantages, clip_low, clip_high, dual_clip), mask)
