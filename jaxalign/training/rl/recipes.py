"""GRPO and its relatives as values: the advantages, policy loss, clip range and reduction of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxalign import losses
from jaxalign.training.rl import clip_fraction

Reduction = Callable[[jax.Array, jax.Array, Mapping[str, jax.Array], int], jax.Array]
"""(x[B, T], mask[B, T], counts of the whole minibatch, longest completion) -> scalar."""


def over_tokens(x: jax.Array, mask: jax.Array, counts: Mapping[str, jax.Array], length: int) -> jax.Array:
    """Mean over all tokens."""
    del length
    return losses.token_mean(x, mask, count=counts["tokens"])


def over_rows(x: jax.Array, mask: jax.Array, counts: Mapping[str, jax.Array], length: int) -> jax.Array:
    """Mean over rows of their token means."""
    del length
    return losses.sequence_mean(x, mask, count=counts["rows"])


def over_length(x: jax.Array, mask: jax.Array, counts: Mapping[str, jax.Array], length: int) -> jax.Array:
    """Row sums over the longest completion, mean over rows."""
    return losses.fixed_length_mean(x, mask, length=length, count=counts["rows"])


def _both(low: float, high: float) -> dict[str, Any]:
    return {"clip_low": low, "clip_high": high}


def _cap(low: float, high: float) -> dict[str, Any]:
    del low
    return {"cap": high}


def _none(low: float, high: float) -> dict[str, Any]:
    del low, high
    return {}


@dataclass(frozen=True)
class Recipe:
    """An algorithm's defaults, from its paper.

    Attributes:
      loss: the policy loss, (logps[B, T], old_logps[B, T], advantages, mask[B, T]) plus its clip range by keyword;
        advantages and result are [B, T], or [B] if `of_rows`.
      advantages: how rewards become advantages: a key of `ADVANTAGES`.
      reduction: the mean of token losses (and of every other term of the loss).
      clip: (low, high) bounds of the ratio.
      clip_arguments: the bounds as keywords of the loss.
      clipped: what the bounds clip (see `clip_fraction`); None if nothing.
      of_rows: one ratio and one loss per completion; the reduction is the mean over rows.
      reads_old: the loss receives old_logps; REINFORCE does not.
      takes_dual_clip: the loss has `dual_clip`.
      kl_in_score: beta's KL, summed over the completion, is subtracted from the score before advantages are computed.
    """

    loss: Callable[..., jax.Array]
    advantages: str
    reduction: Reduction
    clip: tuple[float, float]
    clip_arguments: Callable[[float, float], dict[str, Any]] = _both
    clipped: clip_fraction.Clipped | None = clip_fraction.of_tokens
    of_rows: bool = False
    reads_old: bool = True
    takes_dual_clip: bool = False
    kl_in_score: bool = False


RL_RECIPES: Mapping[str, Recipe] = {
    "grpo": Recipe(losses.grpo_loss, "group", over_rows, (0.2, 0.2), takes_dual_clip=True),
    "dr_grpo": Recipe(losses.grpo_loss, "group_mean", over_length, (0.2, 0.2), takes_dual_clip=True),
    "dapo": Recipe(losses.grpo_loss, "group", over_tokens, (0.2, 0.28), takes_dual_clip=True),
    "gspo": Recipe(
        losses.gspo_loss, "group", over_rows, (3e-4, 4e-4), clipped=clip_fraction.of_row_means, of_rows=True
    ),
    "cispo": Recipe(
        losses.cispo_loss,
        "group",
        over_tokens,
        (0.0, 5.0),
        clip_arguments=_cap,
        clipped=clip_fraction.of_weights,
    ),
    "gmpo": Recipe(
        losses.gmpo_loss, "group", over_rows, (0.4, 0.4), clipped=clip_fraction.of_log_ratios, of_rows=True
    ),
    "rloo": Recipe(
        losses.rloo_loss,
        "leave_one_out",
        over_rows,
        (0.2, 0.2),
        clipped=clip_fraction.of_row_products,
        of_rows=True,
        kl_in_score=True,
    ),
    "reinforce": Recipe(
        losses.reinforce_loss,
        "group_mean",
        over_tokens,
        (0.0, 0.0),
        clip_arguments=_none,
        clipped=None,
        reads_old=False,
    ),
    "reinforce++": Recipe(losses.grpo_loss, "reinforce++", over_tokens, (0.2, 0.2)),
}
