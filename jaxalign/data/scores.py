"""The score that a field says, as a number or in prose."""

import math
import re
from typing import Any

_NUMBER = r"(?<![\w.,/-])([-+]?(?:\d+(?:\.\d+)?|\.\d+))(?![\w/]|\.\d|,\d{3})"
_AMOUNT = r"(\d+(?:\.\d+)?|\.\d+)"
# "on a scale of 1 to 10", "(1-10)", "from 1 to 5", "out of 5": how high a score may be, not a score.
_RANGE = re.compile(
    r"(?:\bscale\s+(?:of\s+|from\s+)?|\bfrom\s+|\bbetween\s+|[(\[]\s*)"
    r"\d+(?:\.\d+)?\s*(?:-|–|—|to|and|\.\.)\s*\d+(?:\.\d+)?\s*[)\]]?",
    re.IGNORECASE,
)
_OUT_OF = re.compile(rf"(?<![\w.,/-])(-?{_AMOUNT})\s*(?:/|out\s+of)\s*\d+(?:\.\d+)?(?![\w/])", re.IGNORECASE)
_SCALE = re.compile(r"\b(?:out\s+of|scale\s+of)\s+\d+(?:\.\d+)?", re.IGNORECASE)
_WORD = re.compile(
    r"\b(?:scores?|scored|rating|ratings|rate|rates|rated|grade|grades|graded|give|gives|given|award|awards|awarded)\b",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"\s*([-+]?{_AMOUNT}(?:e[-+]?\d+)?)\s*", re.IGNORECASE)
_FOUND = re.compile(_NUMBER)


def score_in(value: Any) -> float | None:
    """The score that a field says: a number, or the one that prose gives; None where it is not clear.

    The ends of a scale ("on a scale of 1 to 10", "(1-10)", "out of 5") and numbers inside names ("GPT-4") are no
    scores. A fraction ("8/10", "4 out of 5") is one; so is a lone number; of several, one that follows a word such as
    score, rating or give.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        try:
            return _finite(float(value))
        except OverflowError:
            return None
    if not isinstance(value, str):
        return None
    alone = _ALONE.fullmatch(value)
    if alone:
        return _finite(float(alone.group(1)))
    prose = _RANGE.sub(" ", value)
    clear = {float(match.group(1)) for match in _OUT_OF.finditer(prose)}
    prose = _SCALE.sub(" ", _OUT_OF.sub(r" \1 ", prose))
    numbers = [(match.start(), float(match.group(1))) for match in _FOUND.finditer(prose)]
    if not clear and len({score for _, score in numbers}) == 1:
        return _finite(numbers[0][1])
    for word in _WORD.finditer(prose):
        after = next(((start, score) for start, score in numbers if start >= word.end()), None)
        # Within the same sentence: what stands further away is about something else.
        if after and not re.search(r"[.!?;]\s|\n", prose[word.end() : after[0]]):
            clear.add(after[1])
    return _finite(clear.pop()) if len(clear) == 1 else None


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
