"""What a reward is given and what it may return.

A reward is any callable

    reward(prompts, completions, *, completion_ids, columns)

that returns floats or None per row (None: not applicable to this row), an array [N],
an array [N, C] of token rewards, or a `Rewards`. A reward that wants the token ids of
the prompts too (a reward model does) has a method `score(request)` instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from jaxalign.errors import UserError


@dataclass(frozen=True)
class Rewards:
    """Rewards of N completions of at most C tokens.

    Attributes:
      scores: float32 [N], or None; lands on the last valid token.
      token_rewards: float32 [N, C], or None; added at each token.
      valid: bool [N]; False where no reward applies, and the row is left out of the update.
      metrics: numbers for the log.
      steps: bool [N, C], tokens at which a step of a completion ends (for `loss.advantages=process` of GRPO), or
        None for where token rewards are not 0. A completion's last token always ends a step.
    """

    scores: np.ndarray | None = None
    token_rewards: np.ndarray | None = None
    valid: np.ndarray | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: np.ndarray | None = None


@dataclass(frozen=True)
class RewardRequest:
    """N completions to be judged.

    Attributes:
      prompts: text of each prompt.
      completions: text of each completion.
      prompt_ids: token ids of each prompt.
      completion_ids: token ids of each completion, with its stop token.
      columns: the data set's other columns, a list of N each.
      width: C, the width of token rewards.
    """

    prompts: Sequence[str]
    completions: Sequence[str]
    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    width: int


class Reward(Protocol):
    """The callable form; see the module's docstring."""

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
    ) -> Any: ...


def evaluate_reward(reward: Any, request: RewardRequest, *, name: str = "") -> Rewards:
    """Calls a reward and brings what it returns into one form, checked.

    Returns:
      `Rewards` whose `scores` [N], `token_rewards` [N, C] and `valid` [N] are all there,
      float32 and bool; rows that are not valid hold 0. `steps` [N, C] holds the tokens with a reward
      other than 0 in any case; it is None where the reward gave no token rewards.

    Raises:
      UserError: a wrong number of rewards, a wrong shape, or a value that is not finite.
    """
    label = name or getattr(reward, "__name__", type(reward).__name__)
    if hasattr(reward, "score"):
        result = reward.score(request)
    else:
        result = reward(
            request.prompts,
            request.completions,
            completion_ids=request.completion_ids,
            columns=request.columns,
        )
    rows, width = len(request.completions), request.width
    if not isinstance(result, Rewards):
        result = _from_plain(result, rows, width, label)
    valid = np.ones(rows, bool) if result.valid is None else np.asarray(result.valid, bool)
    scores = np.zeros(rows, np.float32) if result.scores is None else np.asarray(result.scores, np.float32)
    tokens = (
        np.zeros((rows, width), np.float32)
        if result.token_rewards is None
        else np.asarray(result.token_rewards, np.float32)
    )
    given = np.zeros((rows, width), bool) if result.steps is None else np.asarray(result.steps, bool)
    for what, array, shape in (
        ("scores", scores, (rows,)),
        ("token_rewards", tokens, (rows, width)),
        ("valid", valid, (rows,)),
        ("steps", given, (rows, width)),
    ):
        if array.shape != shape:
            raise UserError(f"reward {label}: {what} have shape {array.shape}, expected {shape}")
    scores = np.where(valid, scores, 0.0).astype(np.float32)
    tokens = np.where(valid[:, None], tokens, 0.0).astype(np.float32)
    bad = ~(np.isfinite(scores) & np.isfinite(tokens).all(axis=1))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"reward {label}: row {row} is not finite ({scores[row]}), for completion "
            f"{request.completions[row][:80]!r}"
        )
    none = result.token_rewards is None and result.steps is None
    steps = None if none else (given & valid[:, None]) | (tokens != 0)
    return Rewards(scores, tokens, valid, dict(result.metrics), steps)


def _from_plain(result: Any, rows: int, width: int, label: str) -> Rewards:
    if isinstance(result, (list, tuple)):
        if len(result) != rows:
            raise UserError(f"reward {label}: returned {len(result)} rewards for {rows} completions")
        valid = np.array([r is not None for r in result], bool)
        try:
            scores = np.array([0.0 if r is None else float(r) for r in result], np.float32)
        except (TypeError, ValueError):
            raise UserError(f"reward {label}: expected a float or None per row, got {result[0]!r}") from None
        return Rewards(scores=scores, valid=valid)
    array = np.asarray(result)
    if array.dtype.kind not in "biuf":
        raise UserError(
            f"reward {label}: expected floats, an array [N] or [N, C], or Rewards; got {type(result)}"
        )
    if array.shape == (rows,):
        return Rewards(scores=array.astype(np.float32))
    if array.shape == (rows, width):
        return Rewards(token_rewards=array.astype(np.float32))
    raise UserError(f"reward {label}: shape {array.shape}; expected ({rows},) or ({rows}, {width})")
