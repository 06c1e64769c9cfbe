"""Builds the prompt from all the columns that hold a part of it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.fields import BadRow, Fields, is_empty, kind_name, listed, text
from jaxalign.data.layouts import Options
from jaxalign.data.records import Demonstration, Message, Prompt, Record, Text, Turns
from jaxalign.data.turns import (
    check_value,
    extra_id_turns,
    from_json,
    messages,
    pairs_of_turns,
    transcript_turns,
    turns_in,
)

SYSTEM = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
SHARED = frozenset((*SYSTEM, *TOOLS, "history"))
"""Columns that come before the prompt of any format."""

_BEFORE = ("context", "contexts", "passage", "document", "article", "paragraph")
_AFTER = ("input", "context")
_OPTIONS = ("options", "choices")


def prompt_in(row: Fields, name: str) -> Prompt:
    """The prompt that a field holds, with the columns that belong to it.

    After an instruction comes its input or context; before a question comes its context or passage, after it the
    options to choose from. A prompt stands as it is, as text or as turns, which csv files hold as JSON.

    Raises:
      BadRow: neither text nor turns.
    """
    value = row[name]
    if not isinstance(value, str) or turns_in(value, name):
        return messages(value, name, row)
    if name == "prompt":
        return extra_id_turns(value) if "<extra_id_1>" in value else value
    if name == "instruction":
        return "\n\n".join([value, *_texts(row, _AFTER)])
    if name in ("question", "query", "problem"):
        parts = [*_texts(row, _BEFORE), value, *_option_lines(row)]
        return "\n\n".join(parts) if len(parts) > 1 else value
    return value


def _texts(row: Fields, names: tuple[str, ...]) -> list[str]:
    texts = []
    for name in names:
        if name not in row or name in row.seen:
            continue
        value = row[name]
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        parts = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(part, str) for part in parts):
            raise BadRow(f"field {name!r}: expected text, got {kind_name(value)}")
        texts += parts
    return texts


def _option_lines(row: Fields) -> list[str]:
    options = options_of(row)
    return ["\n".join(f"{letter}. {option}" for letter, option in options.items())] if options else []


def options_of(row: Fields) -> dict[str, str]:
    """Options to choose from by their letters; none where the row has none.

    Raises:
      BadRow: neither a list of texts nor letters with texts.
    """
    name = next((n for n in _OPTIONS if n in row), "")
    value = row[name] if name else None
    if is_empty(value):
        return {}
    if isinstance(value, Mapping) and {"text", "label"} <= value.keys():
        pairs = listed({key: value[key] for key in ("label", "text")})
        value = {str(o["label"]): o["text"] for o in pairs} if isinstance(pairs, list) else None
    elif isinstance(value, list) and all(isinstance(o, Mapping) for o in value):
        value = {str(o.get("key", o.get("label"))): o.get("value", o.get("text")) for o in value}
    elif isinstance(value, list):
        value = {chr(ord("A") + i): option for i, option in enumerate(value)}
    if not isinstance(value, Mapping) or not all(isinstance(t, str) for kv in value.items() for t in kv):
        raise BadRow(f"field {name!r}: expected a list of texts, or letters with texts")
    return dict(value)


def add_shared(record: Record, row: Fields, human: str, assistant: str) -> None:
    """Puts before a new record's prompt what the shared columns say: tools, system prompt, history.

    Raises:
      BadRow: a column of another shape, or two system prompts that differ.
    """
    if isinstance(record, Text):
        return
    names = [n for n in row.row if n in SHARED and n not in row.seen]
    before = functions(row, names)
    systems = {text(row, n) for n in names if n in SYSTEM and not _blank(row[n])}
    turns = _turns(record.prompt, human, assistant)
    if systems:
        given = {m.content for m in turns[:1] if m.role == "system"}
        if len(systems | given) > 1:
            raise BadRow("two different system prompts; name the one to ignore in data.ignore_columns")
        before += [] if given else [Message("system", systems.pop())]
    history: Turns = ()
    if "history" in names and not isinstance(row.peek("history"), str) and not is_empty(row["history"]):
        history = _history(row["history"], row)
    if not before and not history:
        return
    opening = 1 if turns and turns[0].role == "system" and history else 0
    whole = (*turns[:opening], *history, *turns[opening:])
    if (
        history
        and isinstance(record, Demonstration)
        and isinstance(record.completion, str)
        and record.completion.strip()
    ):
        # As turns of one chat: the answers of the history count as well.
        whole = (*whole, Message("assistant", record.completion))
        vars(record)["completion"] = None
    vars(record)["prompt"] = (*before, *whole)


def functions(row: Fields, names: Sequence[str]) -> list[Message]:
    """The pseudo turn that lists the functions of the first of some columns that has any.

    Raises:
      BadRow: no list of functions.
    """
    for name in names:
        if name not in TOOLS or _blank(row[name]):
            continue
        value = row[name]
        tools = from_json(value, name) if isinstance(value, str) else listed(value)
        tools = [tools] if isinstance(tools, Mapping) else tools
        if not isinstance(tools, list) or not all(isinstance(f, Mapping) for f in tools):
            raise BadRow(f"field {name!r}: expected a list of functions, or JSON of one")
        check_value(tools, f"field {name!r}")
        if name == "functions":
            tools = [f if "function" in f else {"type": "function", "function": f} for f in tools]
        if tools:
            return [Message("tools", json.dumps(tools, ensure_ascii=False))]
    return []


def _history(value: Any, row: Fields) -> Turns:
    if (
        isinstance(value, list)
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "from" in value[0])
    ):
        return messages(value, "history", row)
    return pairs_of_turns(value, "history")


def _turns(prompt: Prompt, human: str, assistant: str) -> Turns:
    """A prompt as turns; a marked transcript that asks for an answer is taken apart."""
    if isinstance(prompt, tuple):
        return prompt
    if prompt.lstrip().startswith(human.strip()) and prompt.rstrip().endswith(assistant.strip()):
        turns = transcript_turns(prompt, human, assistant)
        if turns and turns[-1] == Message("assistant", ""):
            return turns[:-1]
    return as_turns(prompt)


def _blank(value: Any) -> bool:
    return is_empty(value) or (isinstance(value, str) and not value.strip())


_OPENING = ("system", "developer", "tools")
# What is left of a prompt as text once its turns are taken out: the marks between them.
_MARKS = re.compile(
    r"(?:human|user|assistant|system|model|question|answer|instruction|response|input|inst|sys|bos|eos|im_start|im_end"
    r"|begin_of_text|endoftext|start_header_id|end_header_id|eot_id|start_of_turn|end_of_turn|s(?=>)|\W)*",
    re.IGNORECASE,
)


def joined(prompt: Prompt, before: Turns, name: str, answer: str, options: Options) -> Turns:
    """A prompt with the turns that stand before an answer, which may repeat it or a part of it.

    Args:
      prompt: what the row asks; empty where only the turns say it.
      before: the turns.
      name, answer: the fields of both.
      options: markers of transcripts.

    Raises:
      BadRow: the two ask different things, or there is neither.
    """
    if not prompt and not before:
        raise BadRow(f"field {answer!r}: expected the user's turn before the answer, or a field 'prompt'")
    if not prompt or (isinstance(prompt, str) and _asks(before) and _repeats(prompt, before, options)):
        return before
    turns = as_turns(prompt)
    if place_of(turns, before) >= 0:
        return before
    if all(turn.role in _OPENING for turn in before) and place_of(before, turns) >= 0:
        return turns
    for size in range(min(len(turns), len(before)), 0, -1):
        if all(map(_same, turns[-size:], before)):
            return (*turns[:-size], *before)
    if (_asks(turns) and _asks(before)) or (_opens(turns) and _opens(before)):
        raise BadRow(
            f"field {name!r}: expected the prompt that the turns of {answer!r} repeat, got a different one"
        )
    opening = _opens(before)
    return (*before[:opening], *turns, *before[opening:])


def answered_by(
    prompt: Prompt, turns: Turns, name: str, answer: str, options: Options
) -> tuple[Prompt, Turns]:
    """(the prompt, the answer's turns), where an answer given as turns may repeat the prompt.

    Raises:
      BadRow: it begins with another prompt.
    """
    lead = next((i for i, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
    if not lead:
        return prompt, turns
    asks = as_turns(prompt)
    place = place_of(asks, turns[:-1]) if asks else -1
    if place >= 0:
        end = place + len(asks)
        lead = next((i for i in range(end, len(turns)) if turns[i].role == "assistant"), len(turns))
        return turns[:lead], turns[lead:]
    return joined(prompt, turns[:lead], name, answer, options), turns[lead:]


def as_turns(prompt: Prompt) -> Turns:
    """A prompt as turns: text is the user's."""
    if isinstance(prompt, tuple):
        return prompt
    return (Message("user", prompt),) if prompt else ()


def place_of(part: Turns, whole: Turns) -> int:
    """Where some turns last stand in others, told by role and text; -1 where they do not."""
    places = range(len(whole) - len(part), -1, -1)
    return next((i for i in places if all(map(_same, part, whole[i : i + len(part)]))), -1)


def _same(one: Message, other: Message) -> bool:
    calls = one.extra.get("tool_calls"), other.extra.get("tool_calls")
    return one.role == other.role and one.content.strip() == other.content.strip() and calls[0] == calls[1]


def _asks(turns: Turns) -> bool:
    return any(turn.role == "user" for turn in turns)


def _opens(turns: Turns) -> int:
    """How many turns stand before the dialogue itself."""
    return next((i for i, turn in enumerate(turns) if turn.role not in _OPENING), len(turns))


def _repeats(prompt: str, before: Turns, options: Options) -> bool:
    """Whether turns say a prompt that is text, which may lack their spaces or mark each of them."""
    plain = _plain(prompt)
    said = [_plain(turn.content) for turn in before]
    if any(plain in words for words, turn in zip(said, before, strict=True) if turn.role == "user"):
        return True
    marked = transcript_turns(prompt, options.human, options.assistant)
    if marked and "".join(_plain(turn.content) for turn in marked) == "".join(said):
        return True
    rest = plain
    for words in sorted(said, key=len, reverse=True):
        rest = rest.replace(words, " ", 1) if words else rest
    return rest != plain and _MARKS.fullmatch(rest) is not None


def _plain(value: str) -> str:
    """Text without its spaces: files that repeat a prompt often trim it."""
    return re.sub(r"\s+", "", value)
