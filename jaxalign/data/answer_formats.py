"""Layouts of demonstrations: a prompt with its completion, whole chats, and either with a label of whether it is
good."""

from collections.abc import Mapping
from typing import Any

from jaxalign.data.asking import answered_by, as_turns, options_of, prompt_in
from jaxalign.data.fields import (
    BadRow,
    Fields,
    Unusable,
    first_of,
    index_below,
    is_label,
    kind_name,
    label,
    text,
)
from jaxalign.data.layouts import Format, Options, Read
from jaxalign.data.records import (
    Demonstration,
    Message,
    Prompt,
    PromptRecord,
    Rating,
    Record,
    Text,
    Turns,
)
from jaxalign.data.turns import (
    check_answered,
    completion_of,
    glaive_turns,
    messages,
    pairs_of_turns,
    split_answer,
    turns_in,
)

_PAIRS = {
    "alpaca": ("instruction", "output"),
    "instruction_response": ("instruction", "response"),
    "instruction_completion": ("instruction", "completion"),
    "instruction_answer": ("instruction", "answer"),
    "prompt_completion": ("prompt", "completion"),
    "prompt_response": ("prompt", "response"),
    "prompt_output": ("prompt", "output"),
    "question_answer": ("question", "answer"),
    "question_response": ("question", "response"),
    "query_response": ("query", "response"),
    "query_answer": ("query", "answer"),
    "problem_solution": ("problem", "solution"),
    "input_output": ("input", "output"),
}


def _answered(ask: str, answer: str) -> Read:
    """Reads a prompt and its answer, each as text or as turns."""

    def read(row: Fields, options: Options) -> Record:
        prompt, value = prompt_in(row, ask), row[answer]
        if isinstance(value, str) and not turns_in(value, answer):
            return Demonstration(prompt, value)
        if not isinstance(value, (list, tuple, str)):
            raise BadRow(f"field {answer!r}: expected text, got {kind_name(value)}")
        prompt, turns = answered_by(prompt, messages(value, answer, row), ask, answer, options)
        return Demonstration((*_given(prompt), *turns), None)

    return read


def _given(prompt: Prompt) -> Turns:
    """A prompt's turns, whose own answers are not to be learned."""
    turns = as_turns(prompt)
    return tuple(Message(m.role, m.content, 0.0, m.extra) if m.role == "assistant" else m for m in turns)


def _labelled(ask: str, answer: str) -> Read:
    """Reads a prompt, its answer and whether that is good."""

    def read(row: Fields, options: Options) -> Record:
        prompt, value = prompt_in(row, ask), row[answer]
        good = label(row, first_of(row, "label", "kto_tag"))
        if not isinstance(value, list) and not (isinstance(value, str) and turns_in(value, answer)):
            return Rating(prompt, text(row, answer), None, good)
        turns = messages(value, answer, row)
        check_answered(turns, answer)
        prompt, turns = answered_by(prompt, turns, ask, answer, options)
        return Rating(prompt, completion_of(turns), None, good)

    return read


def _labelled_chat(row: Fields, options: Options) -> Record:
    del options
    name = first_of(row, "messages", "conversations")
    prompt, answer = split_answer(messages(row[name], name, row), name)
    return Rating(prompt, answer, None, label(row, first_of(row, "label", "kto_tag")))


def _truthful(row: Fields, options: Options) -> Record:
    del options
    return Rating(prompt_in(row, "question"), text(row, "answer"), None, label(row, "truthful"))


def _chat(name: str) -> Read:
    """Reads a whole chat."""

    def read(row: Fields, options: Options) -> Record:
        del options
        turns = messages(row[name], name, row)
        asks = row.peek("prompt")
        if isinstance(asks, str) and any(turn.content.strip() == asks.strip() for turn in turns):
            row.seen.add("prompt")  # files of chats often repeat the first question
        trained = row.get("mask")
        if trained is not None and str(trained).lower() not in ("user", "human"):
            raise BadRow(
                f"field 'mask': expected 'User' (only the assistant's turns are trained), got {str(trained)[:40]!r}"
            )
        if not any(turn.role == "assistant" for turn in turns):
            raise Unusable("no assistant turn")
        return Demonstration(turns, None)

    return read


def _pairs(row: Fields, options: Options) -> Record:
    del options
    return Demonstration(pairs_of_turns(row["conversation"], "conversation"), None)


def _glaive(row: Fields, options: Options) -> Record:
    del options
    system = text(row, "system") if row["system"] is not None else ""
    system = system.strip().removeprefix("SYSTEM:").strip()
    turns = glaive_turns(text(row, "chat"), "chat")
    return Demonstration((*([Message("system", system)] if system else ()), *turns), None)


def _openorca(row: Fields, options: Options) -> Record:
    del options
    return Demonstration(prompt_in(row, "question"), text(row, "response"))


def _squad(row: Fields, options: Options) -> Record:
    del options
    answers = row["answers"]
    texts = answers.get("text") if isinstance(answers, Mapping) else answers
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise BadRow("field 'answers': expected an object whose text is a list of texts")
    question = prompt_in(row, "question")
    if not texts:
        raise Unusable("no answer")
    return Demonstration(question, texts[0])


def _multiple_choice(row: Fields, options: Options) -> Record:
    del options
    question, options_there = prompt_in(row, "question"), options_of(row)
    letters, texts = list(options_there), list(options_there.values())
    row.get("answer_idx")
    name = first_of(row, "answer", "answerKey")
    answer = row[name]
    if name == "answerKey":
        if answer not in letters:
            raise BadRow(f"field 'answerKey': expected one of {', '.join(letters)}, got {str(answer)[:40]!r}")
        answer = texts[letters.index(answer)]
    if not isinstance(answer, str):
        if not texts:
            raise BadRow(f"field {name!r}: expected text, as the row has no options to choose from")
        answer = texts[index_below(answer, name, len(texts))]
    return Demonstration(question, answer)


def _tldr(row: Fields, options: Options) -> Record:
    del options
    return Demonstration(text(row, "prompt"), text(row, "label").strip())


def _seed_task(row: Fields, options: Options) -> Record:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise BadRow("field 'instances': expected a list with at least one instance")
    if not isinstance(instances[0], Mapping) or "output" not in instances[0]:
        raise BadRow("field 'instances': expected objects with input and output")
    if len(instances) > 1:
        row.inside["instances.others"] = len(instances) - 1
    task = Fields({**instances[0], "instruction": row["instruction"]})
    return _answered("instruction", "output")(task, options)


def _text(row: Fields, options: Options) -> Record:
    del options
    return Text(text(row, "text"))


def _completion(row: Fields, options: Options) -> Record:
    del options
    return Demonstration("", text(row, "completion"))


def _prompt(row: Fields, options: Options) -> Record:
    del options
    return PromptRecord(prompt_in(row, "prompt"))


def _is_list_of(value: Any, *names: str) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and names[0] in value[0]


def _has_label(row: Mapping[str, Any]) -> bool:
    return is_label(row[first_of(row, "label", "kto_tag")])


def _is_tldr(row: Mapping[str, Any]) -> bool:
    return (
        isinstance(row["label"], str)
        and isinstance(row["prompt"], str)
        and row["prompt"].rstrip().endswith("TL;DR:")
    )


ANSWERS: dict[str, Format] = {
    "kto_chat": Format(("messages|conversations", "label|kto_tag"), _labelled_chat, _has_label),
    **{
        "kto" if name == "prompt_completion" else f"kto_{name}": Format(
            (ask, answer, "label|kto_tag"), _labelled(ask, answer), _has_label
        )
        for name, (ask, answer) in _PAIRS.items()
    },
    "truthfulqa_labels": Format(("question", "answer", "truthful"), _truthful),
    "messages": Format(("messages",), _chat("messages")),
    "conversations": Format(("conversations",), _chat("conversations")),
    "input_output_turns": Format(
        ("conversation",), _pairs, lambda row: _is_list_of(row["conversation"], "input", "output")
    ),
    "conversation": Format(("conversation",), _chat("conversation")),
    "glaive": Format(("system", "chat"), _glaive),
    "self_instruct": Format(("instruction", "instances"), _seed_task),
    "openorca": Format(("system_prompt", "question", "response"), _openorca),
    "squad": Format(("question", "context|passage|contexts", "answers"), _squad),
    "multiple_choice": Format(
        ("question", "options|choices", "answer|answerKey"),
        _multiple_choice,
    ),
    "tldr": Format(("prompt", "label"), _tldr, _is_tldr),
    **{name: Format(fields, _answered(*fields)) for name, fields in _PAIRS.items()},
    "text": Format(("text",), _text),
    "prompt": Format(("prompt",), _prompt),
    "completion": Format(("completion",), _completion),
}
"""By name; detection takes them in this order."""
