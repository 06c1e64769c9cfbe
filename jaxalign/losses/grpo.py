"""GRPO and its relatives, which differ in the denominator and in the level of the ratio."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32
from jaxalign.losses.kl import kl_penalty
from jaxalign.losses.ratios import (
    Level,
    check_clips,
    clipped_surrogate,
    importance_ratios,
    log_ratios,
    row_advantages,
    row_means,
    token_advantages,
)
from jaxalign.losses.reductions import fixed_length_mean, token_mean
from jaxalign.masking import as_mask, masked


def grpo_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    dual_clip: Scalar | None = None,
    importance_level: Level = "token",
    ref_logps: Float[Array, "B T"] | None = None,
    beta: Scalar = 0.0,
    correct_kl: bool = False,
    weights: Float[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Group relative policy optimization: one loss per token, of `group_advantages`.

    r = exp(logps - old_logps)
    policy = max(-A * r, -A * clip(r, 1 - clip_low, 1 + clip_high));  A < 0: at most -A * dual_clip
    d = ref_logps - logps;  kl = exp(d) - d - 1        (k3 of `kl_penalty`)
    loss = weights * policy + beta * (r if correct_kl else 1) * kl

    The denominator is the reduction's: `sequence_mean` makes GRPO as published, `token_mean` with the
    global count DAPO, `token_mean` of the micro-batch alone BNPO, `fixed_length_mean` Dr. GRPO.

    Log-ratios are clipped to +-20 nats, so that extremes stay finite.

    Args:
      logps: log-probs under the policy that is trained, nats.
      old_logps: under the policy that sampled; no gradient.
      advantages: one per row or one per token; no gradient.
      mask: tokens that contribute; None for all.
      clip_low, clip_high: clip range below and above 1; clip_low in [0, 1].
      dual_clip: upper bound, above 1, on the ratio of tokens with a negative advantage; None disables it. TRL's
        `delta`, the same for values of 1 + clip_high or more.
      importance_level: "token"; "sequence", where r is the geometric mean over the row's tokens (GSPO);
        "sequence_token", the same value, but each token's gradient is its own (GSPO-token).
      ref_logps: under the frozen reference, for the KL; no gradient.
      beta: weight of the KL, not negative.
      correct_kl: multiply the KL by the ratio, which makes its gradient that of the KL at the token
        level (DeepSeek-V3.2, arXiv:2512.02556). The GRPO paper does not, nor does this by default; TRL
        does by default.
      weights: of the policy's part, such as `importance_weights`; no gradient.

    Returns:
      float32, unreduced; -A where the three policies are equal; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range; beta without ref_logps; no such level.

    Source: arXiv:2402.03300, eq. 3 and 4.
    """
    check_clips(clip_low, clip_high, dual_clip)
    check_range("beta", beta, 0.0)
    if ref_logps is None and not (isinstance(beta, (int, float)) and beta == 0):
        raise ValueError(f"beta = {beta} needs ref_logps")
    check_rank(2, logps=logps)
    check_shapes(logps=logps, old_logps=old_logps, mask=mask, ref_logps=ref_logps, weights=weights)
    mask = as_mask(mask, logps)
    # Once, so that the gradients of both parts are added in float32 and rounded after.
    logps = float32(logps)
    advantages = token_advantages(advantages, logps, mask)
    ratio = importance_ratios(log_ratios(logps, old_logps, mask), mask, importance_level)
    loss = clipped_surrogate(ratio, advantages, clip_low, clip_high, dual_clip)
    if weights is not None:
        loss *= jax.lax.stop_gradient(masked(float32(weights), mask))
    if ref_logps is not None:
        kl = kl_penalty(logps, ref_logps, mask, estimator="k3")
        loss += jnp.asarray(beta, jnp.float32) * (ratio * kl if correct_kl else kl)
    return masked(loss, mask)


def bnpo_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    dual_clip: Scalar | None = None,
    importance_level: Level = "token",
    ref_logps: Float[Array, "B T"] | None = None,
    beta: Scalar = 0.0,
    correct_kl: bool = False,
    weights: Float[Array, "B T"] | None = None,
) -> Float[Array, ""]:
    """`grpo_loss` averaged over the tokens of the batch it is given (TRL's `bnpo`).

    The denominator is the micro-batch's own: unlike the others here, the result depends on how a batch
    is split. `dapo_loss` with its count does not.

    Args:
      logps, old_logps, advantages, mask, and all options: as in `grpo_loss`.

    Returns:
      float32 scalar: already reduced.

    Raises:
      AssertionError, ValueError: as `grpo_loss`.
    """
    loss = grpo_loss(
        logps,
        old_logps,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        importance_level=importance_level,
        ref_logps=ref_logps,
        beta=beta,
        correct_kl=correct_kl,
        weights=weights,
    )
    return token_mean(loss, mask)


def dapo_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.28,
    dual_clip: Scalar | None = None,
    importance_level: Level = "token",
    ref_logps: Float[Array, "B T"] | None = None,
    beta: Scalar = 0.0,
    correct_kl: bool = False,
    weights: Float[Array, "B T"] | None = None,
    count: Scalar | None = None,
) -> Float[Array, ""]:
    """DAPO: `grpo_loss` with a wider upper clip, averaged over all tokens of the global batch.

    loss = sum_{rows, t} grpo_loss / count

    The rest of the method is elsewhere: `overlong_penalty`, and sampling until groups have rewards that differ.

    Args:
      logps, old_logps, advantages, mask, and options not named here: as in `grpo_loss`.
      clip_low, clip_high: the paper's 0.2 and 0.28 (TRL clips 0.2 on both sides).
      count: unmasked tokens of the whole batch, where this is a part of it.

    Returns:
      float32 scalar: already reduced; the parts of a batch, each with the global count, add up.

    Raises:
      AssertionError, ValueError: as `grpo_loss`.

    Source: arXiv:2503.14476.
    """
    loss = grpo_loss(
        logps,
        old_logps,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        importance_level=importance_level,
        ref_logps=ref_logps,
        beta=beta,
        correct_kl=correct_kl,
        weights=weights,
    )
    return token_mean(loss, mask, count=count)


def dr_grpo_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    length: Scalar,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    dual_clip: Scalar | None = None,
    importance_level: Level = "token",
    ref_logps: Float[Array, "B T"] | None = None,
    beta: Scalar = 0.0,
    correct_kl: bool = False,
    weights: Float[Array, "B T"] | None = None,
    count: Scalar | None = None,
) -> Float[Array, ""]:
    """Dr. GRPO: `grpo_loss` summed over each row, divided by one fixed length, averaged over rows.

    loss = sum_{rows, t} grpo_loss / (length * count)

    Its advantages are not divided by a standard deviation: `group_advantages(..., scale="none")`.

    Args:
      logps, old_logps, advantages, mask, and options not named here: as in `grpo_loss`.
      length: the divisor, usually the longest completion allowed, in tokens; positive.
      count: rows with any unmasked token in the whole batch, where this is a part of it.

    Returns:
      float32 scalar: already reduced; the parts of a batch, each with the global count, add up.

    Raises:
      AssertionError, ValueError: as `grpo_loss`.

    Source: arXiv:2503.20783.
    """
    loss = grpo_loss(
        logps,
        old_logps,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        importance_level=importance_level,
        ref_logps=ref_logps,
        beta=beta,
        correct_kl=correct_kl,
        weights=weights,
    )
    return fixed_length_mean(loss, mask, length=length, count=count)


def gspo_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    clip_low: Scalar = 3e-4,
    clip_high: Scalar = 4e-4,
    dual_clip: Scalar | None = None,
    ref_logps: Float[Array, "B T"] | None = None,
    beta: Scalar = 0.0,
    correct_kl: bool = False,
    weights: Float[Array, "B T"] | None = None,
) -> Float[Array, " B"]:
    """Group sequence policy optimization: one loss per row, the mean over rows is the objective.

    s = exp(mean_t (logps - old_logps)), the geometric mean of the tokens' ratios
    loss = max(-A * s, -A * clip(s, 1 - clip_low, 1 + clip_high))

    Each token has 1/n of the row's gradient. For advantages per token (GSPO-token) take
    `grpo_loss(..., importance_level="sequence_token")` and `sequence_mean`: where a row's advantages are
    equal, both have the same value and gradient.

    Args:
      logps, old_logps, mask: as in `grpo_loss`.
      advantages: one per row; no gradient.
      clip_low, clip_high: far narrower than a token's ratio needs; the paper's are the defaults.
      dual_clip, ref_logps, beta, correct_kl, weights: as in `grpo_loss`; the KL is averaged over the row's tokens.

    Returns:
      float32, one per row; -A where the policies are equal; 0 where a row has no unmasked token.

    Raises:
      AssertionError, ValueError: as `grpo_loss`.

    Source: arXiv:2507.18071.
    """
    check_rank(2, logps=logps)
    check_shapes(logps=logps, old_logps=old_logps, mask=mask)
    counted = as_mask(mask, logps)
    loss = grpo_loss(
        logps,
        old_logps,
        row_advantages(advantages, logps, counted),
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        importance_level="sequence",
        ref_logps=ref_logps,
        beta=beta,
        correct_kl=correct_kl,
        weights=weights,
    )
    return row_means(loss, counted)
