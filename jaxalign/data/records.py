"""Records: the content of a row, independent of its layout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Attributes:
      role: `system`, `user`, `assistant`, `tool` or `developer`; `tools` for a first turn that lists, as JSON, the
        functions that the assistant can call.
      content: its text; empty where the turn only calls tools.
      weight: weight of each token of an assistant turn in the loss; 0 masks the turn.
      extra: further fields for a chat template: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
    """

    role: str
    content: str
    weight: float = 1.0
    extra: Columns = field(default_factory=dict)


Turns = tuple[Message, ...]

Prompt = str | Turns
"""Plain text, or the turns before an answer."""

Completion = str | Turns
"""The text of an answer; or turns, where an answer is more than one text: calls of tools and what they gave, say."""


@dataclass(frozen=True)
class Demonstration:
    """A prompt with its completion, or a whole chat, for supervised fine-tuning.

    Attributes:
      prompt: text or turns; a chat's turns are all here, and completion is None.
      completion: the completion.
      source: file:line it came from.
      columns: the row's other fields.
    """

    prompt: Prompt
    completion: Completion | None
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """Plain text as in pre-training: no template, and every token is in the loss."""

    text: str
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two completions of a prompt, chosen and rejected; margin is by how much chosen is better (0: unknown)."""

    prompt: Prompt
    chosen: Completion
    rejected: Completion
    margin: float = 0.0
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """Several completions of a prompt and the index of the best.

    Attributes:
      scores: how good each candidate is, higher is better (of ranks: their negatives); () where only the best is
        known.
    """

    prompt: Prompt
    candidates: tuple[Completion, ...]
    best: int
    scores: tuple[float, ...] = ()
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Rating:
    """A completion with a score, a label (good or not), or both."""

    prompt: Prompt
    completion: Completion
    score: float | None = None
    label: bool | None = None
    reason: str = ""
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Stepwise:
    """A solution in steps, with a probability in [0, 1] that each step is right."""

    prompt: Prompt
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    source: str = ""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRecord:
    """A prompt without a completion."""

    prompt: Prompt
    source: str = ""
    columns: Columns = field(default_factory=dict)


Record = Demonstration | Text | Comparison | Ranking | Rating | Stepwise | PromptRecord
