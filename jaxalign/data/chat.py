"""Records as token ids, with a mask that is True at the assistant's tokens.

Three ways to write a chat: the tokenizer's own template; turn markers
("\n\nHuman: ... \n\nAssistant: ..."); or `plain`, prompt and completion joined as they
are. Prompt and completion are tokenized so that the prompt's ids are a prefix of the
row's ids: generation then starts from just the ids that training saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxalign.data.records import Message, Prompt
from jaxalign.errors import DataError

Template = Literal["auto", "tokenizer", "markers", "plain"]


@dataclass(frozen=True)
class ChatFormat:
    """How chats become ids.

    Attributes:
      tokenizer: a transformers tokenizer.
      template: `tokenizer`, `markers` or `plain`.
      end_ids: ids that end a completion, appended to each where the template has none of its own.
      human, assistant: turn markers.
    """

    tokenizer: Any
    template: Literal["tokenizer", "markers", "plain"]
    end_ids: tuple[int, ...]
    human: str = "\n\nHuman:"
    assistant: str = "\n\nAssistant:"

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids that a completion follows."""
        if self.template == "tokenizer":
            return self._template_ids(as_turns(prompt), generation=True)
        return self._start() + self._encode(self.prompt_text(prompt))

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as text, without the tokenizer's own special tokens."""
        if self.template == "plain":
            return prompt if isinstance(prompt, str) else "\n".join(m.content for m in prompt)
        if self.template == "markers":
            body = "".join(self._marked(m) for m in as_turns(prompt))
            return body + self.assistant
        return prompt if isinstance(prompt, str) else "\n".join(m.content for m in prompt)

    def completion_ids(self, completion: str, *, after: Sequence[int] = ()) -> list[int]:
        """Ids of a completion after a prompt's ids, its end included."""
        text = completion
        if self.template == "markers":
            text = " " + completion.strip()
        ids = self._encode(text, follows=len(after) > len(self._start()))
        return ids + list(self.end_ids)

    def example(self, prompt: Prompt, completion: str) -> tuple[list[int], list[bool]]:
        """Ids and mask of one prompt with its completion."""
        if self.template == "tokenizer":
            turns = (*as_turns(prompt), Message("assistant", completion))
            return self.chat(turns, only_last=True)
        before = self.prompt_ids(prompt)
        after = self.completion_ids(completion, after=before)
        return before + after, [False] * len(before) + [True] * len(after)

    def chat(self, turns: tuple[Message, ...], *, only_last: bool = False) -> tuple[list[int], list[bool]]:
        """Ids and mask of a chat: every assistant turn counts (or the last alone), its end included."""
        if self.template != "tokenizer":
            return self._marked_chat(turns, only_last)
        ids: list[int] = []
        mask: list[bool] = []
        last = max((i for i, m in enumerate(turns) if m.role == "assistant"), default=-1)
        for index, turn in enumerate(turns):
            if turn.role != "assistant" or (only_last and index != last):
                continue
            prompt = self._template_ids(turns[:index], generation=True)
            whole = self._template_ids(turns[: index + 1], generation=False)
            if whole[: len(prompt)] != prompt or prompt[: len(ids)] != ids:
                raise DataError(
                    "the chat template rewrites earlier turns, so a completion mask cannot be made; "
                    "set data.template=markers, or train on single turns"
                )
            # What follows the answer (end of turn) belongs to it; a trailing newline of the template stays too.
            mask += [False] * (len(prompt) - len(ids)) + [True] * (len(whole) - len(prompt))
            ids = whole
        return ids, mask

    def _marked_chat(self, turns: tuple[Message, ...], only_last: bool) -> tuple[list[int], list[bool]]:
        ids, mask = self._start(), [False] * len(self._start())
        last = max((i for i, m in enumerate(turns) if m.role == "assistant"), default=-1)
        for index, turn in enumerate(turns):
            if turn.role == "assistant":
                if self.template == "markers":
                    lead = self._encode(self.assistant, follows=index > 0)
                    ids += lead
                    mask += [False] * len(lead)
                part = self.completion_ids(turn.content, after=ids)
                counts = index == last or not only_last
            else:
                part, counts = self._encode(self._marked(turn), follows=index > 0), False
            ids += part
            mask += [counts] * len(part)
        return ids, mask

    def _marked(self, turn: Message) -> str:
        if self.template == "plain":
            return turn.content
        if turn.role == "assistant":
            return f"{self.assistant} {turn.content.strip()}"
        return f"{self.human} {turn.content.strip()}" if turn.role == "user" else turn.content.strip()

    def _template_ids(self, turns: Sequence[Message], *, generation: bool) -> list[int]:
        rows = [{"role": m.role, "content": m.content} for m in turns]
        try:
            text = self.tokenizer.apply_chat_template(
                rows, tokenize=False, add_generation_prompt=generation, return_dict=False
            )
        except Exception as error:
            raise DataError(f"the chat template refuses the roles {[m.role for m in turns]}: {error}") from None
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _start(self) -> list[int]:
        """Ids that the tokenizer puts before every text (a beginning-of-text token, say)."""
        special = list(self.tokenizer("")["input_ids"])
        eos = self.tokenizer.eos_token_id
        return special[:-1] if special and special[-1] == eos and len(special) > 1 else special

    def _encode(self, text: str, follows: bool = False) -> list[int]:
        """Ids of a text that stands at the beginning, or `follows` other text.

        Tokenizers in the SentencePiece manner put a space mark before whatever they encode;
        inside a row that would be a space that is not there, so such a text is encoded
        behind an anchor whose ids are then cut off.
        """
        if not text:
            return []
        if follows and self._marks_spaces():
            for anchor in ("\n", ".", "a"):
                lead = self.tokenizer(anchor, add_special_tokens=False)["input_ids"]
                ids = self.tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
                if ids[: len(lead)] == lead:
                    return list(ids[len(lead) :])
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _marks_spaces(self) -> bool:
        ids = self.tokenizer(",", add_special_tokens=False)["input_ids"]
        return bool(ids) and str(self.tokenizer.convert_ids_to_tokens(ids)[0]).startswith("\u2581")


def chat_format(
    tokenizer: Any, template: Template, end_token: str, human: str, assistant: str
) -> ChatFormat:
    """Picks the template and the end token.

    Args:
      tokenizer: a transformers tokenizer.
      template: `auto` takes the tokenizer's template where it has one, else markers.
      end_token: text or id of the token that ends a completion; empty takes the tokenizer's
        end-of-sequence token; `none` appends nothing.

    Raises:
      DataError: no such token, or none at all.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if template == "tokenizer" and not has_template:
        raise DataError("data.template=tokenizer: the tokenizer has no chat template; set data.template=markers or plain")
    chosen = ("tokenizer" if has_template else "markers") if template == "auto" else template
    end: tuple[int, ...] = ()
    if chosen != "tokenizer" and end_token != "none":
        end = (_end_id(tokenizer, end_token),)
    return ChatFormat(tokenizer, chosen, end, human, assistant)


def _end_id(tokenizer: Any, end_token: str) -> int:
    if not end_token:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token: set data.end_token to the token that ends a completion, "
                "or to none"
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
