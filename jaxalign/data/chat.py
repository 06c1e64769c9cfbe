"""Records as token ids, with a weight for each token: 0 where it is given, and what an answer counts for.

Three ways to write a chat: the tokenizer's own template; turn markers ("\n\nHuman: ... \n\nAssistant: ..."); or
`plain`, prompt and completion joined as they are. Text that is to be continued is written in none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from jaxalign.data.encoding import Encoder, Piece, Row, RowPlan
from jaxalign.data.formats import transcript_turns
from jaxalign.data.markers import markers_of
from jaxalign.data.records import Completion, Message, Prompt, Turns
from jaxalign.data.templates import PROBE, ChatTemplate
from jaxalign.errors import DataError

Template = Literal["auto", "tokenizer", "markers", "plain"]


class Written(NamedTuple):
    """A record as rows of text.

    Attributes:
      rows: to be tokenized by `Encoder.rows`.
      note: a remark on how it was written, that is counted and shown; else empty.
    """

    rows: list[RowPlan]
    note: str = ""


@dataclass(frozen=True)
class ChatFormat:
    """Turns chats into token ids.

    Attributes:
      tokenizer: a transformers tokenizer.
      template: `tokenizer`, `markers` or `plain`.
      end_ids: ids that end a completion, appended to each that does not end with them.
      human, assistant: turn markers.
      text_end: ids that end a text which is continued.
      date: the day that a chat template prints, as YYYY-MM-DD; empty for today.
    """

    tokenizer: Any
    template: Literal["tokenizer", "markers", "plain"]
    end_ids: tuple[int, ...]
    human: str = "\n\nHuman:"
    assistant: str = "\n\nAssistant:"
    text_end: tuple[int, ...] = ()
    date: str = ""

    @cached_property
    def encoder(self) -> Encoder:
        """Text to ids."""
        return Encoder(self.tokenizer)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids with which training teaches a model to end its turn; () where nothing ends one."""
        ends = self._rendered.ends if self.template == "tokenizer" else ()
        taught = [self.encoder.ids(end, follows=True)[-1] for end in ends]
        return tuple(dict.fromkeys([*taught, *self.end_ids[-1:]]))

    def prompt_plan(self, prompt: Prompt) -> RowPlan:
        """A prompt, up to where a completion begins."""
        turns = self.turns(prompt)
        if self.template == "tokenizer":
            return RowPlan(self._rendered.prompt(turns))
        return RowPlan(self._pieces(turns, asks=True), True, self.end_ids)

    def answered(self, prompt: Prompt, completion: Completion) -> Written:
        """A prompt with its completion, in one row; of the prompt nothing counts."""
        before = [
            replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in self.turns(prompt)
        ]
        after = (Message("assistant", completion),) if isinstance(completion, str) else completion
        return self._written((*before, *after), one=True)

    def conversation(self, turns: Turns) -> Written:
        """A chat whose answers all count by their weights, their ends included.

        It is one row, or one for each answer where a chat template rewrites earlier turns. Turns after the last
        answer that counts are left out: nothing in them counts, and nothing after them does.

        Raises:
          DataError: a chat template that refuses the turns.
        """
        return self._written(turns, one=False)

    def continued(self, text: str) -> RowPlan:
        """Text as in pre-training: all of it counts, and no template is put around it."""
        return RowPlan([Piece(text, 1.0, answer=True)], True, self.text_end)

    def steps(self, prompt: Prompt, steps: Sequence[str], separator: str) -> RowPlan:
        """A prompt with an answer in steps; every second cut of its row ends a step.

        Every step is followed by the separator, the last one too. Steps and separators are tokenized piece by piece,
        so that no token holds parts of two.

        Raises:
          DataError: a chat template that changes the answer.
        """
        whole = separator.join(steps).strip()
        # What opens an answer (a space after a marker, say) belongs to the first step.
        lead = self._answer(prompt, PROBE).partition(PROBE)[0]
        if not self._answer(prompt, whole).startswith(lead + whole):
            raise DataError(
                "the chat template changes the completion, so its steps cannot be located; set "
                "data.template=markers"
            )
        texts = list(steps)
        if self.template != "plain":
            texts[0] = lead + texts[0].lstrip()
        prompt_plan = self.prompt_plan(prompt)
        pieces = [Piece(part, 1.0, True, ends=False) for step in texts for part in (step, separator)]
        return RowPlan([*prompt_plan.pieces, *pieces], prompt_plan.opens)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids that a completion follows."""
        return self.encoder.rows([self.prompt_plan(prompt)])[0].ids

    def prompt_text(self, prompt: Prompt, turns: Turns | None = None) -> str:
        """The prompt as text, for people and for reward functions; `turns` are its turns where they are known."""
        if isinstance(prompt, str) and self.template != "markers":
            return prompt
        turns = self.turns(prompt) if turns is None else turns
        if self.template == "markers":
            return "".join([piece.text for piece in self._pieces(turns, asks=True)])
        return ("" if self.template == "plain" else "\n").join(m.content for m in turns if m.role != "tools")

    def example(self, prompt: Prompt, completion: Completion) -> Row:
        """Ids and weights of one prompt with its completion."""
        return self.encoder.rows(self.answered(prompt, completion).rows)[0]

    def continuation_ids(self, text: str) -> list[int]:
        """Ids of a text that follows other text, and is tokenized by itself."""
        return self.encoder.ids(text, follows=True)

    def turns(self, prompt: Prompt) -> Turns:
        """A prompt's turns; a text that is a marked transcript already is taken apart.

        Raises:
          DataError: a text that a chat template has written already.
        """
        if isinstance(prompt, tuple):
            return prompt
        if self.template == "plain":
            return (Message("user", prompt),) if prompt else ()
        marks = (self.human.strip(), self.assistant.strip())
        if prompt.lstrip().startswith(marks[0]) and prompt.rstrip().endswith(marks[1]):
            turns = transcript_turns(prompt, self.human, self.assistant)
            if turns and turns[-1] == Message("assistant", ""):
                return turns[:-1]
        if self.template == "tokenizer" and prompt.lstrip().startswith(self._rendered.marks):
            raise DataError(
                f"the prompt begins with {prompt.split()[0][:20]!r} as if a chat template had written it; set "
                "data.template=plain to use it unchanged"
            )
        return as_turns(prompt)

    @cached_property
    def _rendered(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.date)

    def _written(self, turns: Turns, *, one: bool) -> Written:
        while turns and not (turns[-1].role == "assistant" and turns[-1].weight > 0):
            turns = turns[:-1]
        if self.template == "tokenizer":
            rows, note = self._rendered.rows(turns, one=one)
            note = note or _unwritten(turns, "".join(piece.text for row in rows for piece in row))
            return Written([RowPlan(row, False, self.end_ids) for row in rows], note)
        rows = [RowPlan(self._pieces(turns, asks=False), True, self.end_ids)]
        return Written(rows if turns else [], _unwritten(turns, ""))

    def _answer(self, prompt: Prompt, content: str) -> str:
        """An answer's text with what the template puts around it."""
        return next(p.text for p in reversed(self.answered(prompt, content).rows[0].pieces) if p.answer)

    def _pieces(self, turns: Turns, *, asks: bool) -> list[Piece]:
        """A chat without a chat template; `asks` ends it where the next answer begins."""
        plain = self.template == "plain"
        pieces = []
        for turn in turns:
            for name in ("tool_calls", "reasoning_content", "thinking") if turn.extra else ():
                if turn.extra.get(name):
                    raise DataError(
                        f"a message has {name}, which needs a chat template, but data.template={self.template}"
                    )
            if turn.role == "tools":
                raise DataError(
                    "the row lists tools, which need a chat template; name their column in data.ignore_columns to "
                    "leave them out"
                )
            said = turn.content if plain else turn.content.strip()
            if turn.role == "assistant":
                if not plain:
                    pieces.append(Piece(self.assistant))
                    said = f" {said}"
                pieces.append(Piece(said, turn.weight, True))
            else:
                marked = turn.role == "user" and not plain
                pieces.append(Piece(f"{self.human} {said}" if marked else said))
        if asks and not plain:
            pieces.append(Piece(self.assistant))
        return pieces


def _unwritten(turns: Turns, text: str) -> str:
    """A remark where the names of those who speak are not written."""
    names = [turn.extra["name"] for turn in turns if turn.extra and turn.extra.get("name")]
    return "names of messages are not written" if any(str(name) not in text for name in names) else ""


def chat_format(
    tokenizer: Any, template: Template, end_token: str, human: str, assistant: str, date: str = ""
) -> ChatFormat:
    """Picks the template and the end token.

    Args:
      tokenizer: a transformers tokenizer.
      template: `auto` takes the tokenizer's template where it has one, else markers. Of a tokenizer that was exported
        with turn markers it takes those, and their end token where none is named.
      end_token: text or id of the token that ends a completion; empty takes the tokenizer's
        end-of-sequence token (with a chat template: the template's own end); `none` appends nothing.
      human, assistant: turn markers.
      date: the day that a chat template prints, as YYYY-MM-DD; empty for today.

    Raises:
      DataError: no such token, or none at all.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if template == "tokenizer" and not has_template:
        raise DataError(
            "data.template=tokenizer: the tokenizer has no chat template; set data.template=markers or plain"
        )
    if template == "auto" and (own := markers_of(tokenizer)):
        template, human, assistant, end_token = (
            "markers",
            own["human"],
            own["assistant"],
            end_token or own["end_token"],
        )
    chosen = ("tokenizer" if has_template else "markers") if template == "auto" else template
    end: tuple[int, ...] = ()
    if end_token != "none" and (end_token or chosen != "tokenizer"):
        end = (_end_id(tokenizer, end_token),)
    text_end = end
    if not end and end_token != "none" and tokenizer.eos_token_id is not None:
        text_end = (int(tokenizer.eos_token_id),)
    return ChatFormat(tokenizer, chosen, end, human, assistant, text_end, date)


def _end_id(tokenizer: Any, end_token: str) -> int:
    if not end_token:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token: set data.end_token to the token that ends a "
                "completion, or to none"
            )
        return int(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    if end_token in vocabulary:
        return int(vocabulary[end_token])
    if end_token.isdigit() and int(end_token) < len(tokenizer):
        return int(end_token)
    raise DataError(f"data.end_token: the tokenizer has no token {end_token!r}")


def as_turns(prompt: Prompt) -> tuple[Message, ...]:
    """A plain-text prompt as one user turn."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt
