"""Advantages: GAE, whitening, group-relative and leave-one-out baselines."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked, masked_mean, masked_variance


def generalized_advantage_estimation(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Shaped[Array, "B T"],
    *,
    gamma: Scalar,
    lam: Scalar,
    bootstrap_values: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalized advantage estimation over the counted tokens of each row.

    delta_t = r_t + gamma * V(next) - V_t
    A_t = delta_t + gamma * lam * A(next);  returns = A + V

    "next" is the next *counted* token: masked steps inside a row (tool tokens) are
    skipped and carried over. For contiguous rows this equals setting the values after
    the end to 0.

    Args:
      rewards: reward of each token.
      values: `values[t]` is the value of the state before token t.
      mask: tokens that count.
      gamma: discount a token, in [0, 1].
      lam: lambda, in [0, 1].
      bootstrap_values: value of what follows the last counted token; 0 for None.

    Returns:
      (advantages, returns), float32, 0 where masked, no gradient to anything.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:1506.02438, eq. 16.
    """
    check_range("gamma", gamma, 0.0, 1.0)
    check_range("lam", lam, 0.0, 1.0)
    check_rank(2, rewards=rewards)
    check_shapes(rewards=rewards, values=values, mask=mask)
    mask = as_mask(mask, rewards)
    rewards = jax.lax.stop_gradient(masked(float32(rewards), mask))
    values = jax.lax.stop_gradient(masked(float32(values), mask))
    rows = rewards.shape[0]
    after = jnp.zeros(rows, jnp.float32) if bootstrap_values is None else float32(bootstrap_values)
    check_shapes(bootstrap_values=after, rows=rewards[:, 0] if rewards.shape[1] else after)
    gamma, lam = jnp.asarray(gamma, jnp.float32), jnp.asarray(lam, jnp.float32)

    def step(carry, column):
        advantage, following = carry
        reward, value, counts = column
        delta = reward + gamma * following - value
        new = delta + gamma * lam * advantage
        advantage = jnp.where(counts, new, advantage)
        following = jnp.where(counts, value, following)
        return (advantage, following), advantage

    start = (jnp.zeros(rows, jnp.float32), jax.lax.stop_gradient(after))
    _, columns = jax.lax.scan(step, start, (rewards.T, values.T, mask.T), reverse=True)
    advantages = masked(columns.T, mask)
    return advantages, masked(advantages + values, mask)


def whiten(
    x: Float[Array, "..."],
    mask: Shaped[Array, "..."] | None,
    *,
    shift_mean: bool = True,
    unbiased: bool = True,
) -> Float[Array, "..."]:
    """Scales x to variance 1 over the counted slots (and to mean 0).

    y = (x - mean) / sqrt(var + 1e-8);  with shift_mean=False the mean is added back

    Args:
      x: values of the whole batch; statistics are over all of it.
      mask: slots that count; None for all.
      shift_mean: take the mean away.
      unbiased: divide by n - 1 (TRL, verl) rather than by n (OpenAI).

    Returns:
      float32, the same shape; 0 where masked. With fewer than two counted slots the
      variance is taken as 0.

    Raises:
      AssertionError: shapes differ.
    """
    check_shapes(x=x, mask=mask)
    mask = as_mask(mask, x)
    x = masked(float32(x), mask)
    mean = masked_mean(x, mask)
    y = (x - mean) * jax.lax.rsqrt(masked_variance(x, mask, unbiased=unbiased) + 1e-8)
    return masked(y if shift_mean else y + mean, mask)


def group_advantages(
    rewards: Float[Array, "..."],
    group_size: int,
    mask: Shaped[Array, "..."] | None = None,
    *,
    scale: Literal["std", "batch", "none"] = "std",
    epsilon: float = 1e-4,
) -> Float[Array, "..."]:
    """Reward minus the mean of its group, over a standard deviation (GRPO).

    A = (r - mean_group) / (std + epsilon)

    Args:
      rewards: [B] or [B, T] (each column on its own); consecutive rows form a group.
      group_size: completions a prompt, 2 or more.
      mask: rewards that count; others are left out of their group's statistics.
      scale: `std` (of the group, n - 1), `batch` (of all counted rewards, n - 1) or `none`.
      epsilon: added to the standard deviation.

    Returns:
      float32, as given; 0 where masked, and in a group with one counted reward.

    Raises:
      ValueError: group size below 2, rows that do not divide by it, or no such scale.

    Source: arXiv:2402.03300, section 4.1.2; `none`: arXiv:2503.20783.
    """
    groups, counts, total, mask = _groups(rewards, group_size, mask)
    mean = total / jnp.maximum(counts, 1.0)
    centred = jnp.where(mask, groups - mean, 0.0)
    if scale == "std":
        variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / jnp.maximum(counts - 1.0, 1.0)
        centred = centred / (jnp.sqrt(variance) + epsilon)
    elif scale == "batch":
        centred = centred / (jnp.sqrt(masked_variance(groups, mask)) + epsilon)
    elif scale != "none":
        raise ValueError(f"scale must be std, batch or none, got {scale!r}")
    return centred.reshape(rewards.shape)


def leave_one_out_advantages(
    rewards: Float[Array, "..."], group_size: int, mask: Shaped[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """Reward minus the mean of the *other* rewards of its group (RLOO).

    A_i = r_i - sum_{j != i} r_j / (n - 1) = n / (n - 1) * (r_i - mean)

    Args:
      rewards: [B] or [B, T]; consecutive rows form a group.
      group_size: completions a prompt, 2 or more.
      mask: rewards that count.

    Returns:
      float32, as given; 0 where masked, and in a group with one counted reward.

    Raises:
      ValueError: group size below 2, or rows that do not divide by it.

    Source: arXiv:2402.14740, eq. 9.
    """
    groups, counts, total, mask = _groups(rewards, group_size, mask)
    others = (total - groups) / jnp.maximum(counts - 1.0, 1.0)
    return jnp.where(mask & (counts > 1), groups - others, 0.0).reshape(rewards.shape)


def _groups(rewards, group_size: int, mask):
    if group_size < 2:
        raise ValueError(f"group_size must be 2 or more, got {group_size}")
    if rewards.shape[0] % group_size:
        raise ValueError(f"{rewards.shape[0]} rows do not divide by group_size = {group_size}")
    check_rank((1, 2), rewards=rewards)
    check_shapes(rewards=rewards, mask=mask)
    mask = as_mask(mask, rewards)
    shape = (-1, group_size, *rewards.shape[1:])
    groups = masked(float32(rewards), mask).reshape(shape)
    mask = mask.reshape(shape)
    counts = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
    return groups, counts, jnp.sum(groups, axis=1, keepdims=True), mask
