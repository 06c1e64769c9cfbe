"""Sub-trajectory balance over an explicit matrix of state pairs: slow, a direct transcription of the definition."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real, Shaped

from jaxalign.arrays import Scalar
from jaxalign.losses.subtrajectory_balance import balance_residuals, check_pair_weights


def subtrajectory_balance_dense(
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
    """`subtrajectory_balance_loss`, pair by pair: memory [B, T + 1, T + 1].

    loss = sum_{m < n} w_mn (c_n - c_m)^2 (/ sum w_mn),  c_n = sum_{k <= n} d_k
    w_mn = decay^(n - m) * [n - m <= window]

    Args, Returns, Raises, Source: as in `subtrajectory_balance_loss`. Meant for checks.
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
    c = jnp.pad(jnp.cumsum(d, axis=1), [(0, 0), (1, 0)])
    positions = jnp.arange(c.shape[1])
    apart = positions - positions[:, None]
    # Before the run c is 0 and after it constant; those states are no part of a pair.
    pairs = states[:, :, None] & states[:, None, :] & (apart > 0)
    if window is not None:
        pairs = pairs & (apart <= window)
    weights = jnp.where(
        pairs, jnp.asarray(decay, jnp.float32) ** jnp.maximum(apart, 0).astype(jnp.float32), 0.0
    )
    total = jnp.sum(weights * jnp.square(c[:, None, :] - c[:, :, None]), axis=(1, 2))
    weight = jnp.sum(weights, axis=(1, 2))
    return total if reduction == "sum" else total / jnp.where(weight > 0, weight, 1.0)
