"""What one optimizer step of preference training minimises: any loss of the family, on scored completions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import losses, models
from jaxalign.losses.preference import ScoredRows
from jaxalign.training.core.own_loss import check_own_loss
from jaxalign.training.core.packing import packing_of
from jaxalign.training.core.pairs import flatten
from jaxalign.training.core.scoring import CausalPolicy, TokenScores, score_tokens
from jaxalign.training.core.step import Metrics, joined_rows, mean_of, split_rows
from jaxalign.training.preference.config import DPOLossConfig

# Statistics of a whole batch, in its micro-batches: [B], a scalar repeated.
STATISTIC = "statistic_"


def make_preference_loss(
    policy: CausalPolicy,
    reference_definition: Any,
    config: DPOLossConfig,
    own: Callable[..., Any] | None = None,
):
    """Builds the loss function of `make_update`: the mean over the examples of the whole batch.

    `frozen` is {"base": frozen leaves of the policy, "reference": the reference's leaves}. A batch may hold
    `ref_logps` [B, G] computed before, and the statistics of the whole batch that it is a part of. For `own` see
    `row_terms`.
    """

    def loss(params, frozen, batch, key, counts):
        rows, scores, mask = scored_rows(policy, reference_definition, config, params, frozen, batch, key)
        total, metrics = loss_of_rows(config, rows, scores, mask, batch, counts, own)
        return total, metrics | {"entropy": mean_of(scores.entropy, mask)}

    return loss


def loss_of_rows(
    config: DPOLossConfig,
    rows: ScoredRows,
    scores: TokenScores,
    mask: jax.Array,
    batch: Any,
    counts: jax.Array,
    own: Callable[..., Any] | None = None,
) -> tuple[jax.Array, Metrics]:
    """The loss of a (micro-)batch and its metrics.

    Args:
      config: which loss.
      rows: the batch's completions under policy and reference, [B, G].
      scores: the policy's token scores, [B*G, T].
      mask: their mask.
      batch: where the statistics of the whole batch are, if it is a part of one.
      counts: examples of the whole batch.
      own: see `row_terms`.
    """
    given = {n.removeprefix(STATISTIC): x for n, x in batch.items() if n.startswith(STATISTIC)}
    axes = config.spec.statistic.axes if config.spec.statistic else {}
    statistics = {n: x if axes[n] else x[0] for n, x in given.items()} or batch_statistics(rows, config)
    per_row = row_terms(rows, config, statistics, own)
    if config.weighted:
        weights = losses.wpo_weights(scores.logps, scores.sum_squared_probs, mask)
        per_row *= jnp.prod(weights.reshape(rows.logps.shape), axis=1)
    if config.supervised_weight:
        nll = -(scores.logps.sum(1) / jnp.maximum(mask.sum(1), 1)).reshape(rows.logps.shape)
        per_row += config.supervised_weight * jnp.sum(jnp.where(rows.desirable, nll, 0.0), axis=1)
    total = jnp.sum(jnp.where(rows.valid, per_row, 0.0)) / jnp.maximum(counts, 1.0)
    return total, preference_metrics(rows, config.beta)


def row_terms(
    rows: ScoredRows,
    config: DPOLossConfig,
    statistics: Mapping[str, jax.Array],
    own: Callable[..., Any] | None = None,
) -> jax.Array:
    """The loss of each example, [B].

    Args:
      rows: scored completions.
      config: which loss.
      statistics: of the whole batch, see `batch_statistics`.
      own: called in place of the loss that the configuration names, as that is but without its options.
    """
    options = config.arguments if own is None else {}
    return config.spec.terms(own or config.spec.function, rows, {**options, **statistics})


def batch_statistics(rows: ScoredRows, config: DPOLossConfig) -> dict[str, jax.Array]:
    """What a loss that couples rows is told of the whole batch, by name; no gradient. Empty for the others."""
    statistic = config.spec.statistic
    return statistic.compute(jax.lax.stop_gradient(rows), config.beta) if statistic else {}


def scored_rows(
    policy: CausalPolicy,
    reference_definition: Any,
    config: DPOLossConfig,
    params: Any,
    frozen: Any,
    batch: Any,
    key: jax.Array | None,
    *,
    temperature: float = 1.0,
) -> tuple[ScoredRows, TokenScores, jax.Array]:
    """The batch's completions under policy and reference; the policy's token scores; the token mask.

    The arguments are those of `make_preference_loss` and of what it builds; logits are divided by the temperature.
    """
    spec, shape = config.spec, batch["tokens"].shape[:2]
    tokens, mask, lengths = flatten(batch)
    counted = jnp.maximum(mask.sum(1), 1).reshape(shape).astype(jnp.float32)
    scale = counted if spec.means or config.length_normalize else 1.0
    packing = packing_of(batch)
    scores = policy.score(
        params, frozen["base"], tokens, lengths, mask, temperature=temperature, key=key, packing=packing
    )
    logps = completion_sums(scores.logps, mask, shape, config.length_alpha) / scale

    def reference(tokens, lengths, mask, packing):
        model = models.merge(reference_definition, frozen["reference"])
        found = score_tokens(model, tokens, lengths, mask, temperature=temperature, packing=packing)
        return jax.lax.stop_gradient(found.logps)

    ref_logps, kl_ratio = jnp.zeros(shape), jnp.zeros(shape)
    if "ref_logps" in batch:
        ref_logps = batch["ref_logps"] / scale
    elif spec.reference:
        ref_tokens = reference(tokens, lengths, mask, packing)
        ref_logps = completion_sums(ref_tokens, mask, shape, config.length_alpha) / scale
    if "kl_tokens" in batch:
        tokens, kl_mask, lengths = flatten(batch, "kl_")
        packing = packing_of(batch, "kl_")
        live = jax.lax.stop_gradient(params)
        mismatched = policy.score(
            live, frozen["base"], tokens, lengths, kl_mask, temperature=temperature, packing=packing
        ).logps
        kl_ratio = (mismatched - reference(tokens, lengths, kl_mask, packing)).sum(1).reshape(shape)
    desirable = batch["desirable"] if spec.unpaired else jnp.broadcast_to(jnp.asarray([True, False]), shape)
    return ScoredRows(logps, ref_logps, desirable, batch["valid"], kl_ratio), scores, mask


def completion_sums(logps: jax.Array, mask: jax.Array, shape: tuple[int, int], alpha: float) -> jax.Array:
    """Token log-probs [B*G, T] -> summed log-probs [B, G]; tokens beyond the shorter completion count `alpha`."""
    if alpha == 1.0:
        return logps.sum(1).reshape(shape)
    shared = jnp.repeat(mask.sum(1).reshape(shape).min(1), shape[1])
    return losses.length_desensitized_logps(logps, mask, shared, alpha=alpha).reshape(shape)


def preference_metrics(rows: ScoredRows, beta: float) -> Metrics:
    """Implicit rewards beta * (policy - reference), and how well they agree with the labels."""
    valid = rows.valid
    rewards = beta * (rows.logps - rows.ref_logps)
    if rewards.shape[1] == 1:  # labels, not pairs
        right = (rewards > 0) == rows.desirable
        good, bad = (valid[:, None] & x for x in (rows.desirable, ~rows.desirable))
        return {
            "accuracy": mean_of(right.astype(jnp.float32), valid[:, None]),
            "reward_desirable": mean_of(rewards, good),
            "reward_undesirable": mean_of(rewards, bad),
        }
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "accuracy": mean_of((margin > 0) + 0.5 * (margin == 0), valid),
        "margin": mean_of(margin, valid),
        "margin_square": mean_of(jnp.square(margin), valid),
        "reward_chosen": mean_of(rewards[:, 0], valid),
        "reward_rejected": mean_of(rewards[:, 1], valid),
        "logps_chosen": mean_of(rows.logps[:, 0], valid),
        "logps_rejected": mean_of(rows.logps[:, 1], valid),
    }


def whole_batch_statistics(
    policy: CausalPolicy,
    reference_definition: Any,
    config: DPOLossConfig,
    parts: int,
    *,
    temperature: float = 1.0,
):
    """Builds `(params, frozen, batch) -> batch` with the statistics that couple its rows, in `parts` micro-batches.

    Without it each micro-batch would be sorted, or averaged, by itself, and accumulation would change the loss.
    """

    @jax.jit
    def statistics(params, frozen, batch):
        def rows_of(part):
            return scored_rows(
                policy, reference_definition, config, params, frozen, part, None, temperature=temperature
            )[0]

        rows = jax.lax.map(rows_of, jax.tree.map(split_rows(parts), dict(batch)))
        found = batch_statistics(jax.tree.map(joined_rows, rows), config)
        return {STATISTIC + n: jnp.broadcast_to(x, batch["valid"].shape) for n, x in found.items()}

    return lambda params, frozen, batch: batch | statistics(params, frozen, batch)


def check_pair_loss(loss: Any, config: DPOLossConfig) -> Any:
    """The user's loss (see `check_own_loss`), called as the one that `config` names is, without its options."""
    spec = config.spec
    arrays, keywords = dict.fromkeys(spec.arguments, ("B",)), spec.statistic.axes if spec.statistic else {}
    unread = [option.name for option in spec.options]
    return check_own_loss(loss, arrays, ("B",), config=config, unread=unread, keywords=keywords)
