"""What a row says, whatever layout it came in: frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn of a chat; role is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text, or the turns before an answer."""


@dataclass(frozen=True)
class Demonstration:
    """Something to imitate: a prompt with its completion, or a whole chat.

    Attributes:
      prompt: text or turns; a chat's turns are all here, and completion is None.
      completion: text of the answer.
      source: file:line it came from.
      columns: the row's other fields.
    """

    prompt: Prompt
    completion: str | None
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two completions of a prompt, the first preferred; margin is how much (0: not said)."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """Several completions of a prompt and the index of the best."""

    prompt: Prompt
    candidates: tuple[str, ...]
    best: int
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Rating:
    """A completion with a score, a label (good or not), or both."""

    prompt: Prompt
    completion: str
    score: float | None = None
    label: bool | None = None
    reason: str = ""
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Stepwise:
    """A solution in steps, and how right each is: a probability in [0, 1] a step."""

    prompt: Prompt
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRecord:
    """A prompt to be answered."""

    prompt: Prompt
    source: str = ""
    columns: Columns = field(default_factory=dict)


Record = Demonstration | Comparison | Ranking | Rating | Stepwise | PromptRecord
