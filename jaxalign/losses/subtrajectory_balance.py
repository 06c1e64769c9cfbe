"""Sub-trajectory balance: a flow of token rewards and values that the policy must match (LLMDoctor, stage 2)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import core as jax_core
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from jaxalign.arrays import Scalar, check_leading, check_range, check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def subtrajectory_balance_loss(
    logps: Float[Array, "B T"],
    rewards: Real[Array, "B T"],
    log_values: Float[Array, "B T1"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    terminated: bool | Shaped[Array, "..."] = True,
    reward_scale: Scalar = 1.0,
    ref_logps: Float[Array, "B T"] | None = None,
    reference_weight: Scalar = 0.0,
    decay: Scalar = 1.0,
    window: int | Int[Array, ""] | None = None,
    pin_terminal: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Array, " B"]:
    """Sub-trajectory balance: one loss per row, over all pairs of its states.

    log F_i = log V_i + sum_{k <= i} (reward_scale * r_k + reference_weight * log ref_k)
    e_mn = log F_n - log F_m - sum_{m < k <= n} log pi_k,      0 <= m < n <= L,  n - m <= window
    loss = sum_mn decay^(n - m) * e_mn^2, over sum_mn decay^(n - m) for the mean

    State i lies before the row's i-th unmasked token, state L after its last. A policy and values
    with loss 0 on all sequences, the terminal pinned, give pi proportional to exp(sum of rewards)
    * ref^reference_weight, and log V_0 is the log of its normalizer. With no pin, *every* policy has
    values of loss 0.

    e_mn telescopes into one-step residuals d_t, so nothing of size L^2 is made: with equal weights
    the mean is twice the sample variance of their running sum, else see `_lagged`. d_t is formed
    first and only then summed, as long sums of nearly equal size would lose the loss in float32. For the
    same reason `logps` should come from float32 logits: log-probs rounded to bfloat16 make the loss noise.

    Args:
      logps: log pi of each token, nats; any float dtype, computed in float32.
      rewards: r of each token (`token_rewards`), any sign; no gradient.
      log_values: log V of the T + 1 states around the T tokens, nats, unbounded; column t is before
        token t. States outside the run may hold anything.
      mask: tokens that contribute, one unbroken run per row; None for all. Unpack packed rows first.
      terminated: whether rows end with a stop token; bool or [B]. Rows cut by length are not pinned.
      reward_scale: eta, not negative.
      ref_logps: log-probs under a frozen reference; no gradient.
      reference_weight: kappa, not negative: weight of the reference in the target distribution.
      decay: lambda, in (0, 1]; below 1, near pairs weigh more.
      window: largest n - m, in tokens, 1 or more; None for all.
      pin_terminal: set log V = 0 at the last state of terminated rows, so that the outgoing flow equals the reward.
      reduction: mean over the row's pairs (does not grow with length), or their plain sum (as in
        the paper, grows with L^2).

    Returns:
      float32 [B]; with one token d_1^2; 0 for a row without tokens.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete hyper-parameter out of range; a reference_weight other than 0 without ref_logps.

    Source: arXiv:2601.10416; weights of SubTB(lambda), arXiv:2209.12782, normalized per row.
    """
    d, states = balance_residuals(
        logps,
        rewards,
        log_values,
        mask,
        terminated=terminated,
        reward_scale=reward_scale,
        ref_logps=ref_logps,
        reference_weight=reference_weight,
        pin_terminal=pin_terminal,
    )
    check_pair_weights(decay, window, reduction)
    if window is None and not isinstance(decay, jax_core.Tracer) and float(decay) == 1.0:
        total, pairs = _all_pairs(d, states)
    else:
        total, pairs = _lagged(d, states, decay, d.shape[1] if window is None else window)
    return total if reduction == "sum" else total / jnp.where(pairs > 0, pairs, 1.0)


def balance_residuals(
    logps, rewards, log_values, mask, *, terminated, reward_scale, ref_logps, reference_weight, pin_terminal
) -> tuple[Float[Array, "B T"], Bool[Array, "B T1"]]:
    """One-step residuals, and which states belong to the row's run.

    d_t = reward_scale * r_t + reference_weight * log ref_t + (log V_t - log V_{t-1}) - log pi_t

    Args: as in `subtrajectory_balance_loss`.

    Returns:
      (d, states): d is 0 where masked.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete hyper-parameter out of range; a weight without ref_logps.
    """
    check_range("reward_scale", reward_scale, 0.0)
    check_range("reference_weight", reference_weight, 0.0)
    traced = isinstance(reference_weight, jax_core.Tracer)
    if ref_logps is None and (traced or float(reference_weight) != 0.0):
        raise ValueError(f"reference_weight = {reference_weight} needs ref_logps")
    check_rank(2, logps=logps, log_values=log_values)
    check_shapes(logps=logps, rewards=rewards, mask=mask, ref_logps=ref_logps)
    rows, tokens = logps.shape
    if log_values.shape != (rows, tokens + 1):
        raise AssertionError(
            f"log_values has shape {log_values.shape}, expected {(rows, tokens + 1)}: one state more than "
            f"the tokens of logps, of shape {logps.shape}"
        )
    terminated = jnp.asarray(terminated)
    check_rank((0, 1), terminated=terminated)
    if terminated.ndim:
        check_leading(1, logps=logps, terminated=terminated)
    mask = as_mask(mask, logps)
    nothing = jnp.zeros((rows, 1), bool)
    after = jnp.concatenate([nothing, mask], axis=1)  # states after a counted token
    before = jnp.concatenate([mask, nothing], axis=1)
    pinned = after & ~before & terminated.reshape(-1, 1) if pin_terminal else jnp.zeros_like(after)
    values = masked(float32(log_values), (after | before) & ~pinned)
    d = reward_scale * jax.lax.stop_gradient(masked(float32(rewards), mask))
    if ref_logps is not None:
        d = d + reference_weight * jax.lax.stop_gradient(masked(float32(ref_logps), mask))
    d = masked(d + jnp.diff(values, axis=1) - masked(float32(logps), mask), mask)
    return d, after | before


def check_pair_weights(decay, window, reduction) -> None:
    """Checks the options that weight pairs of states.

    Raises:
      ValueError: naming the option.
    """
    check_range("decay", decay, 0.0, 1.0, open_low=True)
    check_range("window", window, 1.0)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, got {reduction!r}")


def _all_pairs(d, states) -> tuple[jax.Array, jax.Array]:
    """Sum over all pairs and their number: sum_{m<n} (c_n - c_m)^2 = N * sum_n (c_n - mean)^2."""
    c = jnp.pad(jnp.cumsum(d, axis=1), [(0, 0), (1, 0)])
    number = jnp.sum(states, axis=1, dtype=jnp.float32)
    mean = jnp.sum(masked(c, states), axis=1) / jnp.maximum(number, 1.0)
    # Centred first: N * sum(c^2) - sum(c)^2 is exact only where nothing rounds.
    total = number * jnp.sum(jnp.square(masked(c - mean[:, None], states)), axis=1)
    return total, 0.5 * number * (number - 1.0)


def _lagged(d, states, decay, window) -> tuple[jax.Array, jax.Array]:
    """Weighted sum over pairs at most `window` apart, and the sum of the weights.

    Of the states n - 1 ... n - h before each state n keep, with x = c_n - c_m,
      step = c_n - c_{n-h},   zeroth, first, second = sum_m decay^(n-m) * (1, x, x^2).
    Those of the next g states before n are the moments of g at n - h, moved by `step` and scaled by decay^h. So h
    doubles, and the bits of the window say which blocks to join: log2(T) passes over [B, T + 1]. Unlike prefix
    sums of c and c^2, none of it is a small difference of large numbers.
    """
    decay = jnp.asarray(decay, jnp.float32)
    longest = d.shape[1]  # no pair is further apart
    window = jnp.minimum(jnp.asarray(window).astype(jnp.int32), longest)
    step = jnp.pad(d, [(0, 0), (1, 0)])
    zeroth = decay * _earlier(states.astype(jnp.float32), 1)
    block = (step, zeroth, zeroth * step, zeroth * jnp.square(step))
    sums = (jnp.zeros_like(step),) * 4
    size = 1
    while size <= longest:
        joined = _join(block, _shifted(sums, size), decay**size)
        sums = tuple(jnp.where((window & size) > 0, new, old) for new, old in zip(joined, sums, strict=True))
        block = _join(block, _shifted(block, size), decay**size)
        size *= 2
    # States after the run look back on it too.
    return jnp.sum(masked(sums[3], states), axis=1), jnp.sum(masked(sums[1], states), axis=1)


def _join(near, far, scale):
    """Moments of the nearest states, and of the next ones seen from the end of the nearest, as moments of all."""
    step, zeroth, first, second = near
    far_step, far_zeroth, far_first, far_second = far
    return (
        step + far_step,
        zeroth + scale * far_zeroth,
        first + scale * (far_first + step * far_zeroth),
        second + scale * (far_second + 2.0 * step * far_first + jnp.square(step) * far_zeroth),
    )


def _shifted(moments, by: int):
    return tuple(_earlier(x, by) for x in moments)


def _earlier(x, by: int) -> jax.Array:
    """x[:, n - by], 0 before the first column."""
    by = min(by, x.shape[1])
    return jnp.pad(x, [(0, 0), (by, 0)])[:, : x.shape[1]]
