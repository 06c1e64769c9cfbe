"""items/TASK.jsonl of an evaluation's folder: one row an item."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.data.files import rows_of
from jaxalign.errors import DataError
from jaxalign.evaluation.fields import Fields, told


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question, and what the model made of it.

    Attributes:
      index: of the item in its task.
      place: file:line that it comes from.
      group: may be empty.
      prompt: a text, or turns of role and content.
      answers: that were written.
      choices, logps, right: of a question with choices: texts, summed log-probs in nats, places of the right ones.
      references: good answers.
      scores: by metric; None where there is no score.
      judge: what the judge said.
      notes: what a reader must know.
    """

    index: int
    place: str
    group: str
    prompt: str | tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    logps: tuple[float, ...]
    right: tuple[int, ...]
    references: tuple[str, ...]
    scores: Mapping[str, float | None]
    judge: Mapping[str, Any]
    notes: tuple[str, ...]


def read_items(folder: Path | str, task: str) -> dict[int, Item]:
    """The items of a task by their index; none where their file is missing or empty.

    Raises:
      DataError: a row that is not what it should be, or an index that comes twice.
    """
    path = Path(folder) / "items" / f"{task}.jsonl"
    if not path.is_file() or not path.stat().st_size:
        return {}
    items: dict[int, Item] = {}
    for place, row in rows_of(str(path)):
        if isinstance(row, DataError):
            raise row
        item = _item(Fields(place, row))
        if item.index in items:
            raise DataError(f"{place}: index {item.index} comes twice")
        items[item.index] = item
    return items


def _item(fields: Fields) -> Item:
    prompt = fields.fields.get("prompt")
    if isinstance(prompt, list) and all(isinstance(turn, Mapping) for turn in prompt):
        prompt = tuple(prompt)
    elif not isinstance(prompt, str):
        raise DataError(f"{fields.place}: expected a text or turns in 'prompt', got {told(prompt)}")
    choices, logps = fields.texts("choices"), fields.numbers("logps")
    right = fields.wholes("right")
    if logps and len(logps) != len(choices):
        raise DataError(f"{fields.place}: expected {len(choices)} numbers in 'logps', got {len(logps)}")
    if not set(right) <= set(range(len(choices))):
        raise DataError(
            f"{fields.place}: expected places of {len(choices)} choices in 'right', got {list(right)}"
        )
    scores = fields.object("scores", {})
    return Item(
        index=fields.whole("index"),
        place=fields.text("place", ""),
        group=fields.text("group", ""),
        prompt=prompt,
        answers=fields.texts("answers"),
        choices=choices,
        logps=logps,
        right=right,
        references=fields.texts("references"),
        scores={name: scores.number(name, None) for name in scores.fields},
        judge=fields.object("judge", {}).fields,
        notes=fields.texts("notes"),
    )
