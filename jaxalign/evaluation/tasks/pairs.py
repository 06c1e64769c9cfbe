"""Pairs of answers of which people chose one: does a reward model, or a policy, prefer it too?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.data.readers import read_records
from jaxalign.data.records import Comparison, Completion, Prompt
from jaxalign.errors import DataError


@dataclass(frozen=True)
class Pair:
    """A pair.

    Attributes:
      place: file:line that it comes from.
      prompt: a text or turns.
      answers: the chosen one and the rejected one.
    """

    place: str
    prompt: Prompt
    answers: tuple[Completion, Completion]


def read_pairs(path: str) -> list[Pair]:
    """Pairs in any layout that training reads.

    Raises:
      DataError: a file or row that holds none.
    """
    records, _ = read_records(path, kind="comparison")
    found = []
    for number, record in enumerate(records, 1):
        place = record.source or f"{path}: row {number}"
        if not isinstance(record, Comparison):
            raise DataError(f"{place}: expected a pair of answers, chosen and rejected")
        found.append(Pair(place, record.prompt, (record.chosen, record.rejected)))
    return found


def completion_text(completion: Completion) -> str:
    """An answer as a text, for people."""
    return completion if isinstance(completion, str) else "\n".join(turn.content for turn in completion)


def prompt_messages(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as items hold it."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def margins_and_lengths(rows: Mapping[int, Mapping[str, Any]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """([N], [N, 2]): score of the chosen answer less that of the rejected one; tokens of both."""
    scores = np.asarray([rows[i]["scores"] for i in range(count)], np.float64)
    return scores[:, 0] - scores[:, 1], np.asarray([rows[i]["tokens"] for i in range(count)])


def accuracies(margins: Sequence[float] | np.ndarray) -> np.ndarray:
    """[N]: 1 where the chosen answer scores higher, 0.5 for a tie."""
    return (np.sign(np.asarray(margins)) + 1) / 2
