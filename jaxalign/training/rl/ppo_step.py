"""What one optimizer step of PPO minimises: the clipped policy loss and the critic's."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxalign.losses import ppo_policy_loss, ppo_value_loss, sequence_mean, token_mean
from jaxalign.training.core.packing import packing_of
from jaxalign.training.core.scoring import TokenScores
from jaxalign.training.core.step import Metrics, mean_of
from jaxalign.training.rl.actor_critic import ActorCritic
from jaxalign.training.rl.gae_inputs import Scored
from jaxalign.training.rl.ppo_config import PPOLossConfig
from jaxalign.training.rl.rollout_metrics import sampler_gaps, step_metrics

__all__ = ["ppo_counts", "make_ppo_loss"]

# `gae_inputs.advantages_of` with a run's settings.
AdvantageFn = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]


def make_ppo_loss(
    models: ActorCritic,
    config: PPOLossConfig,
    temperature: float,
    advantages_of: AdvantageFn | None = None,
    own: Callable[..., jax.Array] | None = None,
):
    """Builds the loss function of `make_update`: clipped policy loss + value_weight * value loss.

    A batch has old_logps, old_values, advantages and returns [B, T]; or, where it is a whole rollout and this the only
    step on it, what `advantages_of` makes them of: the step then begins with the policy and the critic that they are
    made by, so that its own forward passes tell their log-probs and values. Such a batch has sampler_logps,
    token_rewards and, where there is a reference, ref_logps [B, T]; scores, truncated and coefficient [B].

    `own(logps, old_logps, advantages, mask) -> [B, T]` takes the place of the clipped policy loss.

    `batch["weights"]` [B, T], read with an importance cap only, weighs the clipped policy loss.
    `batch["policy_weight"]` [B] is 0 while only the critic learns. With a critic of its
    own the two losses touch different leaves, so value_weight only scales its gradient
    (which Adam undoes); with a shared trunk it balances them.
    """

    def reduce(values, mask, counts):
        if config.reduction == "sequence":
            return sequence_mean(values, mask, count=counts["rows"])
        return token_mean(values, mask, count=counts["tokens"])

    def loss(params, frozen, batch, key, counts):
        del key  # dropout is off in PPO, in the update too
        mask = batch["mask"]
        scores, values, after = models.score(
            params,
            frozen,
            batch["tokens"],
            batch["lengths"],
            mask,
            temperature=temperature,
            packing=packing_of(batch),
        )
        metrics = {}
        if "old_logps" not in batch:
            assert advantages_of is not None
            learnt, metrics = _with_advantages(advantages_of, scores, values, after, batch)
            batch = {**batch, **learnt}
        clip = {
            "clip_low": config.clip_low,
            "clip_high": config.clip_high,
            "dual_clip": config.dual_clip or None,
        }
        policy_loss = own or functools.partial(ppo_policy_loss, **clip)
        policy_terms = policy_loss(scores.logps, batch["old_logps"], batch["advantages"], mask)
        if "weights" in batch:
            policy_terms = policy_terms * batch["weights"]
        value_terms = ppo_value_loss(
            values, batch["old_values"], batch["returns"], mask, clip=config.value_clip or None
        )
        policy_terms = policy_terms - config.entropy_weight * scores.entropy
        weight = batch["policy_weight"][:, None]
        total = reduce(policy_terms * weight, mask, counts)
        total += config.value_weight * reduce(value_terms, mask, counts)
        metrics |= step_metrics(scores, batch["old_logps"], mask) | {
            "policy/loss": mean_of(policy_terms, mask),
            "value/loss": mean_of(value_terms, mask),
        }
        if own is None:
            ratio = jnp.exp(jnp.where(mask, scores.logps - batch["old_logps"], 0.0))
            clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
            metrics["policy/clip_fraction"] = mean_of(clipped, mask)
        if config.value_clip:
            moved = jnp.abs(values - batch["old_values"]) > config.value_clip
            metrics["value/clip_fraction"] = mean_of(moved, mask)
        return total, metrics

    return loss


def _with_advantages(
    advantages_of: AdvantageFn, scores: TokenScores, values, after, batch
) -> tuple[dict[str, jax.Array], Metrics]:
    """What a rollout is learnt from, and its metrics, by what its only step finds before it moves anything."""
    mask = batch["mask"]
    logps, entropy, values, after = jax.lax.stop_gradient((scores.logps, scores.entropy, values, after))
    reference = batch.get("ref_logps", logps)
    scored = Scored(batch["tokens"], batch["lengths"], mask, logps, reference, values, entropy, after)
    outcome = {name: batch[name] for name in ("scores", "token_rewards", "truncated")}
    learnt, found = advantages_of(scored, **outcome, coefficient=batch["coefficient"][0])
    metrics = {name: (value, jnp.ones(())) for name, value in found.items()}
    return learnt, metrics | sampler_gaps(scores, batch["sampler_logps"], mask)


def ppo_counts(batch) -> dict[str, jax.Array]:
    """Counted tokens and counted rows of the whole minibatch."""
    mask = batch["mask"]
    return {"tokens": jnp.sum(mask, dtype=jnp.float32), "rows": jnp.sum(mask.any(1), dtype=jnp.float32)}
