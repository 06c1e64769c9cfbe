"""A layout: the fields that identify it, and how a row becomes a record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.data.fields import Fields
from jaxalign.data.records import Record


@dataclass(frozen=True)
class Options:
    """Options of readers.

    Attributes:
      dimension: PKU-SafeRLHF: `better` (helpfulness) or `safer`.
      human, assistant: turn markers of transcripts.
      decode: token ids -> text, for files of token ids; None where there is no tokenizer.
      score_field: which score counts, where rows have several.
      kind: what the records are wanted for, where a layout can give several things; empty where it is not known.
    """

    dimension: str = "better"
    human: str = "\n\nHuman:"
    assistant: str = "\n\nAssistant:"
    decode: Callable[[Sequence[int]], str] | None = None
    score_field: str = "score"
    kind: str = ""


Read = Callable[[Fields, Options], Record]


@dataclass(frozen=True)
class Format:
    """One layout.

    Attributes:
      fields: fields that must be there for it to be detected; `label|kto_tag` is one of the two.
      read: row -> record.
      test: a further test for detection, where names alone do not tell.
      redundant: columns that say again, or more finely, what is read.
      says: the field whose score a demonstration would ignore; in `data.ignore_columns` it means that all are taken.
    """

    fields: tuple[str, ...]
    read: Read
    test: Callable[[Mapping[str, Any]], bool] = lambda row: True
    redundant: frozenset[str] = frozenset()
    says: str = ""

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        """Fields that a row lacks."""
        return [field for field in self.fields if not any(name in row for name in field.split("|"))]
