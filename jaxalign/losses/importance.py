"""Importance weights of tokens sampled from a distribution that differs from the policy."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes
from jaxalign.losses.ratios import exp_ratio, log_ratios, row_means, token_advantages
from jaxalign.masking import as_mask, masked


def importance_weights(
    old_logps: Float[Array, "B T"],
    sampling_logps: Float[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    cap: Scalar = 3.0,
    floor: Scalar = 0.0,
    level: Literal["token", "sequence"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
) -> Float[Array, "B T"]:
    """Truncated importance weights for a sampler that differs from the policy in training.

    w = exp(old_logps - sampling_logps), of each token; level "sequence": of the sums over the row
    truncate: clip(w, floor, cap);  mask: w where floor <= w <= cap, else 0

    They multiply the policy's part of a loss (`weights` of `grpo_loss`); the denominator stays.

    Args:
      old_logps: log-probs of the sampled tokens under the policy as the trainer scores it, nats.
      sampling_logps: of the same tokens under the distribution they were drawn from.
      mask: tokens that contribute; None for all.
      cap: the largest weight, positive.
      floor: the smallest, not negative, at most cap.
      level: "token" is biased but has low variance; "sequence" is the true ratio of completions, one for all tokens
        of a row.
      mode: what happens to weights outside [floor, cap].

    Returns:
      float32, no gradient to anything; 1 where both agree (and 1 lies inside); 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range, no such level or mode.

    Source: Yao et al. (2025), "Your efficient RL framework secretly brings you off-policy RL training".
    """
    check_range("cap", cap, 0.0, open_low=True)
    check_range("floor", floor, 0.0, cap if isinstance(cap, (int, float)) else float("inf"))
    check_rank(2, old_logps=old_logps)
    check_shapes(old_logps=old_logps, sampling_logps=sampling_logps, mask=mask)
    mask = as_mask(mask, old_logps)
    log_weight = jax.lax.stop_gradient(log_ratios(old_logps, sampling_logps, mask))
    if level == "sequence":
        log_weight = jnp.broadcast_to(jnp.sum(log_weight, axis=1, keepdims=True), log_weight.shape)
    elif level != "token":
        raise ValueError(f"level must be token or sequence, got {level!r}")
    weight = exp_ratio(log_weight)
    low, high = jnp.asarray(floor, jnp.float32), jnp.asarray(cap, jnp.float32)
    if mode == "truncate":
        weight = jnp.clip(weight, low, high)
    elif mode == "mask":
        weight = jnp.where((weight >= low) & (weight <= high), weight, 0.0)
    else:
        raise ValueError(f"mode must be truncate or mask, got {mode!r}")
    return masked(weight, mask)


def off_policy_weights(
    logps: Float[Array, "B T"],
    sampling_logps: Float[Array, "B T"],
    advantages: Real[Array, " B"] | Real[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    threshold: Scalar,
) -> Float[Array, "B T"]:
    """0 for tokens of bad completions that the policy has moved away from, 1 for all others.

    kl = mean_t (sampling_logps - logps), over the row's tokens
    weight = 0 where A < 0 and kl > threshold, else 1

    They multiply the policy's part of a loss (`weights` of `grpo_loss`); the denominator stays.

    Args:
      logps: log-probs under the policy that is trained, nats.
      sampling_logps: under the distribution the tokens were drawn from.
      advantages: one per row or one per token.
      mask: tokens that contribute; None for all.
      threshold: nats per token, not negative.

    Returns:
      float32, no gradient to anything; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete threshold out of range.

    Source: arXiv:2512.02556, eq. 9.
    """
    check_range("threshold", threshold, 0.0)
    check_rank(2, logps=logps)
    check_shapes(logps=logps, sampling_logps=sampling_logps, mask=mask)
    mask = as_mask(mask, logps)
    advantages = token_advantages(advantages, logps, mask)
    kl = -row_means(jax.lax.stop_gradient(log_ratios(logps, sampling_logps, mask)), mask)
    dropped = (advantages < 0) & (kl > jnp.asarray(threshold, jnp.float32))[:, None]
    return jnp.where(mask & ~dropped, 1.0, 0.0)
