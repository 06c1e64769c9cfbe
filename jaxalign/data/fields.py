"""Typed access to a row's fields, which records the fields that a reader has used."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

PROMPT_NAMES = frozenset(
    "system system_prompt system_message context contexts passage passages document documents article paragraph "
    "input inputs history options choices question query instruction prompt messages conversation conversations "
    "dialogue dialog tools functions".split()
)
"""Columns that usually hold part of a prompt; so do those of images, sound and video."""

LABEL_NAMES = frozenset(
    "label labels kto_tag is_safe safe unsafe is_unsafe harmful is_harmful harmless helpful is_helpful is_good is_bad "
    "is_toxic toxicity is_correct correct is_right truthful passed is_preferred is_accepted accepted acceptable score "
    "scores rating ratings rank ranks reward rewards grade grades preference preferences preferred preference_strength "
    "overall_preference winner choice best vote votes upvotes judgment judgement helpfulness correctness quality "
    "overall_score meta_eval_score".split()
)
"""Columns that usually say how good an answer is."""

_MEDIA = re.compile(
    r"(image|img|picture|photo|video|audio|speech|pixel)s?(_(path|url|file|id|value|byte|base64)s?)?"
)
_SEVERAL = re.compile(
    r"(response|answer|completion|output|reply|summary|candidate|generation|human_ref)_?(\d+|[ab])"
    r"|(chosen|rejected|better|worse)(_(response|answer|completion|output))?"
)
_ANSWER = re.compile(
    r"(.+_)?(response|answer|completion|output|candidate|generation|summarie|summary|correct|incorrect)s?(_.{1,2})?|text"
)
# What a reward function compares with; a file of prompts may have it.
_REFERENCES = frozenset(("answer", "reference_answer", "correct_answer", "ground_truth"))


class BadRow(ValueError):
    """A row that does not fit its format; the message says what was expected."""


class Refused(BadRow):
    """A row with content that nothing would use; the message names it and how to resolve it."""


class Unusable(Exception):
    """A valid row that is unusable for training, such as a tie; the message is the counted reason."""


class Fields(Mapping[str, Any]):
    """A row that remembers which of its fields were looked at.

    Attributes:
      row: the row itself.
      seen: names of the fields that were looked at.
      inside: what stands inside a field and was left, as `messages.KEY`, with its value.
    """

    __slots__ = ("inside", "row", "seen")

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = row
        self.seen: set[str] = set()
        self.inside: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return self.row[name]

    def get(self, name: str, default: Any = None) -> Any:  # type: ignore[override]
        self.seen.add(name)
        return self.row.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self.row

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)

    def peek(self, name: str) -> Any:
        """A field's value, without having looked at it."""
        return self.row.get(name)


def left_of(row: Fields) -> dict[str, Any]:
    """Columns that were not looked at though they hold something."""
    seen = row.seen
    return {name: value for name, value in row.row.items() if name not in seen and not is_empty(value)}


def is_empty(value: Any) -> bool:
    """Nothing, no text or no items; 0 and false do say something."""
    return value is None or (not value and not isinstance(value, (bool, int, float)))


def says_more(name: str, *, answers: bool, prompts_only: bool) -> str:
    """What a column holds by its name: a part of the prompt, a label or an answer; empty where the name does not
    tell.

    Args:
      name: of the column; of a key in a turn, with the column's before it.
      answers: the format reads no answer, so that one in another column would be lost.
      prompts_only: only prompts are wanted; what belongs to an answer goes to the reward functions.
    """
    plain = re.sub(r"[- ]", "_", name.rpartition(".")[2].lower())
    if plain in PROMPT_NAMES or is_media(plain):
        return "a part of the prompt"
    if prompts_only:
        return ""
    if plain in LABEL_NAMES:
        return "a label or a score"
    if _SEVERAL.fullmatch(plain) or (answers and plain not in _REFERENCES and _ANSWER.fullmatch(plain)):
        return "an answer"
    return ""


def is_media(name: str) -> bool:
    """Whether a column, or a mark in a text such as `<image>`, is named for images, sound or video."""
    return _MEDIA.fullmatch(name.strip("<>").lower()) is not None


def kind_name(value: Any) -> str:
    """What a value is, for people."""
    return "nothing" if value is None else type(value).__name__


def text(row: Mapping[str, Any], name: str) -> str:
    """A field that must be text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRow(f"field {name!r}: expected text, got {kind_name(value)}")
    return value


def number(value: Any, name: str) -> float:
    """A field that must be a finite number; csv files hold it as text."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float, str)):
            converted = float(value)
            if math.isfinite(converted):
                return converted
    except (ValueError, OverflowError):
        pass
    shown = value if isinstance(value, (str, float)) else kind_name(value)
    raise BadRow(f"field {name!r}: expected a number, got {str(shown)[:40]!r}")


def index_below(value: Any, name: str, size: int) -> int:
    """A field that must be an index below `size`; csv files hold it as text, data frames as a float."""
    if isinstance(value, str) and value.strip().isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
        raise BadRow(f"field {name!r}: expected an index in 0..{size - 1}, got {_short(value)}")
    return value


def is_label(value: Any) -> bool:
    """Whether a value says true or false: itself, as 1 or 0, or in words."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false", "0", "1")
    return isinstance(value, (bool, int, float)) and value in (0, 1)


def label(row: Mapping[str, Any], name: str) -> bool:
    """A field that must say true or false."""
    value = row[name]
    if not is_label(value):
        raise BadRow(f"field {name!r}: expected true or false, got {_short(value)}")
    return value.strip().lower() in ("true", "1") if isinstance(value, str) else bool(value)


def first_of(row: Mapping[str, Any], *names: str) -> str:
    """The first of some names that the row has."""
    return next((name for name in names if name in row), names[0])


def reach(row: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, whose numbers are places in lists: `answers.0.text`.

    Raises:
      KeyError: there is none; its argument is the part that is missing.
    """
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, (list, tuple)) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(part)
    return value


def beside(value: Any, name: str, used: Collection[str]) -> dict[str, Any]:
    """What stands in a column beside some dotted paths into it, by paths of its own: `meta.system`, `turns.1`."""
    unused: dict[str, Any] = {}
    for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
        path = f"{name}.{key}"
        if path in used:
            continue
        if any(other.startswith(f"{path}.") for other in used):
            unused |= beside(part, path, used)
        else:
            unused[path] = part
    return unused


def listed(value: Any) -> Any:
    """A list of objects, also where Arrow keeps it as an object of lists."""
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        size = len(next(iter(value.values())))
        if all(len(v) == size for v in value.values()):
            return [{name: v[i] for name, v in value.items()} for i in range(size)]
    return value


def _short(value: Any) -> str:
    """A value's beginning, on one line."""
    try:
        line = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of too many digits"
    return line if len(line) <= 60 else f"{line[:60]}..."
