"""What a judge's text says: a rating or a choice in double brackets, read strictly.

A text without a verdict, or with several that contradict one another, has none: nothing is guessed. FastChat's reader
takes the first of several, and for ratings also single brackets.
"""

import re
from collections.abc import Sequence
from typing import Literal

Choice = Literal["A", "B", "tie"]

_BRACKETS = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_CHOICES: dict[str, Choice] = {"A": "A", "B": "B", "C": "tie"}


def read_rating(text: str, *, low: float = 1.0, high: float = 10.0) -> float | None:
    """The rating in [[7]] or [[7.5]]; None without one, with several that differ, or outside [low, high]."""
    found = {float(said) for said in _BRACKETS.findall(text) if _NUMBER.fullmatch(said)}
    if len(found) != 1:
        return None
    (rating,) = found
    return rating if low <= rating <= high else None


def read_choice(text: str) -> Choice | None:
    """A, B or (for [[C]]) tie; None without a choice, or with several that differ."""
    found = {said for said in _BRACKETS.findall(text) if said in _CHOICES}
    return _CHOICES[found.pop()] if len(found) == 1 else None


def agreed_win(first: Choice | None, second: Choice | None) -> float | None:
    """The verdict on a pair that was shown in both orders: a win or a loss only where both say so.

    Args:
      first: where the model's answer stood first (A).
      second: where it stood second (B).

    Returns:
      1 for a win, 0 for a loss, 0.5 for a tie (said, or because the orders contradict); None where either says nothing.

    Source: arXiv:2306.05685, section 3.4 (the conservative way with position bias).
    """
    if first is None or second is None:
        return None
    if (first, second) == ("A", "B"):
        return 1.0
    if (first, second) == ("B", "A"):
        return 0.0
    return 0.5


def unread(verdicts: Sequence[object]) -> int:
    """How many texts had no verdict."""
    return sum(verdict is None for verdict in verdicts)
