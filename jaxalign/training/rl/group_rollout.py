"""Groups of completions with what rewards say of them: rows, steps, and whether a group teaches anything."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxalign.rewards import RewardRequest, Rewards
from jaxalign.rollout import Completions


@dataclass
class Rollout:
    """Groups of completions with their rewards."""

    completions: Completions
    request: RewardRequest
    rewards: Rewards
    scores: np.ndarray
    informative: np.ndarray  # bool [N]: a row of the group that is learnt has an advantage
    step_rewards: np.ndarray  # [N, C]: token rewards, and the score at the last token
    steps: np.ndarray  # bool [N, C]: where a step ends


def ending_at_last(
    rewards: Rewards, scores: np.ndarray, completions: Completions
) -> tuple[np.ndarray, np.ndarray]:
    """(rewards of steps, where they end), [N, C]: a score [N] is part of the last step's, at the last token."""
    step_rewards = np.array(rewards.token_rewards, np.float32)
    steps = np.zeros(step_rewards.shape, bool) if rewards.steps is None else np.array(rewards.steps)
    rows, last = np.arange(len(scores)), np.maximum(np.asarray(completions.lengths) - 1, 0)
    step_rewards[rows, last] += scores
    steps[rows, last] = True
    return step_rewards, steps


def informative(values: np.ndarray, learnt: np.ndarray, group: int) -> np.ndarray:
    """Bool [N / group]: whether a group's rewards differ such that a row that is learnt has an advantage.

    Args:
      values: [N, C] or [N, 1], rewards of steps or rows; NaN where there is none.
      learnt: bool [N], rows that the loss reads.
      group: completions a prompt.
    """
    found = []
    for rewards, counts in zip(
        values.reshape(-1, group, values.shape[1]), learnt.reshape(-1, group), strict=True
    ):
        known = rewards[~np.isnan(rewards)].astype(np.float64)
        spread = np.ptp(known) if known.size else 0.0
        # What lies at the mean has no advantage, but for rounding.
        away = np.abs(rewards[counts] - known.mean()) > 1e-6 * spread if spread else np.zeros(0, bool)
        found.append(bool(away.any()))
    return np.asarray(found, bool)


def replaced(kept: Rollout, more: Rollout, group: int) -> Rollout:
    """`kept` with groups of `more` that teach something in place of those that do not, as far as there are any."""
    gaps, fills = (np.flatnonzero(x.reshape(-1, group)[:, 0]) for x in (~kept.informative, more.informative))
    rows = len(kept.scores)
    pick = np.arange(rows)
    for gap, fill in zip(gaps, fills, strict=False):
        pick[gap * group : (gap + 1) * group] = rows + np.arange(fill * group, (fill + 1) * group)

    def joined(a: Any, b: Any) -> Any:
        if isinstance(a, np.ndarray):
            return np.concatenate([a, b])[pick]
        return [(*a, *b)[i] for i in pick]

    def fields_of(a: Any, b: Any, names: str) -> dict[str, Any]:
        return {name: joined(getattr(a, name), getattr(b, name)) for name in names.split()}

    first, second = kept.request, more.request
    texts = fields_of(first, second, "prompts completions prompt_ids completion_ids")
    texts |= fields_of(first, second, "messages") if first.messages else {}
    columns = {name: joined(first.columns[name], second.columns[name]) for name in first.columns}
    shown = {
        name: joined(first.shown[name], second.shown[name]) for name in first.shown if name in second.shown
    }
    arrays = fields_of(kept.rewards, more.rewards, "scores token_rewards valid")
    drawn = "tokens mask lengths logps sampling_logps finish_reason"
    return Rollout(
        Completions(**fields_of(kept.completions, more.completions, drawn)),
        replace(first, **texts, columns=columns, shown=shown),
        Rewards(**arrays, metrics=kept.rewards.metrics),
        **fields_of(kept, more, "scores informative step_rewards steps"),
    )
