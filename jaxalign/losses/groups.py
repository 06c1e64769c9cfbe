"""Advantages within the group of completions of one prompt."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32
from jaxalign.losses.advantages import global_batch_advantages
from jaxalign.losses.statistics import centre, divide, mean_square
from jaxalign.masking import as_mask, masked


def group_advantages(
    rewards: Real[Array, " B"] | Real[Array, "B T"],
    group_size: int,
    mask: Shaped[Array, "..."] | None = None,
    *,
    scale: Literal["std", "batch", "none"] = "std",
    epsilon: Scalar = 1e-4,
    std: Scalar | None = None,
) -> Float[Array, "..."]:
    """Reward minus the mean of its group, divided by a standard deviation (GRPO).

    A = (r - mean_group) / (std + epsilon)

    Args:
      rewards: [B] or [B, T] (each column on its own); consecutive rows form a group.
      group_size: completions per prompt, 2 or more.
      mask: rewards that contribute; others are excluded from their group's statistics.
      scale: `std` (of the group, n - 1), `batch` (of all unmasked rewards, n - 1) or `none`.
      epsilon: added to the standard deviation, in units of the reward; not negative.
      std: for `batch`, that of the whole batch, where rewards are a part of it.

    Returns:
      float32, as given, no gradient; 0 where masked, in a group with one unmasked reward, and exactly 0
      in a group whose unmasked rewards are equal.

    Raises:
      AssertionError: shapes differ.
      ValueError: group size below 2, rows that are not divisible by it, no such scale, or a concrete epsilon
        out of range.

    Source: arXiv:2402.03300, section 4.1.2; `none`: arXiv:2503.20783.
    """
    check_range("epsilon", epsilon, 0.0)
    groups, mask = _groups(rewards, group_size, mask)
    _, centred = centre(groups, mask, axis=1)
    small = jnp.asarray(epsilon, jnp.float32)
    if scale == "std":
        centred = divide(centred, jnp.sqrt(mean_square(centred, mask, axis=1)) + small)
    elif scale == "batch":
        if std is None:
            std = jnp.sqrt(mean_square(centre(groups, mask)[1], mask))
        centred = divide(centred, jnp.asarray(std, jnp.float32) + small)
    elif scale != "none":
        raise ValueError(f"scale must be std, batch or none, got {scale!r}")
    return centred.reshape(rewards.shape)


def leave_one_out_advantages(
    rewards: Real[Array, " B"] | Real[Array, "B T"],
    group_size: int,
    mask: Shaped[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Reward minus the mean of the *other* rewards of its group (RLOO).

    A_i = r_i - sum_{j != i} r_j / (n - 1) = n / (n - 1) * (r_i - mean)

    Args:
      rewards: [B] or [B, T]; consecutive rows form a group.
      group_size: completions per prompt, 2 or more.
      mask: rewards that contribute.

    Returns:
      float32, as given, no gradient; 0 where masked, and in a group with one unmasked reward.

    Raises:
      AssertionError: shapes differ.
      ValueError: group size below 2, or rows that are not divisible by it.

    Source: arXiv:2402.14740, eq. 9.
    """
    groups, mask = _groups(rewards, group_size, mask)
    counts = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
    _, centred = centre(groups, mask, axis=1)
    return (counts / jnp.maximum(counts - 1.0, 1.0) * centred).reshape(rewards.shape)


def gpg_advantages(
    rewards: Real[Array, " B"],
    group_size: int,
    mask: Shaped[Array, " B"] | None = None,
    *,
    alpha: Scalar | None = None,
) -> Float[Array, " B"]:
    """Group policy gradient: reward minus the mean of its group, scaled up to compensate for groups without a signal.

    A = alpha * (r - mean_group)
    alpha = unmasked rows / unmasked rows of groups whose rewards differ

    Groups that were all right or all wrong give no gradient but count in the denominator; alpha undoes
    this. The paper divides by a further constant, which is 1 in its code.

    Args:
      rewards: [B]; consecutive rows form a group.
      group_size: completions per prompt, 2 or more.
      mask: rewards that contribute.
      alpha: that of the whole batch, where rewards are a part of it; 1 for none.

    Returns:
      float32, no gradient; 0 where masked, and in a group whose unmasked rewards are equal.

    Raises:
      AssertionError: shapes differ.
      ValueError: group size below 2, rows that are not divisible by it, or a concrete alpha that is negative.

    Source: arXiv:2504.02546. verl takes the rows with a reward other than 0 for those with a signal.
    """
    check_range("alpha", alpha, 0.0)
    check_rank(1, rewards=rewards)
    groups, mask = _groups(rewards, group_size, mask)
    _, centred = centre(groups, mask, axis=1)
    if alpha is None:
        counts = jnp.sum(mask, axis=1, dtype=jnp.float32)
        signal = jnp.sum(jnp.where(jnp.any(centred != 0, axis=1), counts, 0.0))
        alpha = jnp.sum(counts) / jnp.maximum(signal, 1.0)
    return (jnp.asarray(alpha, jnp.float32) * centred).reshape(rewards.shape)


def reinforce_plus_plus_baseline_advantages(
    rewards: Real[Array, " B"],
    group_size: int,
    mask: Shaped[Array, " B"] | None = None,
    *,
    epsilon: Scalar = 1e-4,
    mean: Scalar | None = None,
    std: Scalar | None = None,
) -> Float[Array, " B"]:
    """REINFORCE++ with a baseline: reward minus its group's mean, normalized over the global batch.

    C = r - mean_group
    A = (C - mean(C)) / (std(C) + epsilon)

    Rows have equal weight, regardless of length. For weights by tokens, as in verl and OpenRLHF, spread
    `group_advantages(..., scale="none")` over the tokens and `whiten` them.

    Args:
      rewards: [B]; consecutive rows form a group.
      group_size: completions per prompt, 2 or more.
      mask: rewards that contribute.
      epsilon, mean, std: as in `global_batch_advantages`, of C.

    Returns:
      float32, no gradient; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: group size below 2, rows that are not divisible by it, or a concrete epsilon out of range.

    Source: arXiv:2501.03262.
    """
    check_rank(1, rewards=rewards)
    centred = group_advantages(rewards, group_size, mask, scale="none")
    return global_batch_advantages(centred, mask, epsilon=epsilon, mean=mean, std=std)


def gdpo_advantages(
    rewards: Real[Array, "B R"],
    group_size: int,
    weights: Real[Array, " R"] | None = None,
    mask: Shaped[Array, "B R"] | None = None,
    *,
    epsilon: Scalar = 1e-4,
    normalize: bool = True,
    mean: Scalar | None = None,
    std: Scalar | None = None,
) -> Float[Array, " B"]:
    """Several rewards, each normalized within its group, then summed, then normalized over the batch.

    N_k = (r_k - mean_group) / (std_group + epsilon), for each reward k
    S = sum_k w_k * N_k
    A = (S - mean(S)) / (std(S) + epsilon)

    Normalizing first keeps one reward from drowning the others in a plain sum. Standard
    deviations are of samples (n - 1).

    Args:
      rewards: one per row and kind; consecutive rows form a group.
      group_size: completions per prompt, 2 or more.
      weights: one per reward; None weights each by 1.
      mask: rewards that apply to their row; a row counts where any does.
      epsilon: added to both standard deviations; not negative.
      normalize: over the batch; without it the result is S.
      mean, std: of S over the whole batch, where rewards are a part of it.

    Returns:
      float32, no gradient; 0 in rows without an unmasked reward.

    Raises:
      AssertionError: shapes differ.
      ValueError: group size below 2, rows that are not divisible by it, or a concrete epsilon out of range.

    Source: arXiv:2601.05242.
    """
    check_rank(2, rewards=rewards)
    check_shapes(rewards=rewards, mask=mask)
    if weights is not None:
        check_shapes(rewards_kinds=jnp.zeros(rewards.shape[1:]), weights=weights)
    parts = group_advantages(rewards, group_size, mask, scale="std", epsilon=epsilon)
    if weights is not None:
        parts *= jax.lax.stop_gradient(float32(weights))
    total = jnp.sum(parts, axis=1)
    if not normalize:
        return total
    rows = jnp.any(as_mask(mask, rewards), axis=1)
    return global_batch_advantages(total, rows, epsilon=epsilon, mean=mean, std=std)


def process_group_advantages(
    rewards: Real[Array, "B T"],
    steps: Shaped[Array, "B T"],
    group_size: int,
    mask: Shaped[Array, "B T"] | None = None,
    *,
    epsilon: Scalar = 1e-4,
) -> Float[Array, "B T"]:
    """GRPO with process supervision: step rewards normalized over the group, then summed from each token on.

    N = (r - mean_group) / (std_group + epsilon)     over all steps of all completions of the group
    A_t = sum of N over the steps that end at or after token t

    Statistics weigh steps the same, so a completion of many steps counts more in its group's mean. The
    sum grows with the steps still to come: a policy gains by further steps that are better than the mean.

    Args:
      rewards: read only where a step ends.
      steps: tokens at which a step ends.
      group_size: completions per prompt, 2 or more; consecutive rows form a group.
      mask: tokens that contribute; None for all. A step that ends at another token does not count either.
      epsilon: added to the standard deviation (of samples, n - 1), in units of the reward; not negative.

    Returns:
      float32, no gradient; 0 where masked, after a row's last step, and in a group whose step rewards
      are equal.

    Raises:
      AssertionError: shapes differ, or not [B, T].
      ValueError: group size below 2, rows that are not divisible by it, or a concrete epsilon out of range.

    Source: arXiv:2402.03300, section 4.1.3.
    """
    check_range("epsilon", epsilon, 0.0)
    check_rank(2, rewards=rewards)
    check_shapes(rewards=rewards, steps=steps, mask=mask)
    mask = as_mask(mask, rewards)
    groups, ends = (
        x.reshape(x.shape[0], -1) for x in _groups(rewards, group_size, as_mask(steps, rewards) & mask)
    )
    _, centred = centre(groups, ends, axis=1)
    scale = jnp.sqrt(mean_square(centred, ends, axis=1)) + jnp.asarray(epsilon, jnp.float32)
    normal = divide(centred, scale).reshape(rewards.shape)
    return masked(jnp.cumsum(normal[:, ::-1], axis=1)[:, ::-1], mask)


def _groups(rewards, group_size: int, mask):
    """(rewards without gradient, bool mask) with rows in groups on axis 1."""
    check_rank((1, 2), rewards=rewards)
    check_shapes(rewards=rewards, mask=mask)
    if group_size < 2:
        raise ValueError(f"group_size must be 2 or more, got {group_size}")
    if rewards.shape[0] % group_size:
        raise ValueError(f"{rewards.shape[0]} rows are not divisible by group_size = {group_size}")
    mask = as_mask(mask, rewards)
    shape = (-1, group_size, *rewards.shape[1:])
    groups = jax.lax.stop_gradient(masked(float32(rewards), mask))
    return groups.reshape(shape), mask.reshape(shape)
