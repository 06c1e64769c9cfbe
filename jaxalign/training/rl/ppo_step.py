"""What one optimizer step of PPO minimizes: the clipped policy loss and the critic's."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxalign.arrays import AnyArray
from jaxalign.losses import ppo_policy_loss, ppo_value_loss, sequence_mean, token_mean
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.own_loss import check_own_loss
from jaxalign.training.core.scoring import TokenScores
from jaxalign.training.core.step import Metrics, mean_of
from jaxalign.training.rl.actor_critic import ActorCritic
from jaxalign.training.rl.gae_inputs import Outcome, RolloutScores
from jaxalign.training.rl.ppo_config import PPOLossConfig
from jaxalign.training.rl.rollout_metrics import sampler_gaps, step_metrics

# `gae_inputs.advantages_of` with a run's settings.
AdvantagesOf = Callable[..., tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
# loss(logps, old_logps, advantages, mask) -> [B, T], in place of the clipped policy loss.
PolicyLoss = Callable[..., jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PPOBatch(TokenRows):
    """A minibatch of a scored rollout.

    Attributes:
      old_logps: log-probs under the policy that sampled, nats.
      old_values: of the critic before the update.
      advantages, returns: see `gae_inputs.advantages_of`.
      weights: importance weights of the policy loss; 1 without an importance cap.
      policy_weight: 0 while only the critic learns, else 1.
    """

    old_logps: Float[AnyArray, "B T"]
    old_values: Float[AnyArray, "B T"]
    advantages: Float[AnyArray, "B T"]
    returns: Float[AnyArray, "B T"]
    weights: Float[AnyArray, "B T"]
    policy_weight: Float[AnyArray, " B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PPORollout(TokenRows):
    """A whole rollout with one optimizer step on it, whose own forward passes score it.

    Attributes:
      outcome: what the rollout earned.
      sampler_logps: log-probs that the sampler reported, nats.
      coefficient: of the KL penalty, repeated.
      policy_weight: see `PPOBatch`.
      ref_logps: log-probs under the reference, nats; None without one.
    """

    outcome: Outcome
    sampler_logps: Float[AnyArray, "B T"]
    coefficient: Float[AnyArray, " B"]
    policy_weight: Float[AnyArray, " B"]
    ref_logps: Float[AnyArray, "B T"] | None = None


def make_ppo_loss(
    models: ActorCritic, config: PPOLossConfig, temperature: float, own: PolicyLoss | None = None
):
    """Builds the loss function of `make_update`: clipped policy loss + value_weight * value loss, of a `PPOBatch`.

    With a critic of its own the two losses touch different leaves, so value_weight only scales the critic's gradient
    (which Adam undoes); with a shared trunk it balances them. `own` takes the place of the clipped policy loss.
    """

    def loss(params: Any, frozen: Any, batch: PPOBatch, key: Any, counts: dict[str, jax.Array]):
        del key  # dropout is off in PPO, in the update too
        scores, values, _ = models.score(params, frozen, batch, temperature=temperature)
        return _loss_of_scores(config, scores, values, batch, counts, own)

    return loss


def make_single_step_ppo_loss(
    models: ActorCritic,
    config: PPOLossConfig,
    temperature: float,
    advantages_of: AdvantagesOf,
    own: PolicyLoss | None = None,
):
    """The same loss for a `PPORollout`: the step begins with the policy and the critic that score the rollout.

    Its metrics are those of `advantages_of` and of `sampler_gaps` too.
    """

    def loss(params: Any, frozen: Any, batch: PPORollout, key: Any, counts: dict[str, jax.Array]):
        del key
        scores, values, after = models.score(params, frozen, batch, temperature=temperature)
        logps, entropy, old_values, after = jax.lax.stop_gradient(
            (scores.logps, scores.entropy, values, after)
        )
        known = RolloutScores(
            logps=logps,
            ref_logps=logps if batch.ref_logps is None else batch.ref_logps,
            values=old_values,
            entropy=entropy,
            next_values=after,
        )
        advantages, returns, objective = advantages_of(known, batch.mask, batch.outcome, batch.coefficient[0])
        scored = PPOBatch(
            tokens=batch.tokens,
            lengths=batch.lengths,
            mask=batch.mask,
            old_logps=logps,
            old_values=old_values,
            advantages=advantages,
            returns=returns,
            weights=jnp.ones_like(advantages),
            policy_weight=batch.policy_weight,
        )
        total, metrics = _loss_of_scores(config, scores, values, scored, counts, own)
        metrics |= {name: (value, jnp.ones(())) for name, value in objective.items()}
        return total, metrics | sampler_gaps(scores, batch.sampler_logps, batch.mask)

    return loss


def _loss_of_scores(
    config: PPOLossConfig,
    scores: TokenScores,
    values: jax.Array,
    batch: PPOBatch,
    counts: dict[str, jax.Array],
    own: PolicyLoss | None,
) -> tuple[jax.Array, Metrics]:
    mask = batch.mask

    def reduce(terms: jax.Array) -> jax.Array:
        if config.reduction == "sequence":
            return sequence_mean(terms, mask, count=counts["rows"])
        return token_mean(terms, mask, count=counts["tokens"])

    policy_loss = own or functools.partial(
        ppo_policy_loss,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip or None,
    )
    policy_terms = policy_loss(scores.logps, batch.old_logps, batch.advantages, mask) * batch.weights
    value_terms = ppo_value_loss(
        values, batch.old_values, batch.returns, mask, clip=config.value_clip or None
    )
    policy_terms = policy_terms - config.entropy_weight * scores.entropy
    total = reduce(policy_terms * batch.policy_weight[:, None])
    total += config.value_weight * reduce(value_terms)
    metrics = step_metrics(scores, batch.old_logps, mask) | {
        "policy/loss": mean_of(policy_terms, mask),
        "value/loss": mean_of(value_terms, mask),
    }
    if own is None:
        ratio = jnp.exp(jnp.where(mask, scores.logps - batch.old_logps, 0.0))
        clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
        metrics["policy/clip_fraction"] = mean_of(clipped, mask)
    if config.value_clip:
        moved = jnp.abs(values - batch.old_values) > config.value_clip
        metrics["value/clip_fraction"] = mean_of(moved, mask)
    return total, metrics


def check_policy_loss(loss: Any, config: PPOLossConfig) -> PolicyLoss | None:
    """The user's loss, called as the clipped policy loss is, without its options; see `check_own_loss`."""
    tokens = ("B", "T")
    arrays = {"logps": tokens, "old_logps": tokens, "advantages": tokens, "mask": tokens}
    return check_own_loss(loss, arrays, tokens, config=config, unread=("clip_low", "clip_high", "dual_clip"))
