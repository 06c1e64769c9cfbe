"""Questions to which an answer is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxalign.data.records import Message


@dataclass(frozen=True)
class Written:
    """A question to which a model writes an answer.

    Attributes:
      place: file:line that it comes from.
      prompt: as text, which a base model continues; or turns, for the chat template.
      references: right or good answers; may be empty.
      wrong_references: answers known to be wrong; may be empty.
      group: by which results are also reported; may be empty.
      columns: further fields of the row, for rewards that read them.
    """

    place: str
    prompt: str | tuple[Message, ...]
    references: tuple[str, ...] = ()
    wrong_references: tuple[str, ...] = ()
    group: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
