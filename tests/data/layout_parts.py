"""What rows of published layouts are written with: a layout, turns, a chat, a call of a tool."""

import json
from dataclasses import dataclass, field
from typing import Any

from jaxalign.data.records import Message, Record

U, A, S, T = (
    lambda text, role=role, **extra: Message(role, text, extra=extra)
    for role in ("user", "assistant", "system", "tool")
)


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
      name: what people call it.
      format: the format that reads it; empty where it is refused.
      row: one row, in its published shape.
      becomes: its record; or a part of the message that refuses it.
      columns: data.columns, for a layout that is mapped.
      ignore: data.ignore_columns, where the layout needs them.
      kind: what the rows are wanted for, where it matters.
      unread: columns that are counted as unread.
      options: other settings of `Reading`.
      more: rows that follow, where a record takes several.
    """

    name: str
    format: str
    row: dict[str, Any]
    becomes: Record | str
    columns: dict[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    kind: Any = None
    unread: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    more: tuple[dict[str, Any], ...] = ()


HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
GO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go"}]
WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TOOLS = Message("tools", json.dumps([FUNCTION]))
RATED = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
