"""Groups of completions with what they earned: sampled until enough of them teach something."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from jaxalign.errors import ConfigError, UserError
from jaxalign.rewards import RewardRequest, Rewards
from jaxalign.rollout import Completions
from jaxalign.training.rl.grpo_config import GRPOLossConfig
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.shaped_rewards import ShapedRewards


@dataclass
class Rollout:
    """Groups of completions with their rewards."""

    completions: Completions
    request: RewardRequest
    rewards: ShapedRewards
    scores: np.ndarray  # float32 [N]: after shaping, with the sums of token rewards
    informative: np.ndarray  # bool [N]: a row of the group that is learnt has an advantage
    step_rewards: np.ndarray  # [N, C]: token rewards, and the score at the last token
    steps: np.ndarray  # bool [N, C]: where a step ends


def sample_rollout(trainer: OnPolicyTrainer, number: int) -> tuple[Rollout, dict[str, float]]:
    """A rollout of `train.prompts` groups, and metrics; further rounds replace groups that teach nothing.

    Raises:
      UserError: no reward applies to any completion.
    """
    rounds, group = trainer.config.train.sampling_rounds, trainer.config.sampling.num_samples
    kept = sample_groups(trainer, number)
    scores = [_raw_scores(kept)]
    for round_number in range(1, rounds):
        if kept.informative.all():
            break
        more = sample_groups(trainer, number, round_number)
        scores.append(_raw_scores(more))
        kept = replaced(kept, more, group)
    if not kept.rewards.valid.any():
        raise UserError(f"update {number}: no reward applies to any of the {len(kept.scores)} completions")
    metrics = {
        "rollout/groups_sampled": float(trainer.config.train.prompts * len(scores)),
        "rollout/groups_alike": float((~kept.informative).sum() / group),
    }
    if rounds > 1:
        metrics |= _left_out(np.concatenate(scores), _raw_scores(kept))
    return kept, metrics


def sample_groups(trainer: OnPolicyTrainer, number: int, round_number: int = 0) -> Rollout:
    """One round: completions of the next prompts, with their rewards.

    Raises:
      ConfigError: advantages of steps from a reward that names no steps.
    """
    completions, request = trainer.sample(number, round_number)
    rewards, loss = trainer.rewarded(request, completions), trainer.config.loss
    by_step = loss.advantage.steps
    if by_step and rewards.rewards.steps is None:
        raise ConfigError(
            "loss.advantages=process: the reward gave no token rewards; it needs a process reward model "
            "(jaxalign reward --loss.labels=steps) or a function that returns Rewards with token_rewards and steps"
        )
    scores = rewards.scores
    if loss.overlong_buffer:
        penalty = losses.overlong_penalty(
            jnp.asarray(completions.lengths),
            max_length=trainer.config.sampling.max_new_tokens,
            buffer=loss.overlong_buffer,
            penalty=loss.overlong_penalty,
        )
        scores = scores + np.asarray(penalty)
    step_rewards, steps = ending_at_last(rewards.rewards, scores, completions)
    scores = scores + rewards.token_sums
    # What must differ within a group: rewards of steps, or of rows.
    values = np.where(steps, step_rewards, np.nan) if by_step else scores[:, None]
    values = np.where(rewards.valid[:, None], values, np.nan)
    group = trainer.config.sampling.num_samples
    teaches = informative(values, in_loss(loss, completions, rewards), group)
    return Rollout(
        completions,
        request,
        rewards,
        scores.astype(np.float32),
        np.repeat(teaches, group),
        step_rewards,
        steps,
    )


def in_loss(config: GRPOLossConfig, completions: Completions, rewards: ShapedRewards) -> np.ndarray:
    """Bool [N]: rows that the loss reads. Other rows with a reward count only in the statistics of their group."""
    if not config.mask_truncated:
        return rewards.valid
    return rewards.valid & np.array([reason != "length" for reason in completions.finish_reason])


def _left_out(sampled: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """Mean rewards of all sampled rows, and of the groups that were replaced."""
    metrics = {"objective/score_sampled": float(sampled.mean())}
    if number := len(sampled) - len(kept):
        metrics["objective/score_replaced"] = float((sampled.sum() - kept.sum()) / number)
    return metrics


def _raw_scores(rollout: Rollout) -> np.ndarray:
    """Float64: the rewards before any shaping, of the rows that have one."""
    return rollout.rewards.raw[rollout.rewards.valid].astype(np.float64)


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
    arrays = fields_of(kept.rewards.rewards, more.rewards.rewards, "scores token_rewards valid")
    shaped = ShapedRewards(
        Rewards(**arrays, metrics=kept.rewards.rewards.metrics),
        **fields_of(kept.rewards, more.rewards, "raw scores"),
    )
    drawn = "tokens mask lengths logps sampling_logps finish_reason"
    return Rollout(
        Completions(**fields_of(kept.completions, more.completions, drawn)),
        replace(first, **texts, columns=columns, shown=shown),
        shaped,
        **fields_of(kept, more, "scores informative step_rewards steps"),
    )
