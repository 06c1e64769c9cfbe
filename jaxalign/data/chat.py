"""Records as token ids, with a mask that is True at the assistant's tokens.

Three ways to write a chat: the tokenizer's own template; turn markers
("\n\nHuman: ... \n\nAssistant: ..."); or `plain`, prompt and completion joined as they
are. A chat is cut into parts, what is given and what is answered by turns, and each part
is tokenized by itself: the prompt's ids are then always the beginning of the row's ids,
and generation starts from just the ids that training saw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from jaxalign.data.formats import transcript_turns
from jaxalign.data.records import Message, Prompt
from jaxalign.errors import DataError

# Stands for an answer, to see what a template puts before one.
_PROBE = "0123456789" * 4

Template = Literal["auto", "tokenizer", "markers", "plain"]


@dataclass(frozen=True)
class Part:
    """Text between two borders of a row: what is given, or one answer with its end."""

    text: str
    answer: bool


@dataclass(frozen=True)
class ChatFormat:
    """How chats become ids.

    Attributes:
      tokenizer: a transformers tokenizer.
      template: `tokenizer`, `markers` or `plain`.
      end_ids: ids that end a completion, appended to each that does not end with them.
      human, assistant: turn markers.
    """

    tokenizer: Any
    template: Literal["tokenizer", "markers", "plain"]
    end_ids: tuple[int, ...]
    human: str = "\n\nHuman:"
    assistant: str = "\n\nAssistant:"

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids that a completion follows."""
        return self._ids(self._parts(self.turns(prompt), asks=True))[0]

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as text, for people and for reward functions."""
        if isinstance(prompt, str) and self.template != "markers":
            return prompt
        turns = self.turns(prompt)
        if self.template == "markers":
            return "".join(part.text for part in self._marked(turns, asks=True))
        return ("" if self.template == "plain" else "\n").join(m.content for m in turns)

    def example(self, prompt: Prompt, completion: str) -> tuple[list[int], list[bool]]:
        """Ids and mask of one prompt with its completion."""
        turns = (*self.turns(prompt), Message("assistant", completion))
        return self.chat(turns, only_last=True)

    def chat(self, turns: tuple[Message, ...], *, only_last: bool = False) -> tuple[list[int], list[bool]]:
        """Ids and mask of a chat: every assistant turn counts (or the last alone), its end included.

        Turns after the last answer are left out: nothing in them counts, and nothing after them does.

        Raises:
          DataError: a chat template that refuses the turns, or rewrites earlier ones.
        """
        last = max((i for i, m in enumerate(turns) if m.role == "assistant"), default=-1)
        return self._ids(self._parts(turns[: last + 1], asks=False), only_last)

    def steps(
        self, prompt: Prompt, steps: Sequence[str], separator: str
    ) -> tuple[list[int], list[bool], list[int]]:
        """Ids and mask of a prompt with an answer in steps, and the index of each step's last token.

        Every step is followed by the separator, the last one too, and its last token is the separator's.
        Steps and separators are tokenized piece by piece, so that no token holds parts of two.

        Raises:
          DataError: a chat template that changes the answer.
        """
        ids = self.prompt_ids(prompt)
        mask = [False] * len(ids)
        whole = separator.join(steps).strip()
        # What opens an answer (a space after a marker, say) belongs to the first step.
        lead = self._answer(prompt, _PROBE).partition(_PROBE)[0]
        if not self._answer(prompt, whole).startswith(lead + whole):
            raise DataError(
                "the chat template changes the answer, so its steps cannot be told; set data.template=markers"
            )
        pieces, ends = list(steps), []
        if self.template != "plain":
            pieces[0] = lead + pieces[0].lstrip()
        for piece in pieces:
            ids += self._encode(piece, follows=len(ids) > len(self._opening))
            ids += self.continuation_ids(separator)
            ends.append(len(ids) - 1)
        return ids, mask + [True] * (len(ids) - len(mask)), ends

    def _answer(self, prompt: Prompt, content: str) -> str:
        """An answer's text with what the template puts around it."""
        parts = self._parts((*self.turns(prompt), Message("assistant", content)), asks=False)
        return [part.text for part in parts if part.answer][-1]

    def continuation_ids(self, text: str) -> list[int]:
        """Ids of a text that follows other text, and is tokenized by itself."""
        return self._encode(text, follows=True)

    def turns(self, prompt: Prompt) -> tuple[Message, ...]:
        """A prompt's turns; a text that is a marked transcript already is taken apart."""
        if isinstance(prompt, tuple):
            return prompt
        if self.template == "plain":
            return (Message("user", prompt),) if prompt else ()
        marks = (self.human.strip(), self.assistant.strip())
        if prompt.lstrip().startswith(marks[0]) and prompt.rstrip().endswith(marks[1]):
            turns = transcript_turns(prompt, self.human, self.assistant)
            if turns and turns[-1] == Message("assistant", ""):
                return turns[:-1]
        return as_turns(prompt)

    def _parts(self, turns: Sequence[Message], *, asks: bool) -> list[Part]:
        """A chat's parts in order; `asks` ends it where the next answer begins."""
        if self.template == "tokenizer":
            return list(self._rendered(turns, asks))
        if self.template == "markers":
            return list(self._marked(turns, asks))
        return [Part(m.content, m.role == "assistant") for m in turns]

    def _marked(self, turns: Sequence[Message], asks: bool) -> Iterator[Part]:
        for turn in turns:
            if turn.role == "assistant":
                yield Part(self.assistant, False)
                yield Part(f" {turn.content.strip()}", True)
            else:
                marker = f"{self.human} " if turn.role == "user" else ""
                yield Part(marker + turn.content.strip(), False)
        if asks:
            yield Part(self.assistant, False)

    def _rendered(self, turns: Sequence[Message], asks: bool) -> Iterator[Part]:
        done = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:index], generation=True) if index else ""
            whole = self._render(turns[: index + 1], generation=False)
            self._check_prefix(before, done)
            self._check_prefix(whole, before)
            answer = whole[len(before) :]
            # Space after the end-of-turn token is never generated: it opens the next turn.
            bare = answer.rstrip()
            if any(bare.endswith(token) for token in self.tokenizer.all_special_tokens):
                answer = bare
            yield Part(before[len(done) :], False)
            yield Part(answer, True)
            done = before + answer
        if asks:
            before = self._render(turns, generation=True)
            self._check_prefix(before, done)
            yield Part(before[len(done) :], False)

    @staticmethod
    def _check_prefix(whole: str, start: str) -> None:
        if not whole.startswith(start):
            raise DataError(
                "the chat template rewrites earlier turns, so a completion mask cannot be made; "
                "set data.template=markers, or train on single turns"
            )

    def _render(self, turns: Sequence[Message], *, generation: bool) -> str:
        rows = [{"role": m.role, "content": m.content} for m in turns]
        try:
            return self.tokenizer.apply_chat_template(
                rows, tokenize=False, add_generation_prompt=generation, return_dict=False
            )
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"the chat template refuses the roles {[m.role for m in turns]}: {reason}"
            ) from None

    def _ids(self, parts: Sequence[Part], only_last: bool = False) -> tuple[list[int], list[bool]]:
        """Ids and mask; neighbouring parts that are both given are tokenized as one text."""
        ids = list(self._opening)
        mask = [False] * len(ids)
        opened = len(ids)
        final = max((i for i, p in enumerate(parts) if p.answer), default=-1)
        given = ""
        for index, part in enumerate(parts):
            if not part.answer:
                given += part.text
                continue
            before, given = self._encode(given, follows=len(ids) > opened), ""
            ids += before
            answer = self._encode(part.text, follows=len(ids) > opened)
            if self.end_ids and tuple(answer[-len(self.end_ids) :]) != self.end_ids:
                answer += self.end_ids
            ids += answer
            counts = index == final or not only_last
            mask += [False] * len(before) + [counts] * len(answer)
        rest = self._encode(given, follows=len(ids) > opened)
        return ids + rest, mask + [False] * len(rest)

    @property
    def _opening(self) -> tuple[int, ...]:
        """Ids that open a row; a tokenizer's own template writes them itself."""
        return () if self.template == "tokenizer" else self._start

    @cached_property
    def _start(self) -> tuple[int, ...]:
        """Ids that the tokenizer puts before every text (a beginning-of-text token, say)."""
        special = tuple(self.tokenizer("")["input_ids"])
        eos = self.tokenizer.eos_token_id
        return special[:-1] if len(special) > 1 and special[-1] == eos else special

    def _encode(self, text: str, follows: bool = False) -> list[int]:
        """Ids of a text that stands at the beginning, or `follows` other text.

        Tokenizers in the SentencePiece manner put a space mark before whatever they encode;
        inside a row that would be a space that is not there, so such a text is encoded
        behind an anchor whose ids are then cut off.
        """
        if not text:
            return []
        # Not verbose: the tokenizer would warn of texts beyond its own length; we cut or filter them, and count.
        if follows and self._marks_spaces:
            for anchor in ("\n", ".", "a"):
                lead = self.tokenizer(anchor, add_special_tokens=False, verbose=False)["input_ids"]
                ids = self.tokenizer(anchor + text, add_special_tokens=False, verbose=False)["input_ids"]
                if ids[: len(lead)] == lead:
                    return list(ids[len(lead) :])
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def _marks_spaces(self) -> bool:
        ids = self.tokenizer(",", add_special_tokens=False, verbose=False)["input_ids"]
        return bool(ids) and str(self.tokenizer.convert_ids_to_tokens(ids)[0]).startswith("\u2581")


def chat_format(tokenizer: Any, template: Template, end_token: str, human: str, assistant: str) -> ChatFormat:
    """Picks the template and the end token.

    Args:
      tokenizer: a transformers tokenizer.
      template: `auto` takes the tokenizer's template where it has one, else markers.
      end_token: text or id of the token that ends a completion; empty takes the tokenizer's
        end-of-sequence token (with a chat template: the template's own end); `none` appends nothing.
      human, assistant: turn markers.

    Raises:
      DataError: no such token, or none at all.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if template == "tokenizer" and not has_template:
        raise DataError(
            "data.template=tokenizer: the tokenizer has no chat template; set data.template=markers or plain"
        )
    chosen = ("tokenizer" if has_template else "markers") if template == "auto" else template
    end: tuple[int, ...] = ()
    if end_token != "none" and (end_token or chosen != "tokenizer"):
        end = (_end_id(tokenizer, end_token),)
    return ChatFormat(tokenizer, chosen, end, human, assistant)


def _end_id(tokenizer: Any, end_token: str) -> int:
    if not end_token:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token: set data.end_token to the token that ends "
                "a completion, or to none"
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
