"""What one optimizer step of PPO minimises: the clipped policy loss and the critic's."""

import jax
import jax.numpy as jnp

from jaxalign.losses import ppo_policy_loss, ppo_value_loss, sequence_mean, token_mean
from jaxalign.training.actor_critic import ActorCritic
from jaxalign.training.on_policy import step_metrics
from jaxalign.training.packing import packing_of
from jaxalign.training.ppo_config import PPOLossConfig
from jaxalign.training.step import mean_of

__all__ = ["ppo_counts", "ppo_loss"]


def ppo_loss(models: ActorCritic, config: PPOLossConfig, temperature: float):
    """Builds the loss function of `make_update`: clipped policy loss + value_weight * value loss.

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
        scores, values = models.forward(
            params,
            frozen,
            batch["tokens"],
            batch["lengths"],
            mask,
            temperature=temperature,
            packing=packing_of(batch),
        )
        policy_terms = ppo_policy_loss(
            scores.logps,
            batch["old_logps"],
            batch["advantages"],
            mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip or None,
        )
        if config.importance_cap:
            policy_terms = policy_terms * batch["weights"]
        value_terms = ppo_value_loss(
            values, batch["old_values"], batch["returns"], mask, clip=config.value_clip or None
        )
        policy_terms = policy_terms - config.entropy_weight * scores.entropy
        weight = batch["policy_weight"][:, None]
        total = reduce(policy_terms * weight, mask, counts)
        total += config.value_weight * reduce(value_terms, mask, counts)
        ratio = jnp.exp(jnp.where(mask, scores.logps - batch["old_logps"], 0.0))
        clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
        metrics = step_metrics(scores, batch["old_logps"], mask) | {
            "policy/loss": mean_of(policy_terms, mask),
            "policy/clip_fraction": mean_of(clipped, mask),
            "value/loss": mean_of(value_terms, mask),
        }
        if config.value_clip:
            moved = jnp.abs(values - batch["old_values"]) > config.value_clip
            metrics["value/clip_fraction"] = mean_of(moved, mask)
        return total, metrics

    return loss


def ppo_counts(batch) -> dict[str, jax.Array]:
    """Counted tokens and counted rows of the whole minibatch."""
    mask = batch["mask"]
    return {"tokens": jnp.sum(mask, dtype=jnp.float32), "rows": jnp.sum(mask.any(1), dtype=jnp.float32)}
