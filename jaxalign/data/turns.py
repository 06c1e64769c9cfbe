"""Parses the turns of chats: lists of messages, marked text, tool calls."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.fields import BadRow, Fields, is_empty, kind_name, listed
from jaxalign.data.records import Completion, Message, Turns

ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant", "system": "system",
    "developer": "developer", "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool",
    "function_response": "tool", "ipython": "tool", "function_call": "call", "tool_call": "call",
}  # fmt: skip

# Kept beside a turn's text, for the chat template.
_REASONING = ("reasoning_content", "thinking")
_EXTRA = ("tool_calls", "tool_call_id", "name", *_REASONING)
_KNOWN = frozenset((*_EXTRA, "role", "from", "content", "value", "weight", "train", "loss", "function_call"))

_JSON_OBJECTS = re.compile(r"\s*\[\s*\{")
_PYTHON_TURNS = re.compile(r"\s*\[\s*\{'(?:role|from|content|value)':")
_DEEPEST = 100


def messages(value: Any, name: str, row: Fields | None = None) -> Turns:
    """A list of turns as role/content or from/value; csv files hold it as JSON.

    Args:
      value: the list.
      name: its field.
      row: learns of keys that are left unread.

    Raises:
      BadRow: not a list of turns, an unknown role, no text, or something other than text.
    """
    if isinstance(value, str) and _JSON_OBJECTS.match(value):
        value = from_json(value, name)
    if isinstance(value, Mapping):
        value = [value] if isinstance(value.get("role", value.get("from")), str) else listed(value)
    if not isinstance(value, (list, tuple)) or not value:
        raise BadRow(f"field {name!r}: expected a list of messages, got {kind_name(value)}")
    return tuple([_turn(turn, name, index, row) for index, turn in enumerate(value)])


def turns_in(value: str, name: str = "") -> list[Any] | None:
    """The list of turns that a text is JSON of; None for any other text, JSON of something else too.

    Raises:
      BadRow: turns in Python's way of writing, where the field's name is given; csv files of data frames have them.
    """
    if not _JSON_OBJECTS.match(value):
        return None
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        if name and _PYTHON_TURNS.match(value):
            raise BadRow(f"field {name!r}: expected turns as JSON, got a Python literal") from None
        return None
    return turns if all(isinstance(turn, Mapping) and _looks_like_turn(turn) for turn in turns) else None


def _looks_like_turn(turn: Mapping[str, Any]) -> bool:
    role = turn.get("role") or turn.get("from")
    says = any(key in turn for key in ("content", "value", "tool_calls", "function_call"))
    return says and isinstance(role, str) and role.lower() in ROLES


def _turn(turn: Any, name: str, index: int, row: Fields | None) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"field {name!r}: message {index}: expected role and content, got {kind_name(turn)}")
    role = turn.get("role") or turn.get("from")
    content = turn.get("content")
    if not isinstance(role, str):
        raise BadRow(
            f"field {name!r}: message {index}: expected role and content (or from and value) as text"
        )
    known = ROLES.get(role) or ROLES.get(role.lower())
    if known is None:
        raise BadRow(f"field {name!r}: message {index}: unknown role {role[:40]!r}")
    if len(turn) == 2 and isinstance(content, str) and known != "call":
        return Message(known, content)
    if len(turn) == 2 and content is None and isinstance(turn.get("value"), str) and known != "call":
        return Message(known, turn["value"])
    where = f"field {name!r}: message {index}"
    content = _one_of(turn, "content", "value", where)
    if "role" in turn and "from" in turn:
        _check_roles(turn, known, name, where, row)
    extra = {key: turn[key] for key in _EXTRA if key in turn and not is_empty(turn[key])}
    for key in _REASONING:
        if key in extra and not isinstance(extra[key], str):
            raise BadRow(f"{where}: {key!r}: expected text, got {kind_name(extra[key])}")
    if known == "call":
        known, content, extra["tool_calls"] = "assistant", "", _calls_in(content, where)
    elif not is_empty(turn.get("function_call")):
        extra["tool_calls"] = [_call(turn["function_call"], where)]
    elif "tool_calls" in extra:
        extra["tool_calls"] = _tool_calls(extra["tool_calls"], where)
    if isinstance(content, (list, tuple)):
        content = _joined_parts(content, where)
    if content is None and "tool_calls" in extra:
        content = ""
    if not isinstance(content, str):
        raise BadRow(f"{where}: expected role and content (or from and value) as text")
    if row is not None:
        for key, left in turn.items():
            if key not in _KNOWN and not is_empty(left):
                row.inside[f"{name}.{key}"] = left
    return Message(known, content, _weight(turn, where), extra)


def _one_of(turn: Mapping[str, Any], name: str, other: str, where: str) -> Any:
    """What a turn has under one of two names; under both it must be the same."""
    values = [turn[key] for key in (name, other) if not is_empty(turn.get(key))]
    if len(values) == 2 and values[0] != values[1]:
        raise BadRow(f"{where}: {name!r} and {other!r} differ; expected one of them")
    return values[0] if values else turn.get(name, turn.get(other))


def _check_roles(turn: Mapping[str, Any], known: str, name: str, where: str, row: Fields | None) -> None:
    """A turn with `role` and `from`: the second says the same role, or something that is left."""
    second = turn["from"]
    other = ROLES.get(second.lower()) if isinstance(second, str) else None
    if other is not None and other != known:
        raise BadRow(f"{where}: 'role' and 'from' differ; expected one of them")
    if other is None and row is not None and not is_empty(second):
        row.inside[f"{name}.from"] = second


def _weight(turn: Mapping[str, Any], where: str) -> float:
    """How much a turn counts: `weight`, or `train` or `loss` as yes or no."""
    for key in ("weight", "train", "loss"):
        value = turn.get(key)
        if value is None:
            continue
        if isinstance(value, bool):
            return float(value)
        if key == "weight" and isinstance(value, (int, float)) and 0 <= value < 1e9:
            return float(value)
        expected = "a number of 0 or more" if key == "weight" else "true or false"
        raise BadRow(f"{where}: {key!r}: expected {expected}, got {str(value)[:40]!r}")
    return 1.0


def _joined_parts(parts: Sequence[Any], where: str) -> str:
    """The text of content in parts, as [{type: text, text: ...}]."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        body = part.get("text") if isinstance(part, Mapping) else part
        if kind not in ("text", "input_text", "output_text") or not isinstance(body, str):
            raise BadRow(f"{where}: unsupported part of type {kind!r}: only text is read")
        texts.append(body)
    return "".join(texts)


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    value = from_json(value, where) if isinstance(value, str) else listed(value)
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{where}: tool_calls: expected a list, got {kind_name(value)}")
    return [_call(call, where) for call in value]


def _calls_in(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls that a turn of their own holds as JSON: one, or a list of them."""
    calls = from_json(value, where) if isinstance(value, str) else value
    return [_call(call, where) for call in (calls if isinstance(calls, list) else [calls])]


def _call(value: Any, where: str) -> dict[str, Any]:
    """A call in the shape that chat templates take: its arguments are an object, not JSON text."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: a tool call: expected an object with name and arguments")
    arguments = function.get("arguments", function.get("parameters", {}))
    named = f"{where}: arguments of the tool {function['name'][:40]!r}"
    if isinstance(arguments, str):
        arguments = _parsed(arguments, named, "not valid JSON")
    check_value(arguments, named)
    arguments = {} if is_empty(arguments) else arguments
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if value is not function and not is_empty(value.get("id")):
        call = {"id": value["id"], **call}
    return call


def from_json(value: str, where: str) -> Any:
    """JSON inside a field.

    Raises:
      BadRow: it is invalid, nested too deeply, or holds an unpaired surrogate.
    """
    name = where if where.startswith("field ") else f"field {where!r}"
    return _parsed(value, name, f"expected JSON, got {value[:40]!r}")


def _parsed(value: str, where: str, otherwise: str) -> Any:
    try:
        parsed = json.loads(value)
        if "\\ud" in value or "\\uD" in value:  # only an escape can be an unpaired surrogate
            json.dumps(parsed, ensure_ascii=False).encode()
    except RecursionError:
        raise BadRow(f"{where}: nested too deeply") from None
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise BadRow(f"{where}: not valid text (\\u{half:04x} is an unpaired surrogate)") from None
    except ValueError:
        raise BadRow(f"{where}: {otherwise}") from None
    return parsed


def check_value(value: Any, where: str, depth: int = 0) -> None:
    """Raises BadRow where a value that a template writes as JSON has no such form: NaN, say, or too many levels."""
    if isinstance(value, (Mapping, list, tuple)):
        if depth == _DEEPEST:
            raise BadRow(f"{where}: nested too deeply (more than {_DEEPEST} levels)")
        for part in value.values() if isinstance(value, Mapping) else value:
            check_value(part, where, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"{where}: expected a finite number, got {value}")


def transcript_turns(value: str, human: str, assistant: str) -> Turns:
    """Turns of a marked text; nothing where other text stands before its first marker."""
    first = human.lstrip()
    if value.startswith(first) and first != human:
        value = human + value[len(first) :]  # the first marker often stands without its blank lines
    parts = re.split(f"({re.escape(human)}|{re.escape(assistant)})", value)
    if parts[0].strip():
        return ()
    return tuple(
        Message("user" if marker == human else "assistant", body.strip())
        for marker, body in zip(parts[1::2], parts[2::2], strict=True)
    )


def transcript(value: str, human: str, assistant: str, name: str) -> Turns:
    """Turns of an HH-RLHF transcript.

    Raises:
      BadRow: it does not begin with a marker.
    """
    turns = transcript_turns(value, human, assistant)
    if not turns:
        raise BadRow(f"field {name!r}: expected turns marked by {human!r} and {assistant!r}")
    return turns


_EXTRA_ID = re.compile(r"<extra_id_[01]>(System|User|Assistant)\n")


def extra_id_turns(value: str) -> Turns:
    """Turns of a text marked by `<extra_id_1>User` and the like; what stands before the first mark is the user's."""
    parts = _EXTRA_ID.split(value)
    roles = ["user", *(role.lower() for role in parts[1::2])]
    bodies = [body.removesuffix("<extra_id_1>").strip() for body in (parts[0], *parts[2::2])]
    return tuple(
        Message(role, body) for role, body in zip(roles, bodies, strict=True) if body
    )  # the last mark opens the answer


_GLAIVE = re.compile(r"^(?:USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_GLAIVE_ROLES = {"USER:": "user", "ASSISTANT:": "assistant", "FUNCTION RESPONSE:": "tool"}


def glaive_turns(value: str, name: str) -> Turns:
    """Turns of a Glaive chat, with its calls of functions.

    Raises:
      BadRow: it does not begin with a marker, or a call that cannot be read.
    """
    marks = list(_GLAIVE.finditer(value))
    if not marks or value[: marks[0].start()].strip():
        raise BadRow(f"field {name!r}: expected turns marked by 'USER:' and 'ASSISTANT:'")
    ends = [mark.start() for mark in marks[1:]] + [len(value)]
    turns = []
    for mark, end in zip(marks, ends, strict=True):
        body = value[mark.end() : end].replace("<|endoftext|>", "").strip()
        said, call, rest = body.partition("<functioncall>")
        if not call:
            turns.append(Message(_GLAIVE_ROLES[mark.group()], body))
            continue
        # Glaive writes the arguments as JSON in single quotes, which JSON itself does not know.
        plain = re.sub(r"'(\{.*\})'", lambda match: json.dumps(match.group(1)), rest.strip(), flags=re.DOTALL)
        calls = _calls_in(plain, f"field {name!r}: message {len(turns)}")
        turns.append(Message("assistant", said.strip(), extra={"tool_calls": calls}))
    return tuple(turns)


def pairs_of_turns(value: Any, name: str) -> Turns:
    """Turns of a history of [question, answer] pairs, or of {input, output} objects.

    Raises:
      BadRow: another shape.
    """
    turns: list[Message] = []
    for pair in listed(value) if isinstance(value, (list, tuple, Mapping)) else [None]:
        both = (pair.get("input"), pair.get("output")) if isinstance(pair, Mapping) else pair
        if not isinstance(both, (list, tuple)) or len(both) != 2 or not all(isinstance(p, str) for p in both):
            raise BadRow(f"field {name!r}: expected a list of (instruction, answer) pairs")
        turns += [Message("user", str(both[0])), Message("assistant", str(both[1]))]
    return tuple(turns)


def alternate(questions: Any, answers: Any, name: str) -> Turns:
    """Turns of a list of questions and one of answers."""
    for value in (questions, answers):
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise BadRow(f"field {name!r}: expected a list of texts, one for each turn")
    if len(questions) != len(answers):
        raise BadRow(
            f"field {name!r}: expected {len(questions)} texts, one for each turn, got {len(answers)}"
        )
    return pairs_of_turns(list(zip(questions, answers, strict=True)), name)


def split_answer(turns: Turns, name: str) -> tuple[Turns, Completion]:
    """(turns before the last, the last), which must be the assistant's."""
    check_answered(turns, name)
    return turns[:-1], completion_of(turns[-1:])


def check_answered(turns: Turns, name: str) -> None:
    """Raises BadRow where the last turn is not the assistant's."""
    if turns[-1].role != "assistant":
        raise BadRow(
            f"field {name!r}: expected the last message to be the assistant's, got the {turns[-1].role}'s"
        )


def completion_of(turns: Turns) -> Completion:
    """An answer: the text of a lone plain turn that counts as any other, else the turns."""
    plain = len(turns) == 1 and not turns[0].extra and turns[0].weight == 1.0
    return turns[0].content if plain else turns
