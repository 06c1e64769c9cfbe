"""Inputs and outputs of a reward.

A reward is any callable

    reward(prompts, completions, *, completion_ids, columns)

or, as TRL and Tunix call them, `reward(prompts, completions, **columns)`, also a coroutine function, that returns
floats or None per row (None: not applicable to this row), an array [N], an array [N, C] of token rewards, or a
`Rewards`. `jaxalign.rewards.calls` lists the arguments it can declare. A reward that also needs the prompts' token
ids (such as a reward model) has a method `score(request)` instead.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from jaxalign.errors import UserError
from jaxalign.processes import by_first
from jaxalign.rewards.calls import RewardRequest, begin_call
from jaxalign.rewards.user_code import is_ours, user_code


@dataclass(frozen=True)
class Rewards:
    """Rewards of N completions of at most C tokens.

    Attributes:
      scores: float32 [N], or None; added at the last valid token.
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


def evaluate_reward(reward: Any, request: RewardRequest, *, name: str = "", texts: bool = False) -> Rewards:
    """Calls a reward, checks its result and converts it to `Rewards`.

    Args:
      reward: see the module's docstring.
      request: the completions to score.
      name: of the reward, for messages; empty uses its own.
      texts: see `begin_reward`.

    Returns:
      `Rewards` whose `scores` [N], `token_rewards` [N, C] and `valid` [N] are all there,
      float32 and bool; rows that are not valid hold 0. `steps` [N, C] holds the tokens with a reward
      other than 0 in any case; it is None where the reward gave no token rewards.

    Raises:
      UserError: a wrong number of rewards, a wrong shape, or a value that is not finite, with its row; or a function
        with a parameter that the data has no column for.
      UserCodeError: a user's reward raised.
    """
    return begin_reward(reward, request, name=name, texts=texts)()


def begin_reward(
    reward: Any, request: RewardRequest, *, name: str = "", texts: bool = False
) -> Callable[[], Rewards]:
    """Starts `evaluate_reward`; the returned function finishes it. Coroutine functions run concurrently.

    Args:
      reward, request, name: as there.
      texts: functions get texts also where prompts are messages.
    """
    label = name or getattr(reward, "__name__", type(reward).__name__)
    if not hasattr(reward, "score"):
        # Of several processes the first asks: a judge is paid once, and what it says may differ by call.
        begun: list[Callable[[], tuple[Any, dict[str, float]]]] = []
        by_first(lambda: begun.append(begin_call(reward, request, label, texts=texts)))

        def checked() -> tuple[Rewards, dict[str, list[Any]]]:
            result, logged = begun[0]()
            rewards = checked_rewards(result, request, label)
            return replace(rewards, metrics={**rewards.metrics, **logged}), request.shown

        def told() -> Rewards:
            rewards, shown = by_first(checked)
            request.shown.update(shown)
            return rewards

        return told

    def scored() -> Rewards:
        with contextlib.nullcontext() if is_ours(reward) else user_code(f"reward {label}"):
            result = reward.score(request)
        return checked_rewards(result, request, label)

    # Ours compute on the mesh, all processes together.
    return scored if is_ours(reward) else lambda: by_first(scored)


def checked_rewards(result: Any, request: RewardRequest, label: str) -> Rewards:
    """A reward's result as `evaluate_reward` returns it; see there for errors."""
    rows, width = len(request.completions), request.width
    if not isinstance(result, Rewards):
        result = _from_plain(result, request, label)
    valid = np.ones(rows, bool) if result.valid is None else np.asarray(result.valid, bool)
    _check_shape("valid", valid.shape, (rows,), label)

    def numbers(what: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
        if given is None:
            return np.zeros(shape, np.float32)
        array = _as_array(given, label)
        _check_shape(what, array.shape, shape, label)
        return _floats(array, valid, request, label)

    scores = numbers("scores", result.scores, (rows,))
    tokens = numbers("token_rewards", result.token_rewards, (rows, width))
    given = np.zeros((rows, width), bool) if result.steps is None else np.asarray(result.steps, bool)
    _check_shape("steps", given.shape, (rows, width), label)
    none = result.token_rewards is None and result.steps is None
    steps = None if none else (given & valid[:, None]) | (tokens != 0)
    return Rewards(scores, tokens, valid, dict(result.metrics), steps)


def _from_plain(result: Any, request: RewardRequest, label: str) -> Rewards:
    """The forms that are no `Rewards`: a list [N] of numbers and None, or an array [N] or [N, C]."""
    rows, width = len(request.completions), request.width
    if isinstance(result, (list, tuple)):
        if len(result) != rows:
            raise UserError(f"reward {label}: returned {len(result)} rewards for {rows} completions")
        array = np.empty(rows, object)
        for row, value in enumerate(result):
            array[row] = value
    else:
        array = _as_array(result, label)
    if array.shape == (rows,):
        valid = np.ones(rows, bool)
        if array.dtype == object:
            valid = np.array([value is not None for value in array], bool)
        return Rewards(scores=_floats(array, valid, request, label), valid=valid)
    if array.shape == (rows, width):
        return Rewards(token_rewards=array)
    if not array.shape:
        raise UserError(
            f"reward {label}: expected a list or array with one reward for each of {rows} completions, got "
            f"{result!r:.60}"
        )
    if array.ndim == 1:
        raise UserError(f"reward {label}: returned {len(array)} rewards for {rows} completions")
    raise UserError(f"reward {label}: shape {array.shape}; expected ({rows},) or ({rows}, {width})")


def _as_array(value: Any, label: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # a tensor of another library may refuse in its own way
        raise UserError(
            f"reward {label}: {type(value).__name__} cannot be converted to an array ({error}); return a list of "
            "floats"
        ) from None


def _check_shape(what: str, shape: tuple[int, ...], expected: tuple[int, ...], label: str) -> None:
    if shape != expected:
        raise UserError(f"reward {label}: {what} have shape {shape}, expected {expected}")


def _floats(array: np.ndarray, valid: np.ndarray, request: RewardRequest, label: str) -> np.ndarray:
    """float32 of an array's shape, 0 in rows that are not valid; every other value must be a finite number."""
    plain = array.dtype.kind in "biuf" or array.dtype.name.startswith(("bfloat16", "float8"))
    with np.errstate(over="ignore", invalid="ignore"):
        if plain:
            numbers = array.astype(np.float32)
        else:
            numbers = np.zeros(array.shape, np.float32)
            for place in np.ndindex(array.shape):
                if valid[place[0]]:
                    numbers[place] = _number(array[place])
    numbers[~valid] = 0
    wrong = np.argwhere(~np.isfinite(numbers))
    if not len(wrong):
        return numbers
    row, *column = wrong[0]
    value = array[tuple(wrong[0])]
    number = plain or isinstance(value, (int, float, np.number))
    said = (
        f"is not finite ({value})" if number else f"is no float{'' if column else ' or None'}: {value!r:.60}"
    )
    where = f"row {row}, token {column[0]}" if column else f"row {row}"
    raise UserError(f"reward {label}: {where} {said}, for completion {request.completions[row][:80]!r}")


def _number(value: Any) -> float:
    """A value as a float; NaN for what is none. A text that spells a number is none."""
    if value is None or isinstance(value, (str, bytes)) or np.ndim(value):
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.inf
    except Exception:  # whatever class it is of
        return np.nan
