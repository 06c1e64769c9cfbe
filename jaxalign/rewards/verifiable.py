"""Verifiable rewards: an exact answer, a pattern, a length.

As functions on the command line: `--reward.functions='[jaxalign.rewards.verifiable:exact_answer]'`. Rewards with
parameters are classes, for use from Python or in your own file.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from jaxalign.errors import UserError

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)")


def exact_answer(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """1 if the completion's final number equals that of the `answer` column, else 0 (GSM8K's format).

    The final number of a text is what follows its last `####`, or else its last number; thousands separators,
    currency signs and a trailing point do not matter, and 3.0 is 3. None if the reference has no number.

    Raises:
      UserError: the data has no `answer` column.
    """
    del prompts, completion_ids
    if "answer" not in columns:
        raise UserError(
            f"reward exact_answer: the data has no column 'answer'; columns: {sorted(columns) or 'none'}"
        )
    scores: list[float | None] = []
    for completion, reference in zip(completions, columns["answer"], strict=True):
        expected = final_number(str(reference))
        scores.append(None if expected is None else float(final_number(completion) == expected))
    return scores


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, or else the last number of a text; None if there is none."""
    head, mark, tail = text.rpartition("####")
    numbers = _NUMBER.findall(tail if mark else head + tail)
    if not numbers:
        return None
    try:
        return Decimal((numbers[0] if mark else numbers[-1]).replace(",", "").rstrip("."))
    except InvalidOperation:
        return None


class Pattern:
    """1 if a regular expression matches in the completion (with `whole`, all of it), else 0.

    Args:
      pattern: as in Python's `re`.
      whole: the whole completion must match.
    """

    def __init__(self, pattern: str, *, whole: bool = False) -> None:
        compiled = re.compile(pattern, re.DOTALL)
        self._match = compiled.fullmatch if whole else compiled.search
        self.__name__ = f"pattern {pattern}"

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        del prompts, completion_ids, columns
        return [float(self._match(completion) is not None) for completion in completions]


class Length:
    """0 for completions of `low` to `high` tokens, falling by `slope` for each token below or above.

    Args:
      low, high: tokens, the stop token included.
      slope: reward per token.
    """

    def __init__(self, low: int, high: int, *, slope: float = 0.01) -> None:
        if not 0 <= low <= high:
            raise ValueError(f"low and high: expected 0 <= low <= high, got {low} and {high}")
        self.low, self.high, self.slope = low, high, slope

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        del prompts, completions, columns
        return [
            -self.slope * (max(self.low - len(ids), 0) + max(len(ids) - self.high, 0))
            for ids in completion_ids
        ]
