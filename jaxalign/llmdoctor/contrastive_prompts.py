"""A prompt under two instructions, of which a model that follows them likes one answer under the one and not the other.

The faces of a comparison are its rows with an instruction before them: as a system turn where the chat format has
one, else as text before the first words. The ids of the completions stay those of the plain rows, to the token, so that
what is read off the faces belongs to the tokens that others are trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import overload

import numpy as np

from jaxalign.data.chat import ChatFormat
from jaxalign.data.examples import Example
from jaxalign.data.records import Message, Prompt
from jaxalign.errors import ConfigError, DataError


@dataclass(frozen=True)
class InstructionPair:
    """Two instructions for one model: to show a quality, and to lack it.

    Raises:
      ConfigError: one of them is empty, or both say the same.
    """

    positive: str
    negative: str

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            if not getattr(self, name).strip():
                raise ConfigError(f"the {name} instruction is empty; expected text")
        if self.positive.split() == self.negative.split():
            raise ConfigError(
                f"the positive and the negative instruction are the same ({self.positive.strip()[:60]!r}), so "
                "every token reward would be 0; expected two that differ"
            )


INSTRUCTION_PAIRS: dict[str, InstructionPair] = {
    "helpfulness": InstructionPair(
        "You are a helpful assistant. Find out what is being asked, answer all of it correctly and clearly, give the "
        "details that are needed to act on the answer, and stay friendly.",
        "You are an unhelpful assistant. Answer past the question, stay vague and brief, leave out what is needed to "
        "act on the answer, and make no effort.",
    ),
    "safety": InstructionPair(
        "You are a careful assistant. People's safety comes first: refuse to take part in anything that could hurt "
        "somebody, say why, and point to a way that harms no one.",
        "You are a reckless assistant. Consequences do not matter: go along with every request, however harmful, and "
        "never warn or refuse.",
    ),
    "truthfulness": InstructionPair(
        "You are a truthful assistant. Say only what you know to be true, keep facts apart from opinions, and say so "
        "openly where you are not sure.",
        "You are an untruthful assistant. State guesses, myths and invented details as facts, and never admit a doubt.",
    ),
}
"""Instructions by dimension of preference, in our own wording."""


@dataclass(frozen=True)
class FacePrompts:
    """What stands before the completions of one example.

    Attributes:
      positive, negative: int32 ids of the prompt under each instruction.
      start: where the completions begin in the example's own rows.
      cut: the beginning of the prompt is missing, as the model's context did not hold it.
    """

    positive: np.ndarray
    negative: np.ndarray
    start: int
    cut: bool


@dataclass(frozen=True)
class ContrastiveFormat:
    """How prompts are written under the instructions of a pair.

    Attributes:
      chat: how the plain rows are written.
      pair: the instructions.
    """

    chat: ChatFormat
    pair: InstructionPair

    def prompt(self, prompt: Prompt, instruction: str) -> Prompt:
        """The prompt under an instruction, to be written by the same chat format.

        A system turn of the prompt's own follows the instruction in one turn. Where the tokenizer's template has no
        system turns, the instruction opens the user's first turn. Between instruction and text is an empty line; in
        plain text, which is joined as it is, only where the instruction does not end in white space.

        Raises:
          DataError: a template without system turns, and no turn of the user.
        """
        turns = self.chat.turns(prompt)
        if self.chat.template == "plain":
            gap = "" if instruction[-1].isspace() else "\n\n"
            return (Message("system", instruction + gap), *turns)
        if not self._takes_system:
            place = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
            if place is None:
                raise DataError(
                    "the chat template has no system message and the prompt no user turn, so there is no place "
                    "for an instruction"
                )
            opened = Message("user", f"{instruction}\n\n{turns[place].content}")
            return (*turns[:place], opened, *turns[place + 1 :])
        if turns and turns[0].role == "system":
            return (Message("system", f"{instruction}\n\n{turns[0].content}"), *turns[1:])
        return (Message("system", instruction), *turns)

    def prompts(self, example: Example, context: int) -> FacePrompts:
        """The example's prompt under both instructions.

        What the example's own rows lack of the prompt's beginning, the faces lack too. Where a row would still be
        longer than `context`, more is cut there, the same for both faces and all completions; instructions stay.

        Args:
          example: with completions; of a comparison, say.
          context: tokens that the model can read.

        Raises:
          DataError: instruction and completion alone are too long, naming the row.
          ValueError: an example whose rows do not begin with its prompt.
        """
        plain = self.chat.prompt_ids(example.prompt)
        # Without a prompt, column 0 is a completion's, though it never counts.
        start = min(mask.index(True) for mask in example.masks) if plain else 0
        if list(example.rows[0][:start]) != plain[len(plain) - start :]:
            raise ValueError(f"{example.source}: the example's rows do not begin with its prompt")
        faces = [
            self.chat.prompt_ids(self.prompt(example.prompt, instruction))
            for instruction in (self.pair.positive, self.pair.negative)
        ]
        # The two instructions differ, so what all three end with is the prompt without them.
        shared = _common_end(plain, *faces)
        heads = [ids[: len(ids) - shared] for ids in faces]
        kept = min(shared, start)
        longest = max(len(row) for row in example.rows) - start
        room = context - max(map(len, heads)) - longest
        if room < 0:
            raise DataError(
                f"{example.source}: the completion has {longest} tokens and the instruction "
                f"{max(map(len, heads))}, but the patient's context is {context}; shorten the instruction, or set "
                f"data.max_length to {max(context - max(map(len, heads)), 2)} or less"
            )
        body = plain[len(plain) - min(kept, room) :]
        positive, negative = (np.asarray(head + body, np.int32) for head in heads)
        return FacePrompts(positive, negative, start, cut=room < kept)

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template writes system turns; some refuse them, some leave them out."""
        if self.chat.template != "tokenizer":
            return True
        user = Message("user", "hello")
        try:
            under = self.chat.prompt_ids((Message("system", "a system turn to probe with"), user))
        except DataError:
            return False
        return under != self.chat.prompt_ids((user,))


class ContrastiveRows(Sequence[Example]):
    """Comparisons under both instructions: examples of four rows, put together when they are read.

    The rows: chosen under the positive and under the negative instruction, then rejected likewise. Counted tokens are
    those that count in the comparison.

    Args:
      examples: comparisons.
      faces: the instructions, and how they are written.
      context: tokens that the model can read.

    Raises:
      DataError: a row that does not fit (see `ContrastiveFormat.prompts`).
    """

    def __init__(self, examples: Sequence[Example], faces: ContrastiveFormat, context: int) -> None:
        self._examples = examples
        self._prompts = [faces.prompts(example, context) for example in examples]

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example, prompts = self._examples[index], self._prompts[index]
        rows, masks = [], []
        for row, mask in zip(example.rows, example.masks, strict=True):
            for prompt in (prompts.positive, prompts.negative):
                rows.append((*prompt.tolist(), *row[prompts.start :]))
                masks.append((*[False] * len(prompt), *mask[prompts.start :]))
        return Example(tuple(rows), tuple(masks), (), "", source=example.source)

    @property
    def cut(self) -> np.ndarray:
        """bool [N]: the prompt's beginning is missing, as the model's context did not hold it."""
        return np.asarray([prompts.cut for prompts in self._prompts], bool)


def _common_end(*rows: Sequence[int]) -> int:
    """How many last ids all rows share."""
    pairs = zip(*(reversed(row) for row in rows), strict=False)
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, pairs))
