"""From completions and scores to what a policy-gradient update reads.

Everything is in row coordinates [N, T]: column t belongs to token t, and the mask is
True at completion tokens. `values[t]` is the value of the state before token t.

    row      p p p c c c E . .      p prompt, c completion, E its stop token
    mask     0 0 0 1 1 1 1 0 0
    rewards  0 0 0 r r r r 0 0      r = -beta * KL; the score is added at E
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.arrays import AnyArray
from jaxalign.losses import generalized_advantage_estimation, kl_penalty, whiten
from jaxalign.training.rl.kl_controller import KLConfig
from jaxalign.training.rl.ppo_config import PPOLossConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RolloutScores:
    """What the models say of a rollout, 0 outside its mask.

    Attributes:
      logps, ref_logps: log-probs under policy and reference, nats; without a reference both are the policy's.
      values: of the state before each token.
      entropy: of the policy, nats.
      next_values: of the state after the last token, for rows cut by length.
    """

    logps: Float[AnyArray, "N T"]
    ref_logps: Float[AnyArray, "N T"]
    values: Float[AnyArray, "N T"]
    entropy: Float[AnyArray, "N T"]
    next_values: Float[AnyArray, " N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rollout earned.

    Attributes:
      scores: added at the last counted token.
      token_rewards: added at each token, 0 outside the mask.
      truncated: rows that ended by length.
    """

    scores: Float[AnyArray, " N"]
    token_rewards: Float[AnyArray, "N T"]
    truncated: Bool[AnyArray, " N"]


def advantages_of(
    scored: RolloutScores,
    mask: Bool[Array, "N T"],
    outcome: Outcome,
    coefficient: jax.Array,
    *,
    kl: KLConfig,
    loss: PPOLossConfig,
    whiten_rewards: bool,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Per-token rewards, advantages and returns.

    Args:
      scored: what the models say of the rollout.
      mask: completion tokens.
      outcome: its rewards.
      coefficient: KL coefficient, scalar.
      kl: the estimator.
      loss: gamma, lambda and whitening.
      whiten_rewards: scale rewards to variance 1, the mean kept.

    Returns:
      Advantages and returns, float32 [N, T], and metrics as scalars.
    """
    per_token_kl = kl_penalty(scored.logps, scored.ref_logps, mask, estimator=kl.estimator)
    non_score = -coefficient * per_token_kl
    last = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1
    rewards = non_score + outcome.token_rewards + jnp.where(last & mask, outcome.scores[:, None], 0.0)
    if whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, unbiased=loss.unbiased_variance)
    bootstrap = jnp.where(outcome.truncated, scored.next_values, 0.0) if loss.bootstrap_truncated else None
    advantages, returns = generalized_advantage_estimation(
        rewards, scored.values, mask, gamma=loss.gamma, lam=loss.lam, bootstrap_values=bootstrap
    )
    if loss.whiten_advantages:
        advantages = whiten(advantages, mask, unbiased=loss.unbiased_variance)
    rows = jnp.maximum(mask.any(1).sum(), 1)
    tokens = jnp.maximum(mask.sum(), 1)
    error = jnp.where(mask, returns - scored.values, 0.0)
    deviation = jnp.where(mask, returns - returns.sum() / tokens, 0.0)
    earned = non_score.sum() + outcome.token_rewards.sum() + outcome.scores.sum()
    return (
        advantages,
        returns,
        {
            "objective/kl": (scored.logps - scored.ref_logps).sum() / rows,
            "objective/kl_per_token": (scored.logps - scored.ref_logps).sum() / tokens,
            "objective/non_score_reward": non_score.sum() / rows,
            "objective/rlhf_reward": earned / rows,
            "objective/entropy": scored.entropy.sum() / tokens,
            "value/explained_variance": 1.0
            - jnp.square(error).sum() / jnp.maximum(jnp.square(deviation).sum(), 1e-8),
            "value/mean": scored.values.sum() / tokens,
        },
    )
