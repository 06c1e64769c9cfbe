"""The key of a sheet: which model is on which side of which item. It stays with whoever evaluates."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import DataError
from jaxalign.evaluation.human_sheet.answers import Said, messages

Kind = Literal["pair", "rating"]
CHOICES: dict[Kind, tuple[str, ...]] = {"pair": ("A", "B", "tie"), "rating": ("1", "2", "3", "4", "5")}
COLUMN: dict[Kind, str] = {"pair": "choice", "rating": "rating"}


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is rated.

    Attributes:
      prompt: turns.
      models: of the answers, in the order in which they are shown: A, B of a pair.
      answers: likewise.
    """

    prompt: Said
    models: tuple[str, ...]
    answers: tuple[Said, ...]


@dataclass(frozen=True, kw_only=True)
class Key:
    """The key.

    Attributes:
      kind: pairs, or single ratings.
      seed: that it was drawn with.
      models: all, in the order of their files.
      items: by their names.
      raters: of each rater the names of the items, as shown.
    """

    kind: Kind
    seed: int
    models: tuple[str, ...]
    items: Mapping[str, Item]
    raters: Mapping[str, tuple[str, ...]]

    @cached_property
    def sheet(self) -> str:
        """A name that no other key has. It begins with a letter, or spreadsheets would read some as numbers."""
        return "s" + hashlib.sha256(json.dumps(self._body(), sort_keys=True).encode()).hexdigest()[:12]

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"sheet": self.sheet} | self._body(), ensure_ascii=False, indent=1) + "\n"

    def _body(self) -> dict[str, Any]:
        items = {
            name: {
                "prompt": messages(item.prompt),
                "shown": [
                    {"model": model, "answer": messages(answer)}
                    for model, answer in zip(item.models, item.answers, strict=True)
                ],
            }
            for name, item in self.items.items()
        }
        raters = {rater: list(names) for rater, names in self.raters.items()}
        return {
            "kind": self.kind,
            "seed": self.seed,
            "models": list(self.models),
            "raters": raters,
            "items": items,
        }


def read_key(path: str, kind: Kind) -> Key:
    """A key, as it was written.

    Raises:
      DataError: no such file, no key, one of the other kind, or one that was changed.
    """
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        key = Key(
            kind=body["kind"],
            seed=body["seed"],
            models=tuple(body["models"]),
            items={
                name: Item(
                    prompt=_said(item["prompt"]),
                    models=tuple(one["model"] for one in item["shown"]),
                    answers=tuple(_said(one["answer"]) for one in item["shown"]),
                )
                for name, item in body["items"].items()
            },
            raters={rater: tuple(names) for rater, names in body["raters"].items()},
        )
        sheet = body["sheet"]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: expected the key of a sheet, as it was exported") from None
    if sheet != key.sheet:
        raise DataError(f"{path}: the key of sheet {sheet} was changed since it was exported")
    if key.kind != kind:
        raise DataError(f"{path}: expected the key of a {kind} sheet, got that of a {key.kind} sheet")
    return key


def _said(turns: Sequence[Mapping[str, str]]) -> Said:
    return tuple((turn["role"], turn["content"]) for turn in turns)
