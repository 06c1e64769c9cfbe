"""The layouts that preference and demonstration files come in, as a table.

Each format says which fields mark it and how a row becomes a record. Detection takes
the first format whose fields are all there.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.data.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    PromptRecord,
    Ranking,
    Rating,
    Record,
    Stepwise,
)

Row = Mapping[str, Any]
ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "function": "tool", "observation": "tool",
}  # fmt: skip


class BadRow(ValueError):
    """A row that does not fit its format; the message says what was expected."""


class Unusable(Exception):
    """A whole row that says nothing for training (a tie, say); the message is the counted reason."""


@dataclass(frozen=True)
class Options:
    """What readers may be told.

    Attributes:
      dimension: PKU-SafeRLHF: `better` (helpfulness) or `safer`.
      human, assistant: turn markers of transcripts.
      decode: token ids -> text, for files of token ids; None where there is no tokenizer.
    """

    dimension: str = "better"
    human: str = "\n\nHuman:"
    assistant: str = "\n\nAssistant:"
    decode: Callable[[Sequence[int]], str] | None = None


@dataclass(frozen=True)
class Format:
    """One layout.

    Attributes:
      fields: fields that must be there for it to be detected.
      read: row -> record.
      test: a further test for detection.
    """

    fields: tuple[str, ...]
    read: Callable[[Row, Options], Record]
    test: Callable[[Row], bool] = lambda row: True


def text(row: Row, name: str) -> str:
    """A field that must be text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRow(f"field {name!r}: expected text, got {_kind(value)}")
    return value


def number(value: Any, name: str) -> float:
    """A field that must be a number; csv files hold it as text."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float, str)):
            return float(value)
    except ValueError:
        pass
    raise BadRow(
        f"field {name!r}: expected a number, got {value if isinstance(value, str) else _kind(value)!r}"
    )


def index_below(value: Any, name: str, size: int) -> int:
    """A field that must be an index below `size`; csv files hold it as text."""
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
        raise BadRow(f"field {name!r}: expected an index in 0..{size - 1}, got {value!r}")
    return value


def messages(value: Any, name: str) -> tuple[Message, ...]:
    """A list of turns as role/content or from/value.

    Raises:
      BadRow: not a list of turns, or an unknown role.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise BadRow(f"field {name!r}: expected a list of messages, got {_kind(value)}")
    turns = []
    for index, turn in enumerate(value):
        if not isinstance(turn, Mapping):
            raise BadRow(f"field {name!r}: message {index}: expected role and content, got {_kind(turn)}")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadRow(
                f"field {name!r}: message {index}: expected role and content (or from and value) as text"
            )
        if role.lower() not in ROLES:
            raise BadRow(f"field {name!r}: message {index}: unknown role {role!r}")
        turns.append(Message(ROLES[role.lower()], content))
    return tuple(turns)


def transcript_turns(value: str, human: str, assistant: str) -> tuple[Message, ...]:
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


def transcript(value: str, options: Options, name: str) -> tuple[Message, ...]:
    """Turns of an HH-RLHF transcript.

    Raises:
      BadRow: it does not begin with a marker.
    """
    turns = transcript_turns(value, options.human, options.assistant)
    if not turns:
        raise BadRow(f"field {name!r}: expected turns marked by {options.human!r} and {options.assistant!r}")
    return turns


def split_answer(turns: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """(turns before the last, text of the last), which must be the assistant's."""
    if turns[-1].role != "assistant":
        raise BadRow(
            f"field {name!r}: expected the last message to be the assistant's, it is the {turns[-1].role}'s"
        )
    return turns[:-1], turns[-1].content


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _others(row: Row, *used: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in used}


def _pair(prompt: Prompt, chosen: str, rejected: str, columns: Mapping[str, Any]) -> Comparison:
    margin = number(columns.get("margin") or 0.0, "margin")
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    return Comparison(prompt, chosen, rejected, margin, columns=columns)


def _hh(row: Row, options: Options) -> Record:
    chosen = transcript(text(row, "chosen"), options, "chosen")
    rejected = transcript(text(row, "rejected"), options, "rejected")
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common == len(chosen) == len(rejected):
        raise Unusable("chosen equals rejected")
    if common != len(chosen) - 1 or common != len(rejected) - 1:
        raise Unusable("dialogues part before the last turn")
    prompt, answer = split_answer(chosen, "chosen")
    _, other = split_answer(rejected, "rejected")
    return _pair(prompt, answer, other, _others(row, "chosen", "rejected"))


def _pku(row: Row, options: Options) -> Record:
    name = {"better": "better_response_id", "safer": "safer_response_id"}.get(options.dimension)
    if name is None:
        raise BadRow(f"data.dimension: expected better or safer, got {options.dimension!r}")
    best = index_below(row.get(name), name, 2)
    answers = (text(row, "response_0"), text(row, "response_1"))
    columns = _others(row, "prompt", "response_0", "response_1")
    return _pair(text(row, "prompt"), answers[best], answers[1 - best], columns)


def _preference(row: Row, options: Options) -> Record:
    del options
    columns = _others(row, "prompt", "chosen", "rejected")
    if isinstance(row["chosen"], str):
        prompt = row["prompt"]
        prompt = prompt if isinstance(prompt, str) else messages(prompt, "prompt")
        return _pair(prompt, text(row, "chosen"), text(row, "rejected"), columns)
    before, chosen = split_answer(messages(row["chosen"], "chosen"), "chosen")
    other, rejected = split_answer(messages(row["rejected"], "rejected"), "rejected")
    if before != other:
        raise Unusable("dialogues part before the last turn")
    if not before:
        given = row["prompt"]
        if not given:
            raise BadRow("field 'chosen': expected the user's turn before the answer, or a field 'prompt'")
        before = (Message("user", given),) if isinstance(given, str) else messages(given, "prompt")
    return _pair(before, chosen, rejected, columns)


def _preference_chat(row: Row, options: Options) -> Record:
    return _preference({**row, "prompt": ""}, options)


def _sharegpt_pair(row: Row, options: Options) -> Record:
    del options
    prompt = messages(row["conversations"], "conversations")
    answers = []
    for name in ("chosen", "rejected"):
        turn = row[name]
        _, answer = split_answer(messages([turn] if isinstance(turn, Mapping) else turn, name), name)
        answers.append(answer)
    return _pair(prompt, answers[0], answers[1], _others(row, "conversations", "chosen", "rejected"))


def _instruction_pair(row: Row, options: Options) -> Record:
    del options
    columns = _others(row, "instruction", "input", "chosen", "rejected")
    return _pair(_instruction(row), text(row, "chosen"), text(row, "rejected"), columns)


def _annotated_pair(row: Row, options: Options) -> Record:
    del options
    votes = [row[name] for name in sorted(row) if re.fullmatch(r"annotator\d+", name)]
    if any(v not in (0, 1, 2) for v in votes):
        raise BadRow(f"fields annotator1..: expected 0 (tie), 1 or 2, got {votes}")
    first, second = votes.count(1), votes.count(2)
    if first == second:
        raise Unusable("tie")
    answers = (text(row, "response1"), text(row, "response2"))
    best = 0 if first > second else 1
    columns = _others(row, "instruction", "input", "response1", "response2")
    return _pair(_instruction(row), answers[best], answers[1 - best], columns)


def _best_of_n(row: Row, options: Options) -> Record:
    names = sorted((n for n in row if re.fullmatch(r"sample\d+", n)), key=lambda n: int(n[6:]))

    def decoded(name: str) -> str:
        value = row[name]
        if isinstance(value, str):
            return value
        if isinstance(value, list) and all(isinstance(v, int) for v in value):
            if options.decode is None:
                raise BadRow(f"field {name!r} holds token ids: set data.label_tokenizer to their tokenizer")
            return options.decode(value)
        raise BadRow(f"field {name!r}: expected text or a list of token ids, got {_kind(value)}")

    best = index_below(row["best"], "best", len(names))
    columns = _others(row, "query", "best", *names)
    return Ranking(decoded("query"), tuple(decoded(n) for n in names), best, columns=columns)


def _scored(row: Row, options: Options) -> Record:
    del options
    prompt, answer = split_answer(messages(row["conversation"], "conversation"), "conversation")
    reason = row.get("score_reason") or ""
    score = number(row["meta_eval_score"], "meta_eval_score")
    return Rating(prompt, answer, score, None, str(reason), columns=_others(row, "conversation"))


def _kto_chat(row: Row, options: Options) -> Record:
    del options
    name = "messages" if "messages" in row else "conversations"
    prompt, answer = split_answer(messages(row[name], name), name)
    return Rating(prompt, answer, None, _label(row, "label"), columns=_others(row, name))


def _kto(row: Row, options: Options) -> Record:
    del options
    return Rating(
        text(row, "prompt"),
        text(row, "completion"),
        None,
        _label(row, "label"),
        columns=_others(row, "prompt", "completion"),
    )


def _stepwise(row: Row, options: Options) -> Record:
    del options
    steps, labels = row["completions"], row["labels"]
    for name, value in (("completions", steps), ("labels", labels)):
        if not isinstance(value, (list, tuple)):
            raise BadRow(f"field {name!r}: expected a list, one for each step, got {_kind(value)}")
    if not steps:
        raise BadRow("field 'completions': expected at least one step, got an empty list")
    if len(steps) != len(labels):
        raise BadRow(f"field 'labels': expected one for each of the {len(steps)} steps, got {len(labels)}")
    for number, (step, label) in enumerate(zip(steps, labels, strict=True), 1):
        if not isinstance(step, str):
            raise BadRow(f"field 'completions': step {number}: expected text, got {_kind(step)}")
        if not isinstance(label, (bool, int, float)) or not 0 <= label <= 1:
            raise BadRow(
                f"field 'labels': step {number}: expected true, false or a number in [0, 1], got {label!r}"
            )
    prompt = row["prompt"]
    return Stepwise(
        prompt if isinstance(prompt, str) else messages(prompt, "prompt"),
        tuple(steps),
        tuple(map(float, labels)),
        columns=_others(row, "prompt", "completions", "labels"),
    )


def _truthful(row: Row, options: Options) -> Record:
    del options
    columns = _others(row, "question", "answer", "truthful")
    return Rating(text(row, "question"), text(row, "answer"), None, _label(row, "truthful"), columns=columns)


def _label(row: Row, name: str) -> bool:
    value = row[name]
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value not in (True, False):
        raise BadRow(f"field {name!r}: expected true or false, got {value!r}")
    return bool(value)


def _chat(row: Row, options: Options) -> Record:
    del options
    name = next(n for n in ("messages", "conversations", "conversation") if n in row)
    turns = messages(row[name], name)
    if not any(t.role == "assistant" for t in turns):
        raise Unusable("no assistant turn")
    return Demonstration(turns, None, columns=_others(row, name))


def _instruction(row: Row) -> str:
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise BadRow(f"field 'input': expected text, got {_kind(given)}")
    return text(row, "instruction") + (f"\n\n{given}" if given.strip() else "")


def _alpaca(row: Row, options: Options) -> Record:
    del options
    history = row.get("history") or []
    if not isinstance(history, list) or any(not isinstance(p, (list, tuple)) or len(p) != 2 for p in history):
        raise BadRow("field 'history': expected a list of (instruction, answer) pairs")
    turns = [
        Message(role, str(body))
        for pair in history
        for role, body in zip(("user", "assistant"), pair, strict=True)
    ]
    prompt: Prompt = _instruction(row)
    if turns:
        prompt = (*turns, Message("user", prompt))
    return Demonstration(prompt, text(row, "output"), columns=_others(row, "instruction", "input", "output"))


def _instruction_response(row: Row, options: Options) -> Record:
    del options
    return Demonstration(
        _instruction(row), text(row, "response"), columns=_others(row, "instruction", "input", "response")
    )


def _seed_task(row: Row, options: Options) -> Record:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise BadRow("field 'instances': expected a list with at least one instance")
    if not isinstance(instances[0], Mapping):
        raise BadRow("field 'instances': expected objects with input and output")
    return _alpaca({**instances[0], "instruction": row["instruction"]}, options)


def _completion(prompt: str, completion: str) -> Callable[[Row, Options], Record]:
    def read(row: Row, options: Options) -> Record:
        del options
        columns = _others(row, prompt, completion)
        asked = row[prompt] if isinstance(row[prompt], str) else messages(row[prompt], prompt)
        if not isinstance(row[completion], list):
            return Demonstration(asked, text(row, completion), columns=columns)
        turns = (Message("user", asked),) if isinstance(asked, str) else asked
        return Demonstration((*turns, *messages(row[completion], completion)), None, columns=columns)

    return read


def _text(row: Row, options: Options) -> Record:
    del options
    return Demonstration("", text(row, "text"), columns=_others(row, "text"))


def _prompt(row: Row, options: Options) -> Record:
    del options
    value = row["prompt"]
    prompt = value if isinstance(value, str) else messages(value, "prompt")
    return PromptRecord(prompt, columns=_others(row, "prompt"))


def _marked(row: Row) -> bool:
    return isinstance(row["chosen"], str) and "Human:" in row["chosen"] and "Assistant:" in row["chosen"]


FORMATS: dict[str, Format] = {
    "pku_saferlhf": Format(("prompt", "response_0", "response_1"), _pku),
    "sharegpt_pair": Format(("conversations", "chosen", "rejected"), _sharegpt_pair),
    "instruction_pair": Format(("instruction", "chosen", "rejected"), _instruction_pair),
    "annotated_pair": Format(("instruction", "response1", "response2", "annotator1"), _annotated_pair),
    "preference": Format(("prompt", "chosen", "rejected"), _preference),
    "preference_chat": Format(
        ("chosen", "rejected"), _preference_chat, lambda row: isinstance(row["chosen"], list)
    ),
    "hh_rlhf": Format(("chosen", "rejected"), _hh, _marked),
    "best_of_n": Format(("query", "sample0", "sample1", "best"), _best_of_n),
    "scored_conversation": Format(("conversation", "meta_eval_score"), _scored),
    "stepwise": Format(("prompt", "completions", "labels"), _stepwise),
    "kto_chat": Format(("messages", "label"), _kto_chat),
    "kto": Format(("prompt", "completion", "label"), _kto),
    "messages": Format(("messages",), _chat),
    "conversations": Format(("conversations",), _chat),
    "self_instruct": Format(("instruction", "instances"), _seed_task),
    "alpaca": Format(("instruction", "output"), _alpaca),
    "instruction_response": Format(("instruction", "response"), _instruction_response),
    "prompt_completion": Format(("prompt", "completion"), _completion("prompt", "completion")),
    "prompt_response": Format(("prompt", "response"), _completion("prompt", "response")),
    "truthfulqa_labels": Format(("question", "answer", "truthful"), _truthful),
    "question_answer": Format(("question", "answer"), _completion("question", "answer")),
    "text": Format(("text",), _text),
    "prompt": Format(("prompt",), _prompt),
}


def detect(row: Row) -> str | None:
    """The first format whose fields the row has, or None."""
    for name, form in FORMATS.items():
        if all(field in row for field in form.fields) and form.test(row):
            return name
    return None
