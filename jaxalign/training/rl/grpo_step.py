"""What one optimizer step of GRPO or one of its relatives minimizes, on a minibatch of scored completions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxalign import losses
from jaxalign.arrays import AnyArray
from jaxalign.errors import ConfigError
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.own_loss import SIZES, check_own_loss, own_function
from jaxalign.training.core.scoring import CausalPolicy, TokenScores
from jaxalign.training.core.step import Metrics, mean_of
from jaxalign.training.rl.clip_fraction import clipped_of
from jaxalign.training.rl.grpo_config import GRPOLossConfig
from jaxalign.training.rl.rollout_metrics import sampler_gaps, step_metrics

# loss(logps, old_logps, advantages, mask), in place of the algorithm's; see `check_policy_loss`.
PolicyLoss = Callable[..., jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GRPOBatch(TokenRows):
    """A minibatch of a scored rollout.

    Attributes:
      old_logps: log-probs under the policy that sampled, nats.
      advantages: equal along a row but for REINFORCE++ and process supervision.
      weights: importance weights of the policy loss; 1 without an importance cap.
      ref_logps: log-probs under the reference, nats, for the KL term; None without a reference.
    """

    old_logps: Float[AnyArray, "B T"]
    advantages: Float[AnyArray, "B T"]
    weights: Float[AnyArray, "B T"]
    ref_logps: Float[AnyArray, "B T"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GRPORollout(TokenRows):
    """A whole rollout with one optimizer step on it: the policy that sampled is the one that the step begins with.

    Attributes:
      sampler_logps: log-probs that the sampler reported, nats.
      advantages, ref_logps: see `GRPOBatch`.
    """

    sampler_logps: Float[AnyArray, "B T"]
    advantages: Float[AnyArray, "B T"]
    ref_logps: Float[AnyArray, "B T"] | None = None


def make_grpo_loss(
    policy: CausalPolicy,
    config: GRPOLossConfig,
    temperature: float,
    length: int,
    own: PolicyLoss | None = None,
):
    """Builds the loss function of `make_update` for a `GRPOBatch`; for `own` see `policy_terms`."""

    def loss(params: Any, frozen: Any, batch: GRPOBatch, key: Any, counts: dict[str, jax.Array]):
        del key
        scores = policy.score(params["policy"], frozen["policy"], batch, temperature=temperature)
        return _loss_of_scores(config, scores, batch, counts, length, own)

    return loss


def make_single_step_grpo_loss(
    policy: CausalPolicy,
    config: GRPOLossConfig,
    temperature: float,
    length: int,
    own: PolicyLoss | None = None,
):
    """The same loss for a `GRPORollout`; its metrics are those of `sampler_gaps`, and the KL to a reference, too."""

    def loss(params: Any, frozen: Any, batch: GRPORollout, key: Any, counts: dict[str, jax.Array]):
        del key
        mask = batch.mask
        scores = policy.score(params["policy"], frozen["policy"], batch, temperature=temperature)
        scored = GRPOBatch(
            tokens=batch.tokens,
            lengths=batch.lengths,
            mask=mask,
            old_logps=jax.lax.stop_gradient(scores.logps),
            advantages=batch.advantages,
            weights=jnp.ones_like(batch.advantages),
            ref_logps=batch.ref_logps,
        )
        total, metrics = _loss_of_scores(config, scores, scored, counts, length, own)
        metrics |= sampler_gaps(scores, batch.sampler_logps, mask)
        if batch.ref_logps is not None:
            kl = jnp.where(mask, scores.logps - batch.ref_logps, 0.0).sum()
            metrics["objective/kl"] = (kl, jnp.sum(mask.any(1), dtype=jnp.float32))
        return total, metrics

    return loss


def _loss_of_scores(
    config: GRPOLossConfig,
    scores: TokenScores,
    batch: GRPOBatch,
    counts: dict[str, jax.Array],
    length: int,
    own: PolicyLoss | None,
) -> tuple[jax.Array, Metrics]:
    mask, recipe = batch.mask, config.recipe
    terms = policy_terms(config, scores.logps, batch, own)
    per_token = -config.entropy_weight * scores.entropy
    if config.beta and not config.kl_in_reward:
        assert batch.ref_logps is not None
        per_token += config.beta * losses.kl_penalty(scores.logps, batch.ref_logps, mask, estimator="k3")
    if terms.ndim == 1:  # one loss a row, and a mean over rows
        # Weights of a row's tokens are equal.
        total = jnp.sum(terms * jnp.max(batch.weights, axis=1)) / jnp.maximum(counts["rows"], 1.0)
    else:
        per_token += terms * batch.weights
        total = jnp.zeros(())
    total += recipe.reduction(per_token, mask, counts, length)
    metrics = step_metrics(scores, batch.old_logps, mask)
    if own is None and recipe.clipped:
        clipped = clipped_of(
            recipe.clipped, scores.logps, batch.old_logps, batch.advantages, mask, recipe.clip
        )
        metrics["policy/clip_fraction"] = mean_of(*clipped)
    return total, metrics


def policy_terms(
    config: GRPOLossConfig, logps: jax.Array, batch: GRPOBatch, own: PolicyLoss | None = None
) -> jax.Array:
    """The algorithm's loss, a token [B, T] or a row [B]; `own` is called in its place, without its options."""
    recipe, mask, advantages = config.recipe, batch.mask, batch.advantages
    if recipe.of_rows:
        advantages = jnp.sum(advantages, axis=1) / jnp.maximum(mask.sum(1), 1)
    arrays = (logps, batch.old_logps, advantages, mask) if recipe.reads_old else (logps, advantages, mask)
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
            f"loss.beta: with loss.name={config.name} the KL is part of the advantages, which your function "
            "replaces; set loss.beta=0 or use another loss.name"
        )
    return found
