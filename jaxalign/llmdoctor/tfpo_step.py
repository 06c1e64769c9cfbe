"""What one optimizer step of TFPO minimizes: sub-trajectory balance and value discrimination on scored pairs.

State i of a response lies before its token i + 1; the hidden state before that token gives its value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign import models
from jaxalign.arrays import AnyArray
from jaxalign.llmdoctor.doctor import log_values_before
from jaxalign.llmdoctor.tfpo_config import TFPONumbers
from jaxalign.losses import subtrajectory_balance_loss, value_discrimination_loss
from jaxalign.models.heads import HeadConfig
from jaxalign.training.core.batch import CompletionBatch, valid_count
from jaxalign.training.core.scoring import CausalPolicy, score_tokens
from jaxalign.training.core.step import Metrics, mean_of

QUARTERS = (25, 50, 75, 100)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TFPOBatch(CompletionBatch):
    """Chosen and rejected responses with token rewards.

    Attributes:
      rewards: of each token, 0 outside the responses.
      terminated: whether a response ends by itself.
      start_logps: summed log-probs under what the doctor began as, nats, in evaluations (see `pair_metrics`); else
        None.
    """

    rewards: Float[AnyArray, "B 2 T"]
    terminated: Bool[AnyArray, "B 2"]
    start_logps: Float[AnyArray, "B 2"] | None = None


def make_tfpo_loss(
    policy: CausalPolicy, head: HeadConfig, numbers: TFPONumbers, own: Callable[..., Any] | None = None
):
    """Builds the loss function of `make_update`: balance + value_weight * discrimination.

    The trained leaves are {"policy", "value": {"head", "ramp"}}; `frozen` is {"base": frozen leaves of the policy,
    "reference": leaves of the model that the doctor began as, read where reference_weight is not 0, "horizon"}.
    `counts` are those of `tfpo_counts`. `own` takes the place of the balance of a row, see `tfpo.train_tfpo`; rows then
    count alike.
    """

    def loss(params: Any, frozen: Any, batch: TFPOBatch, key: Any, counts: dict[str, jax.Array]):
        rows, shape = batch.rows(), batch.shape
        mask = rows.mask
        scores = policy.score(params["policy"], frozen["base"], rows, key=key)
        ref_logps = None
        if numbers.reference_weight:
            reference = models.merge(policy.definition, frozen["reference"])
            ref_logps = score_tokens(reference, rows).logps
        depth = jnp.pad(jnp.cumsum(mask, axis=1), ((0, 0), (1, 0)))
        value = {**params["value"], "horizon": frozen["horizon"]}
        log_values = log_values_before(value, scores.hidden, depth, head, dropout_key=key)
        arrays = (scores.logps, batch.rewards.reshape(mask.shape), log_values, mask)
        ended = batch.terminated.reshape(-1)
        totals = subtrajectory_balance_loss(
            *arrays,
            terminated=ended,
            reward_scale=numbers.reward_scale,
            ref_logps=ref_logps,
            reference_weight=numbers.reference_weight,
            decay=numbers.decay,
            window=numbers.window or None,
            pin_terminal=numbers.pin_terminal,
            reduction="sum",
        )
        weights = pair_weights(mask, numbers)
        means = totals / jnp.where(weights > 0, weights, 1.0)
        if own is not None:
            means = own(*arrays, terminated=ended)
            balance = jnp.sum(jnp.where(mask.any(1), means, 0.0)) / jnp.maximum(2.0 * counts["pairs"], 1.0)
        elif numbers.reduction == "batch_pairs":
            balance = jnp.sum(totals) / jnp.maximum(counts["weight"], 1e-9)
        else:
            per_row = totals if numbers.reduction == "sum" else means
            balance = jnp.sum(per_row) / jnp.maximum(2.0 * counts["pairs"], 1.0)
        first, more = rival_tokens(batch, numbers.equal_depth_pairs)
        around = log_values.reshape(*shape, -1)
        after = around[..., 1:]
        hinge = value_discrimination_loss(after[:, 0], after[:, 1], margin=numbers.margin)
        rivals = first | more
        discrimination = jnp.sum(jnp.where(rivals, hinge, 0.0)) / jnp.maximum(counts["rivals"], 1.0)
        start = batch.start_logps if ref_logps is None else ref_logps.sum(1).reshape(shape)
        metrics = {
            "balance": mean_of(means.reshape(shape), batch.valid[:, None]),
            "discrimination": mean_of(hinge, rivals),
            "discriminated": mean_of(first.any(1).astype(jnp.float32), batch.valid),
            "kept_fraction": mean_of((arrays[1] != 0).astype(jnp.float32), mask),
            "value_gap": mean_of(after[:, 0] - after[:, 1], first),
            "nll": mean_of(-scores.logps, mask),
            "entropy": mean_of(scores.entropy, mask),
            "value_ramp": (params["value"]["ramp"], jnp.ones(())),
        }
        metrics |= (
            scores.router_metrics
            | value_gaps(around, batch)
            | pair_metrics(scores.logps.sum(1).reshape(shape), start, batch)
        )
        return balance + numbers.value_weight * discrimination, metrics

    return loss


def tfpo_counts(numbers: TFPONumbers):
    """Builds the count function of `make_update`: pairs, tokens where values are compared, weight of state pairs."""

    def counts(batch: TFPOBatch) -> dict[str, jax.Array]:
        first, more = rival_tokens(batch, numbers.equal_depth_pairs)
        return {  # evaluations weigh a batch by the first: by its pairs
            "pairs": valid_count(batch),
            "rivals": jnp.sum(first | more, dtype=jnp.float32),
            "weight": jnp.sum(pair_weights(batch.rows().mask, numbers)),
        }

    return counts


def pair_weights(mask: Bool[Array, "N T"], numbers: TFPONumbers) -> Float[Array, " N"]:
    """The weight of all pairs of a row's states: sum over n of (L + 1 - n) * decay^n, n up to the window."""
    apart = jnp.arange(1, mask.shape[1] + 1)
    pairs = jnp.maximum(mask.sum(1)[:, None] + 1 - apart, 0)
    if numbers.window:
        pairs = jnp.where(apart <= numbers.window, pairs, 0)
    return jnp.sum(pairs * jnp.float32(numbers.decay) ** apart, axis=1)


def last_tokens(batch: TFPOBatch) -> Bool[Array, "B G T"]:
    """The last token of each response that ends by itself: the state after it is terminal."""
    mask = batch.mask
    following = jnp.pad(mask[..., 1:], ((0, 0), (0, 0), (0, 1)))
    return mask & ~following & batch.terminated[..., None]


def rival_tokens(batch: TFPOBatch, equal_depth: int) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """The tokens of a pair after which the values of its two responses are compared.

    Args:
      batch: of pairs.
      equal_depth: compared tokens after the first at most.

    Returns:
      (first, more). first: where the responses part, both by a token of theirs. more: tokens at equal depth after
      that, the chosen one of positive and the rejected one of negative reward. Of neither may the state after it be
      terminal: a value that is pinned says nothing.
    """
    tokens = batch.tokens
    inside = jnp.arange(tokens.shape[2]) < batch.lengths[..., None]
    differ = ((tokens[:, 0] != tokens[:, 1]) & inside.all(1)) | (inside[:, 0] != inside[:, 1])
    parted = jnp.cumsum(differ, axis=1)
    counted = batch.mask.all(1) & batch.valid[:, None]
    open_after = counted & ~last_tokens(batch).any(1)
    first = differ & (parted == 1)
    # Rows that part before both responses have begun are not two answers to one prompt.
    answers = jnp.any(first & counted, axis=1, keepdims=True)
    signs = (batch.rewards[:, 0] > 0) & (batch.rewards[:, 1] < 0)
    more = answers & (parted > 0) & ~first & open_after & signs
    more &= jnp.cumsum(more, axis=1) <= equal_depth
    return first & open_after, more


def value_gaps(log_values: Float[Array, "B 2 T1"], batch: TFPOBatch) -> Metrics:
    """log V of chosen minus rejected at a quarter, a half, ... of the shorter response, the same depth in both.

    Depths, and not parts of each response: log V falls with every token, so that at other depths the longer response
    would seem to be worth more. 100 is the last depth before a terminal state of either.
    """
    mask = batch.mask
    depths = jnp.min(mask.sum(2) - last_tokens(batch).any(2), axis=1)
    starts = jnp.argmax(mask, axis=2)
    counted = batch.valid & (depths > 0)
    gaps = {}
    for share in QUARTERS:
        columns = starts + jnp.ceil(share / 100 * depths).astype(jnp.int32)[:, None]
        values = jnp.take_along_axis(log_values, columns[..., None], axis=2)[..., 0]
        gaps[f"value_gap_{share}"] = mean_of(values[:, 0] - values[:, 1], counted)
    return gaps


def pair_metrics(logps: Float[Array, "B 2"], start: Float[Array, "B 2"] | None, batch: TFPOBatch) -> Metrics:
    """How well the doctor agrees with the labels, and the rewards' own gap.

    `accuracy` and `margin` (nats) are of log-ratios to what the doctor began as (`start`, its summed log-probs): what
    it has learned. `accuracy_raw` and `margin_raw` are of summed log-probs alone, in which a response's length drowns
    that. Without `start` there are only these.
    """
    valid = batch.valid
    rewards = batch.rewards.sum(2)
    metrics = {"reward_gap": mean_of(rewards[:, 0] - rewards[:, 1], valid)}
    found = {"_raw": logps} if start is None else {"": logps - start, "_raw": logps}
    for suffix, values in found.items():
        margin = values[:, 0] - values[:, 1]
        metrics[f"accuracy{suffix}"] = mean_of((margin > 0) + 0.5 * (margin == 0), valid)
        metrics[f"margin{suffix}"] = mean_of(margin, valid)
        if not suffix:
            metrics["margin_square"] = mean_of(jnp.square(margin), valid)
    return metrics
