"""What one optimizer step of preference training minimizes: any loss of the family, on scored completions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxalign import losses, models
from jaxalign.arrays import AnyArray
from jaxalign.losses.preference import ScoredRows
from jaxalign.models.flops import Pass
from jaxalign.training.core.batch import CompletionBatch, TokenRows
from jaxalign.training.core.own_loss import check_own_loss
from jaxalign.training.core.scoring import CausalPolicy, TokenScores, score_tokens
from jaxalign.training.core.step import Batch, Metrics, joined_rows, mean_of, split_rows
from jaxalign.training.preference.config import DPOLossConfig

PAIR = (True, False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(CompletionBatch):
    """Completions and what a preference loss reads beside them.

    Attributes:
      desirable: whether a completion is to be imitated; of a pair the first.
      ref_logps: summed log-probs under the reference, nats, where they were computed before; else None.
      mismatched: each prompt with another one's completion, for a loss that estimates the KL by them; else None.
      statistics: of the whole batch, where this is a part of one: [B], a scalar repeated. Empty in a whole batch.
    """

    desirable: Bool[AnyArray, "B G"]
    ref_logps: Float[AnyArray, "B G"] | None = None
    mismatched: CompletionBatch | None = None
    statistics: Mapping[str, AnyArray] = field(default_factory=dict)

    @classmethod
    def of(cls, columns: Mapping[str, Any], prefix: str = "") -> Self:
        """See `TokenRows.of`; the columns of `mismatched` begin with kl_."""
        if "kl_tokens" in columns:
            others = CompletionBatch.of({**columns, "kl_valid": columns["valid"]}, "kl_")
            columns = {**columns, "mismatched": others}
        if "desirable" not in columns:
            columns = {**columns, "desirable": np.tile(PAIR, (len(columns["valid"]), 1))}
        return super().of(columns, prefix)

    def columns(self) -> dict[str, Any]:
        """See `TokenRows.columns`."""
        columns = super().columns()
        others = columns.pop("mismatched", None)
        return columns | ({f"kl_{name}": x for name, x in others.columns().items()} if others else {})


def make_preference_loss(
    policy: CausalPolicy,
    reference_definition: Any,
    config: DPOLossConfig,
    own: Callable[..., Any] | None = None,
):
    """Builds the loss function of `make_update`: the mean over the examples of the whole batch.

    `frozen` is {"base": frozen leaves of the policy, "reference": the reference's leaves}. For `own` see `row_terms`.
    """

    def loss(params: Any, frozen: Any, batch: PreferenceBatch, key: Any, counts: jax.Array):
        rows, scores, mask = scored_rows(policy, reference_definition, config, params, frozen, batch, key)
        total, metrics = loss_of_rows(config, rows, scores, mask, batch, counts, own)
        return total, metrics | {"entropy": mean_of(scores.entropy, mask)}

    return loss


def loss_of_rows(
    config: DPOLossConfig,
    rows: ScoredRows,
    scores: TokenScores,
    mask: jax.Array,
    batch: PreferenceBatch,
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
    axes = config.spec.statistic.axes if config.spec.statistic else {}
    whole = {name: x if axes[name] else x[0] for name, x in batch.statistics.items()}
    statistics = whole or batch_statistics(rows, config)
    per_row = row_terms(rows, config, statistics, own)
    if config.weighted:
        weights = losses.wpo_weights(scores.logps, scores.sum_squared_probs, mask)
        per_row *= jnp.prod(weights.reshape(rows.logps.shape), axis=1)
    if config.supervised_weight:
        nll = -(scores.logps.sum(1) / jnp.maximum(mask.sum(1), 1)).reshape(rows.logps.shape)
        per_row += config.supervised_weight * jnp.sum(jnp.where(rows.desirable, nll, 0.0), axis=1)
    total = jnp.sum(jnp.where(rows.valid, per_row, 0.0)) / jnp.maximum(counts, 1.0)
    return total, preference_metrics(rows, config.beta) | scores.router_metrics


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
    """What a loss that couples rows reads of the whole batch, by name; no gradient. Empty for the others."""
    statistic = config.spec.statistic
    return statistic.compute(jax.lax.stop_gradient(rows), config.beta) if statistic else {}


def scored_rows(
    policy: CausalPolicy,
    reference_definition: Any,
    config: DPOLossConfig,
    params: Any,
    frozen: Any,
    batch: PreferenceBatch,
    key: jax.Array | None,
    *,
    temperature: float = 1.0,
) -> tuple[ScoredRows, TokenScores, jax.Array]:
    """The batch's completions under policy and reference; the policy's token scores; the token mask.

    The arguments are those of `make_preference_loss` and of what it builds; logits are divided by the temperature.
    """
    spec, shape, completions = config.spec, batch.shape, batch.rows()
    mask = completions.mask
    lengths = jnp.maximum(mask.sum(1), 1).reshape(shape).astype(jnp.float32)
    scale = lengths if spec.means or config.length_normalize else 1.0

    def reference(rows: TokenRows) -> jax.Array:
        model = models.merge(reference_definition, frozen["reference"])
        return jax.lax.stop_gradient(score_tokens(model, rows, temperature=temperature).logps)

    def sums(logps: jax.Array) -> jax.Array:
        return completion_sums(logps, mask, shape, config.length_alpha)

    scores = policy.score(params, frozen["base"], completions, temperature=temperature, key=key)
    ref_logps, kl_ratio = jnp.zeros(shape), jnp.zeros(shape)
    if batch.ref_logps is not None:
        ref_logps = batch.ref_logps
    elif spec.reference:
        ref_logps = sums(reference(completions))
    if batch.mismatched is not None:
        others = batch.mismatched.rows()
        fixed = jax.lax.stop_gradient(params)
        logps = policy.score(fixed, frozen["base"], others, temperature=temperature).logps
        kl_ratio = (logps - reference(others)).sum(1).reshape(shape)
    rows = ScoredRows(sums(scores.logps) / scale, ref_logps / scale, batch.desirable, batch.valid, kl_ratio)
    return rows, scores, mask


def passes_of(
    policy: CausalPolicy, reference: Any, config: DPOLossConfig, *, precomputed: bool
) -> list[Pass]:
    """The passes of `scored_rows` with a gradient of the policy; `reference` is the definition of the reference."""
    others = Pass(config=policy.definition.config, learns="nothing", prefix="kl_")
    passes = [policy.training_pass, others]
    if config.spec.reference and not precomputed:
        frozen = Pass(config=reference.config, learns="nothing")
        passes += [frozen, replace(frozen, prefix="kl_")]
    return passes


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
    num_microbatches: int,
    *,
    temperature: float = 1.0,
) -> Callable[[Any, Any, Batch], Batch]:
    """Builds `(params, frozen, batch) -> batch` with the statistics that couple its rows, one micro-batch at a time.

    Without it each micro-batch would be sorted, or averaged, by itself, and accumulation would change the loss.
    """

    @jax.jit
    def statistics(params, frozen, batch):
        def rows_of(part):
            return scored_rows(
                policy, reference_definition, config, params, frozen, part, None, temperature=temperature
            )[0]

        rows = jax.lax.map(rows_of, jax.tree.map(split_rows(num_microbatches), batch))
        values = batch_statistics(jax.tree.map(joined_rows, rows), config)
        return {name: jnp.broadcast_to(x, batch.valid.shape) for name, x in values.items()}

    return lambda params, frozen, batch: replace(batch, statistics=statistics(params, frozen, batch))


def check_pair_loss(loss: Any, config: DPOLossConfig) -> Any:
    """The user's loss (see `check_own_loss`), called as the one that `config` names is, without its options."""
    spec = config.spec
    arrays, keywords = dict.fromkeys(spec.arguments, ("B",)), spec.statistic.axes if spec.statistic else {}
    unread = [option.name for option in spec.options]
    return check_own_loss(loss, arrays, ("B",), config=config, unread=unread, keywords=keywords)
