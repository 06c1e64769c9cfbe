"""Advantages over the tokens or rows of a whole batch: GAE, whitening, REINFORCE++, ReMax."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32
from jaxalign.losses.kl import kl_penalty
from jaxalign.losses.statistics import centre, divide, mean_square
from jaxalign.masking import as_mask, masked


def generalized_advantage_estimation(
    rewards: Real[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Shaped[Array, "B T"],
    *,
    gamma: Scalar,
    lam: Scalar,
    bootstrap_values: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalized advantage estimation over the unmasked tokens of each row.

    delta_t = r_t + gamma * V(next) - V_t
    A_t = delta_t + gamma * lam * A(next);  returns = A + V

    "next" is the next *unmasked* token: masked steps inside a row (tool tokens) are
    skipped and carried over. For contiguous rows this equals setting the values after
    the end to 0.

    Args:
      rewards: reward of each token.
      values: `values[t]` is the value of the state before token t.
      mask: tokens that contribute.
      gamma: discount a token, in [0, 1].
      lam: lambda, in [0, 1].
      bootstrap_values: value of the state after the last unmasked token; None is 0.

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
    rows = jnp.zeros(rewards.shape[0], jnp.float32)
    after = rows if bootstrap_values is None else float32(bootstrap_values)
    check_shapes(rewards_rows=rows, bootstrap_values=after)
    after = jax.lax.stop_gradient(after)
    gamma, lam = jnp.asarray(gamma, jnp.float32), jnp.asarray(lam, jnp.float32)

    def step(carry, column):
        advantage, following = carry
        reward, value, counts = column
        delta = reward + gamma * following - value
        new = delta + gamma * lam * advantage
        advantage = jnp.where(counts, new, advantage)
        following = jnp.where(counts, value, following)
        return (advantage, following), advantage

    _, columns = jax.lax.scan(step, (rows, after), (rewards.T, values.T, mask.T), reverse=True)
    advantages = masked(columns.T, mask)
    return advantages, masked(advantages + values, mask)


def whiten(
    x: Real[Array, "..."],
    mask: Shaped[Array, "..."] | None,
    *,
    shift_mean: bool = True,
    unbiased: bool = True,
    mean: Scalar | None = None,
    variance: Scalar | None = None,
) -> Float[Array, "..."]:
    """Scales x to variance 1 over the unmasked entries (and to mean 0).

    y = (x - mean) / sqrt(var + 1e-8);  with shift_mean=False the mean is added back

    Args:
      x: values of the whole batch; statistics are over all of it. The only argument with a gradient,
        which goes through the statistics too.
      mask: entries that contribute; None for all.
      shift_mean: subtract the mean.
      unbiased: divide by n - 1 (TRL, verl) rather than by n (OpenAI, OpenRLHF).
      mean, variance: those of the whole batch, where x is a part of it; None for those of x.

    Returns:
      float32, the same shape; 0 where masked, and where all unmasked values are equal (but for a mean
      added back). With fewer than two unmasked entries the variance is taken as 0.

    Raises:
      AssertionError: shapes differ.
    """
    check_shapes(x=x, mask=mask)
    mask = as_mask(mask, x)
    x = masked(float32(x), mask)
    if mean is None:
        mean, y = centre(x, mask)
    else:
        mean = jnp.asarray(mean, jnp.float32)
        y = masked(x - mean, mask)
    if variance is None:
        variance = mean_square(y, mask, unbiased=unbiased)
    y = y * jax.lax.rsqrt(jnp.asarray(variance, jnp.float32) + 1e-8)
    return masked(y if shift_mean else y + mean, mask)


def global_batch_advantages(
    rewards: Real[Array, "..."],
    mask: Shaped[Array, "..."] | None = None,
    *,
    epsilon: Scalar = 1e-4,
    mean: Scalar | None = None,
    std: Scalar | None = None,
) -> Float[Array, "..."]:
    """Rewards normalized over the whole batch.

    A = (r - mean) / (std + epsilon)

    `whiten` for rewards: epsilon stands beside the standard deviation (sample, n - 1), not inside the
    root, and is large, as the advantages of TRL have it.

    Args:
      rewards: any shape, usually [B].
      mask: rewards that contribute; None for all.
      epsilon: added to the standard deviation, in units of the reward; not negative.
      mean, std: those of the whole batch, where rewards are a part of it; None for those of rewards.

    Returns:
      float32, the same shape, no gradient; 0 where masked, and where all unmasked rewards are equal.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete epsilon out of range.
    """
    check_range("epsilon", epsilon, 0.0)
    check_shapes(rewards=rewards, mask=mask)
    mask = as_mask(mask, rewards)
    rewards = jax.lax.stop_gradient(masked(float32(rewards), mask))
    if mean is None:
        _, centred = centre(rewards, mask)
    else:
        centred = masked(rewards - jnp.asarray(mean, jnp.float32), mask)
    if std is None:
        std = jnp.sqrt(mean_square(centred, mask))
    return divide(centred, jnp.asarray(std, jnp.float32) + jnp.asarray(epsilon, jnp.float32))


def remax_advantages(
    rewards: Real[Array, " B"], greedy_rewards: Real[Array, " B"], mask: Shaped[Array, " B"] | None = None
) -> Float[Array, " B"]:
    """ReMax: the reward minus that of the greedy completion of the same prompt.

    A = r - r_greedy

    Args:
      rewards: of the sampled completions.
      greedy_rewards: of each row's prompt, completed at temperature 0.
      mask: rows that contribute; None for all.

    Returns:
      float32, no gradient; 0 where masked.

    Raises:
      AssertionError: shapes differ.

    Source: arXiv:2310.10505.
    """
    check_rank(1, rewards=rewards)
    check_shapes(rewards=rewards, greedy_rewards=greedy_rewards, mask=mask)
    mask = as_mask(mask, rewards)
    advantages = masked(float32(rewards), mask) - masked(float32(greedy_rewards), mask)
    return jax.lax.stop_gradient(advantages)


def reinforce_plus_plus_advantages(
    rewards: Real[Array, " B"],
    old_logps: Float[Array, "B T"],
    ref_logps: Float[Array, "B T"],
    mask: Shaped[Array, "B T"],
    *,
    beta: Scalar,
    gamma: Scalar = 1.0,
    normalize: bool = True,
    unbiased: bool = True,
    mean: Scalar | None = None,
    variance: Scalar | None = None,
) -> Float[Array, "B T"]:
    """REINFORCE++: the reward minus the KL of the remaining tokens, whitened over all tokens of the global batch.

    kl_t = old_logps_t - ref_logps_t                 (k1 of `kl_penalty`)
    r_t = -beta * kl_t, plus the row's reward at its last unmasked token
    G_t = r_t + gamma * G(next);  A = `whiten`(G)

    With gamma = 1, G_t = reward - beta * sum_{i >= t} kl_i. Masked steps inside a row are skipped.

    Args:
      rewards: one per row.
      old_logps: log-probs under the policy that sampled, nats.
      ref_logps: under the frozen reference.
      mask: tokens that contribute.
      beta: weight of the KL, not negative.
      gamma: discount a token, in [0, 1].
      normalize: whiten; without it the result is G, whose mean and variance over the global batch are
        what micro-batches need.
      unbiased, mean, variance: as in `whiten`.

    Returns:
      float32, no gradient to anything; 0 where masked.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2501.03262. Its baseline form, for several completions per prompt, is
    `reinforce_plus_plus_baseline_advantages`.
    """
    check_range("beta", beta, 0.0)
    check_rank(2, old_logps=old_logps)
    check_shapes(old_logps=old_logps, ref_logps=ref_logps, mask=mask)
    check_shapes(old_logps_rows=jnp.zeros(old_logps.shape[:1]), rewards=rewards)
    mask = as_mask(mask, old_logps)
    kl = kl_penalty(old_logps, ref_logps, mask, estimator="k1")
    later = jnp.cumsum(mask[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
    last = mask & (later == 1)
    shaped = jnp.where(last, float32(rewards)[:, None], 0.0) - jnp.asarray(beta, jnp.float32) * kl
    # Without values and with lambda = 1 the advantage is the discounted return.
    returns, _ = generalized_advantage_estimation(shaped, jnp.zeros_like(shaped), mask, gamma=gamma, lam=1.0)
    if not normalize:
        return returns
    return whiten(returns, mask, unbiased=unbiased, mean=mean, variance=variance)
