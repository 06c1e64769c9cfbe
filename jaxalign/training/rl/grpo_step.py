"""What one optimizer step of GRPO or one of its relatives minimises, on a minibatch of scored completions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import losses
from jaxalign.errors import ConfigError
from jaxalign.training.core.own_loss import SIZES, check_own_loss, own_function
from jaxalign.training.core.packing import packing_of
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.step import mean_of
from jaxalign.training.rl.clip_fraction import clipped_of
from jaxalign.training.rl.grpo_config import GRPOLossConfig
from jaxalign.training.rl.rollout_metrics import sampler_gaps, step_metrics


def make_grpo_loss(
    policy: CausalPolicy,
    config: GRPOLossConfig,
    temperature: float,
    length: int,
    own: Callable[..., Any] | None = None,
):
    """Builds the loss function of `make_update` for minibatches of scored completions.

    Batches hold tokens, lengths, mask [B, T]; weights [B, T] (importance weights of the tokens); advantages [B, T],
    equal along a row but for REINFORCE++ and process supervision; ref_logps [B, T] where the loss has a KL term; and
    old_logps [B, T], or sampler_logps [B, T] where this is the only step on the rollout: the policy that sampled is
    then the one that the step begins with. For `own` see `policy_terms`.
    """
    with_kl, recipe = config.beta and not config.kl_in_reward, config.recipe

    def loss(params, frozen, batch, key, counts):
        del key
        mask = batch["mask"]
        scores = policy.score(
            params["policy"],
            frozen["policy"],
            batch["tokens"],
            batch["lengths"],
            mask,
            temperature=temperature,
            packing=packing_of(batch),
        )
        alone = "old_logps" not in batch
        old = jax.lax.stop_gradient(scores.logps) if alone else batch["old_logps"]
        terms = policy_terms(config, scores.logps, {**batch, "old_logps": old}, own)
        per_token = -config.entropy_weight * scores.entropy
        if with_kl:
            kl = losses.kl_penalty(scores.logps, batch["ref_logps"], mask, estimator="k3")
            per_token += config.beta * kl
        if terms.ndim == 1:  # one loss a row, and a mean over rows
            # Weights of a row's tokens are equal.
            total = jnp.sum(terms * jnp.max(batch["weights"], axis=1)) / jnp.maximum(counts["rows"], 1.0)
        else:
            per_token += terms * batch["weights"]
            total = jnp.zeros(())
        total += recipe.reduction(per_token, mask, counts, length)
        metrics = step_metrics(scores, old, mask)
        if own is None and recipe.clipped:
            clipped = clipped_of(recipe.clipped, scores.logps, old, batch["advantages"], mask, recipe.clip)
            metrics["policy/clip_fraction"] = mean_of(*clipped)
        if alone:
            metrics |= sampler_gaps(scores, batch["sampler_logps"], mask)
        if alone and with_kl:
            kl = jnp.where(mask, scores.logps - batch["ref_logps"], 0.0).sum()
            metrics["objective/kl"] = (kl, jnp.sum(mask.any(1), dtype=jnp.float32))
        return total, metrics

    return loss


def policy_terms(
    config: GRPOLossConfig, logps: jax.Array, batch: Any, own: Callable[..., Any] | None = None
) -> jax.Array:
    """The algorithm's loss, a token [B, T] or a row [B]; `own` is called in its place, without its options."""
    recipe, mask, advantages = config.recipe, batch["mask"], batch["advantages"]
    if recipe.of_rows:
        advantages = jnp.sum(advantages, axis=1) / jnp.maximum(mask.sum(1), 1)
    arrays = (logps, batch["old_logps"], advantages, mask) if recipe.reads_old else (logps, advantages, mask)
    if own is not None:
        return own(*arrays)
    options = recipe.clip_arguments(*recipe.clip)
    if recipe.takes_dual_clip:
        options["dual_clip"] = config.dual_clip or None
    return recipe.loss(*arrays, **options)


def check_policy_loss(loss: Any, config: GRPOLossConfig) -> Any:
    """The user's loss (see `check_own_loss`), called as the one that `config` names is, without its options."""
    recipe, tokens = config.recipe, ("B", "T")
    result = ("B",) if recipe.of_rows else tokens
    old = {"old_logps": tokens} if recipe.reads_old else {}
    arrays = {"logps": tokens, **old, "advantages": result, "mask": tokens}
    unread = ("clip_low", "clip_high", "dual_clip")
    return check_own_loss(loss, arrays, result, config=config, unread=unread)


def check_advantages(advantages: Any, config: GRPOLossConfig) -> Any:
    """The user's advantages, or None where there are none; see `check_own_loss`, also for errors."""
    found = own_function(
        "advantages",
        advantages,
        "loss.advantage_function",
        config.advantage_function,
        {"rewards": ("B",), "group_size": SIZES["B"], "mask": ("B",)},
        ("B",),
        config=config,
        unread=("advantages",),
    )
    if found is not None and config.beta and config.advantage.takes_kl:
        raise ConfigError(
            f"loss.beta: with loss.name={config.name} the KL is part of the advantages, whose place yours take; leave "
            "it at 0, or take another loss.name"
        )
    return found
