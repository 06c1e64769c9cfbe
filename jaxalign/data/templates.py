"""Renders a chat with the tokenizer's template, split into context and answers.

Templates may write a turn in another way once others follow it (leave out its reasoning, move the system turn, end
the chat with a token of its own). So an answer is looked at as the template wrote it when it was the last turn: a
chat becomes one row as long as what was written stays as it was, and a row for each answer from where it does not.
"""

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxalign.data.encoding import Piece, special_tokens
from jaxalign.data.records import Message, Turns
from jaxalign.errors import DataError

# Stands for an answer, to see what a template puts around one.
PROBE = "0123456789" * 4


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer.

    Attributes:
      tokenizer: a transformers tokenizer with a chat template.
      date: the day that the template prints where it prints today's, as YYYY-MM-DD; empty for today.
    """

    tokenizer: Any
    date: str = ""

    def prompt(self, turns: Turns) -> list[Piece]:
        """The turns, up to where the next answer begins."""
        text = self._render(turns, generation=True)
        self._check_whole(turns, text)
        return [Piece(text)]

    def rows(self, turns: Turns, *, one: bool = False) -> tuple[list[list[Piece]], str]:
        """A chat that ends with an answer, as rows in which each answer counts once, by its weight; and a remark.

        Args:
          turns: the last one is the assistant's.
          one: refuse a chat that takes several rows.

        Raises:
          DataError: the template refuses the turns or leaves out what they say.
        """
        rows: list[list[Piece]] = []
        done = note = ""
        for index, turn in enumerate(turns):
            # Answers that do not count stand as the template writes them in what is given.
            if turn.role != "assistant" or turn.weight <= 0:
                continue
            given, answer, remark = self._answer(turns[: index + 1])
            note = note or remark
            piece = Piece(answer, turn.weight, answer=True)
            if rows and given.startswith(done):
                rows[-1] += [Piece(given[len(done) :]), piece]
            elif rows and one:
                raise DataError(
                    "the chat template rewrites earlier assistant turns of a completion; expected a single "
                    "assistant turn"
                )
            else:
                rows.append([Piece(given), piece])
            done = given + answer
        if rows:
            self._check_whole(turns[:-1], done)
        return rows, note

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The tokens that end an answer, and one that calls a tool where that ends otherwise; () for none."""
        call = {"type": "function", "function": {"name": PROBE, "arguments": {}}, "id": "0" * 9}
        called = self._after_probe(Message("assistant", "", extra={"tool_calls": [call]}))
        marks = self._added.findall(self.end)[-1:] + self._specials.findall(called)[-1:]
        return tuple(dict.fromkeys(marks))

    @property
    def end(self) -> str:
        """What ends an answer, up to its first token of its own; empty where the template writes nothing after it."""
        return self._tail[0]

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """Special tokens, with which no prompt of a user begins."""
        return tuple(special_tokens(self.tokenizer)) or ("\0",)

    @cached_property
    def _tail(self) -> tuple[str, str]:
        """(what ends an answer, what the template writes after that, which is never generated)."""
        tail = self._after_probe(Message("assistant", PROBE))
        match = self._added.search(tail)
        return (tail[: match.end()], tail[match.end() :]) if match else (tail, "")

    def _after_probe(self, answer: Message) -> str:
        try:
            whole = self._render((Message("user", "1"), answer), generation=False)
        except DataError:
            return ""
        return whole.rpartition(PROBE)[2] if PROBE in whole else ""

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        return _any_of(special_tokens(self.tokenizer))

    @cached_property
    def _added(self) -> re.Pattern[str]:
        """Special tokens, and others that are tokens of their own: some turns end with such a one."""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        return _any_of(special_tokens(self.tokenizer) | {token for token in added if token.strip()})

    @cached_property
    def _text(self) -> str:
        template = self.tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, Mapping) else str(template)

    def _answer(self, turns: Turns) -> tuple[str, str, str]:
        """(what is given, the last answer with its end, a remark), as the template writes the turns.

        Raises:
          DataError: the template leaves out part of the answer, or it cannot be told from what is given.
        """
        whole = self._render(turns, generation=False)
        if all(turn.role == "tools" for turn in turns[:-1]):
            # Templates need a turn to ask with: what stands before a probe is given.
            probe = Message("assistant", PROBE)
            given = self._render((*turns[:-1], probe), generation=False).partition(PROBE)[0]
            if not whole.startswith(given):
                raise DataError(
                    "the chat template does not support a chat that starts with an assistant turn"
                )
        else:
            given = self._render(turns[:-1], generation=True)
        if whole.startswith(given):
            answer, note = self._without_rest(whole[len(given) :]), ""
        else:
            given, answer, note = self._reopened(turns, given, whole)
        self._check_answer(turns[-1], given[-len(PROBE) :], answer)
        return given, answer, note

    def _reopened(self, turns: Turns, prompt_text: str, whole: str) -> tuple[str, str, str]:
        """The same where a template asks with more than it writes before a finished answer (`<think>`, say).

        Generation starts from that prompt, so the answer must follow it: with its reasoning, or without.
        """
        base = self._render(turns[:-1], generation=False)
        if not whole.startswith(base):
            return prompt_text, self._alone(turns[-1]), ""
        pairs = enumerate(zip(prompt_text, whole, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(prompt_text), len(whole)))
        # Not within a token: two may begin alike.
        ends = (match.end() for match in self._specials.finditer(prompt_text, len(base)))
        start = max([len(base), *(end for end in ends if end <= same)])
        opening = prompt_text[start:]
        content = turns[-1].content.lstrip()
        if content.startswith(opening.strip()):
            content = content[len(opening.strip()) :]
            if opening.endswith("\n"):
                content = content.removeprefix("\n")
            return prompt_text, content + self.end, ""
        tag = re.fullmatch(r"<(\w+)>\s*", opening)
        if tag is None:
            raise DataError(
                f"the chat template starts answers with {opening.strip()!r}, but this one does not start with it"
            )
        note = (
            f"answers without reasoning, which the chat template asks for: {tag[0].strip()} is closed at once"
        )
        return prompt_text, f"\n</{tag[1]}>\n\n{self._without_rest(whole[start:]).lstrip()}", note

    def _alone(self, answer: Message) -> str:
        """An answer as the template writes it in a chat of its own, where answering changes what stands before it."""
        user = Message("user", "1")
        prompt_text = self._render((user,), generation=True)
        whole = self._render((user, answer), generation=False)
        if not whole.startswith(prompt_text):
            raise DataError(
                "the chat template changes earlier turns once they are answered, so no loss mask can be computed; "
                "set data.template=markers"
            )
        return self._without_rest(whole[len(prompt_text) :])

    def _without_rest(self, answer: str) -> str:
        """An answer without what the template writes after its end: that opens the next turn or ends the chat."""
        end, rest = self._tail
        if end and answer.endswith(end + rest):
            return answer[: len(answer) - len(rest)] if rest else answer
        bare = answer.rstrip()
        finals = [match.end() for match in self._specials.finditer(bare)]
        return bare if finals and finals[-1] == len(bare) else answer

    def _check_answer(self, turn: Message, given: str, answer: str) -> None:
        whole = _squeezed(given + answer)
        for name in ("content", "reasoning_content", "thinking"):
            said = turn.content if name == "content" else turn.extra.get(name) or ""
            if _squeezed(said) not in whole:
                which = "part of an answer" if name == "content" else f"the field {name!r} of an answer"
                raise DataError(f"the chat template drops {which} ({said.strip()[:40]!r})")
        _check_calls(turn, answer)

    def _check_whole(self, turns: Sequence[Message], text: str) -> None:
        """Every turn must be there, but for the reasoning of answers that are past."""
        squeezed = _squeezed(text)
        for turn in turns:
            if turn.role == "tools":
                names = [_function(tool).get("name", "") for tool in json.loads(turn.content)]
                missing = next((name for name in names if str(name) not in text), None)
                if missing is not None:
                    raise DataError(
                        f"the chat template drops the row's tools ({missing!r}); use a template that supports "
                        "tools, or name their column in data.ignore_columns"
                    )
                continue
            said = turn.content
            if turn.role == "assistant":
                said = said.rpartition("</think>")[2]
                _check_calls(turn, text)
            forms = [said]
            if turn.role == "tool":  # what tools gave may be written as JSON
                forms += [json.dumps(said, ensure_ascii=ascii)[1:-1] for ascii in (True, False)]
            if not any(_squeezed(form) in squeezed for form in forms):
                raise DataError(f"the chat template drops a turn of the {turn.role} ({said.strip()[:40]!r})")

    def _rows(self, turns: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """(messages, tools) as templates take them."""
        tools = json.loads(turns[0].content) if turns and turns[0].role == "tools" else None
        developer = "developer" if "developer" in self._text else "system"
        rows = []
        for turn in turns[1:] if tools is not None else turns:
            calls = turn.extra.get("tool_calls")
            row = {
                "role": developer if turn.role == "developer" else turn.role,
                "content": turn.content,
                **turn.extra,
            }
            if calls:
                row |= {"tool_calls": [_called(call) for call in calls]}
            rows.append(row)
        return rows, tools

    def _dated(self, template: str) -> str:
        """The template with the run's day in place of today's.

        Raises:
          DataError: a template that asks for the day in another way than the published ones.
        """
        if not self.date or "strftime_now" not in template:
            return template
        day = datetime.date.fromisoformat(self.date)
        fixed = re.sub(
            r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: json.dumps(day.strftime(call[2])), template
        )
        if "strftime_now(" in fixed:
            raise DataError(
                "the chat template prints today's date in an unsupported way, so a resumed run would differ; "
                "expected strftime_now with a literal format"
            )
        return fixed

    def _render(self, turns: Sequence[Message], *, generation: bool) -> str:
        rows, tools = self._rows(turns)
        try:
            return self._applied(rows, tools, generation)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"the chat template rejects the roles {[row['role'] for row in rows]}: {reason}"
            ) from None

    def _applied(self, rows: list[dict[str, Any]], tools: list[Any] | None, generation: bool) -> str:
        def apply(rows: list[dict[str, Any]]) -> str:
            return self.tokenizer.apply_chat_template(
                rows,
                tools=tools,
                chat_template=self._dated(self.tokenizer.get_chat_template(None, tools)),
                tokenize=False,
                add_generation_prompt=generation,
                return_dict=False,
            )

        try:
            return apply(rows)
        except TypeError:
            if not any("tool_calls" in row for row in rows):
                raise
            # Some templates join the arguments of a call to text, as the published rows have them.
            return apply([_with_text_arguments(row) for row in rows])


def _check_calls(turn: Message, text: str) -> None:
    for call in turn.extra.get("tool_calls") or ():
        name = _function(call).get("name", "")
        if str(name) not in text:
            raise DataError(f"the chat template drops the tool calls ({name!r})")


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _squeezed(text: str) -> str:
    """Text without white space, which templates add and take away."""
    return "".join(text.split())


def _function(call: Any) -> Mapping[str, Any]:
    """Name and arguments of a call, or of a tool, with or without the wrapping of OpenAI's layout."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    return function if isinstance(function, Mapping) else {}


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object, which templates write as JSON."""
    function = dict(_function(call))
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = arguments
        function["arguments"] = parsed if isinstance(parsed, dict) else arguments
    return {"type": "function", **{k: v for k, v in call.items() if k not in function}, "function": function}


def _with_text_arguments(row: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in row:
        return row
    calls = []
    for call in row["tool_calls"]:
        arguments = call["function"].get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return {**row, "tool_calls": calls}
