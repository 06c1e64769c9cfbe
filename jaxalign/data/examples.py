"""Tokenized examples: records as ids, cut or left out by a stated rule, every one counted."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxalign.data.chat import ChatFormat, as_turns
from jaxalign.data.config import Truncation
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


@dataclass(frozen=True)
class Example:
    """One row of training data.

    Attributes:
      rows: token ids: one completion (demonstrations), two (chosen, rejected), K, or none (prompts).
      masks: the same shape, True at counted tokens (of steps: at each step's last token).
      prompt_tokens: ids of the prompt.
      prompt_text: its text.
      best: index of the best row, for rankings.
      margin: how much better chosen is.
      labels: of labelled completions, whether each row is to be imitated; of steps, how right each is, in [0, 1].
      group: hash of the prompt; rows that share one fall on one side of a split.
      columns: the record's other fields.
      source: file:line.
      truncated: something was cut off, by the rule of `Limits.truncation`.
      prompt: the prompt as the record has it, whole.
    """

    rows: tuple[tuple[int, ...], ...]
    masks: tuple[tuple[bool, ...], ...]
    prompt_tokens: tuple[int, ...]
    prompt_text: str
    best: int = 0
    margin: float = 0.0
    labels: tuple[float, ...] = ()
    group: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    truncated: bool = False
    prompt: Prompt = ""


class Filtered(Exception):
    """The row is left out; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Limits:
    """How long rows may be, in tokens.

    Attributes:
      max_length: prompt and completion together.
      max_prompt_length: the prompt; 0 for no limit of its own.
      truncation: filter, cut_completion (its end) or cut_prompt_start (the prompt's beginning).
    """

    max_length: int
    max_prompt_length: int
    truncation: Truncation


def prompt_group(prompt: Prompt) -> str:
    """A hash that names the prompt."""
    # Plain text and the same text as the only user turn are one prompt.
    parts = [f"{m.role}\x1f{m.content.strip()}" for m in as_turns(prompt)]
    return hashlib.sha256("\x1e".join(parts).encode()).hexdigest()[:16]


def make_example(
    record: Record,
    kind: str,
    chat: ChatFormat,
    limits: Limits,
    *,
    prompt_tokens: int = 0,
    separator: str = "\n",
) -> Example:
    """The example of a record.

    Args:
      record: what a reader made.
      kind: demonstration, comparison, ranking, label, stepwise or prompt.
      chat: how text becomes ids.
      limits: how long rows may be.
      prompt_tokens: for prompts of plain text: how many leading tokens of it make the prompt.
      separator: text that ends each step.

    Raises:
      Filtered: the row is too long, has no completion token, or has another kind's content.
    """
    common = {
        "columns": record.columns,
        "source": record.source,
        "group": prompt_group(record.prompt),
        "prompt": record.prompt,
    }
    if kind == "prompt":
        return _prompt_example(record, chat, limits, prompt_tokens, common)
    if kind == "demonstration":
        return _demonstration(record, chat, limits, common)
    if kind == "stepwise":
        return _stepwise(record, chat, limits, separator, common)
    if kind == "comparison":
        if not isinstance(record, Comparison):
            raise Filtered(f"not a comparison but a {_name(record)}")
        answers: tuple[str, ...] = (record.chosen, record.rejected)
        extra: dict[str, Any] = {"margin": record.margin}
    elif kind == "label":
        answers, labels = _labelled(record)
        extra = {"labels": labels}
    elif kind == "ranking":
        if not isinstance(record, Ranking):
            raise Filtered(f"not a ranking but a {_name(record)}")
        answers, extra = record.candidates, {"best": record.best}
    else:
        raise ValueError(
            f"kind must be demonstration, comparison, ranking, label, stepwise or prompt, got {kind!r}"
        )
    if not all(answer.strip() for answer in answers):
        raise Filtered("no completion token")
    pairs, _, truncated = _limited([chat.example(record.prompt, answer) for answer in answers], limits)
    start = min(_first(mask) for _, mask in pairs)
    return Example(
        rows=tuple(tuple(ids) for ids, _ in pairs),
        masks=tuple(tuple(mask) for _, mask in pairs),
        prompt_tokens=tuple(pairs[0][0][:start]),
        prompt_text=chat.prompt_text(record.prompt),
        truncated=truncated,
        **common,
        **extra,
    )


def _labelled(record: Record) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Completions and whether each is to be imitated; of a comparison the chosen one is, the rejected one is not."""
    if isinstance(record, Comparison):
        return (record.chosen, record.rejected), (True, False)
    if not isinstance(record, Rating):
        raise Filtered(f"not a labelled completion but a {_name(record)}")
    if record.label is None:
        raise Filtered("no label")
    return (record.completion,), (record.label,)


def _demonstration(record: Record, chat: ChatFormat, limits: Limits, common: dict[str, Any]) -> Example:
    if isinstance(record, Demonstration) and record.completion is None:
        assert not isinstance(record.prompt, str)
        turns = record.prompt
        if not any(m.content.strip() for m in turns if m.role == "assistant"):
            raise Filtered("no completion token")
        ids, mask = chat.chat(turns)
        asked = turns[: next(i for i, m in enumerate(turns) if m.role == "assistant")]
        prompt_text = chat.prompt_text(asked) if asked else ""
        # Split by how a chat begins, so that its copies with other endings stay together.
        common = common | {"group": prompt_group(asked or turns[:1]), "prompt": asked}
    else:
        completion = {
            Demonstration: lambda: record.completion,  # type: ignore[union-attr]
            Comparison: lambda: record.chosen,  # type: ignore[union-attr]
            Rating: lambda: record.completion,  # type: ignore[union-attr]
            Ranking: lambda: record.candidates[record.best],  # type: ignore[union-attr]
        }.get(type(record))
        if completion is None:
            raise Filtered(f"not a demonstration but a {_name(record)}")
        if isinstance(record, Rating) and record.label is False:
            raise Filtered("labelled as not to be imitated")
        answer = completion()
        assert isinstance(answer, str)
        if not answer.strip():
            raise Filtered("no completion token")
        ids, mask = chat.example(record.prompt, answer)
        prompt_text = chat.prompt_text(record.prompt)
        if not record.prompt:
            common = common | {"group": prompt_group(answer)}
    [(ids, mask)], _, truncated = _limited([(ids, mask)], limits)
    return Example(
        (tuple(ids),),
        (tuple(mask),),
        tuple(ids[: _first(mask)]),
        prompt_text,
        truncated=truncated,
        **common,
    )


def _stepwise(
    record: Record, chat: ChatFormat, limits: Limits, separator: str, common: dict[str, Any]
) -> Example:
    """A solution whose mask is True where a step ends; steps beyond the limits go with their labels."""
    if not isinstance(record, Stepwise):
        raise Filtered(f"not a solution in steps but a {_name(record)}")
    steps = [step.removesuffix(separator) for step in record.steps]
    if not all(step.strip() for step in steps):
        raise Filtered("a step without text")
    if any(separator in step for step in steps):
        # Where the reward is used such a step would be taken for two.
        raise Filtered("the separator inside a step")
    ids, mask, ends = chat.steps(record.prompt, steps, separator)
    [(ids, mask)], drop, truncated = _limited([(ids, mask)], limits)
    ends = [end - drop for end in ends if end - drop < len(ids)]
    if not ends:
        raise Filtered("no whole step")
    ids = ids[: ends[-1] + 1]
    return Example(
        (tuple(ids),),
        (tuple(i in set(ends) for i in range(len(ids))),),
        tuple(ids[: _first(mask)]),
        chat.prompt_text(record.prompt),
        labels=record.labels[: len(ends)],
        truncated=truncated,
        **common,
    )


def _prompt_example(
    record: Record, chat: ChatFormat, limits: Limits, prompt_tokens: int, common: dict[str, Any]
) -> Example:
    prompt = record.prompt
    if isinstance(record, Demonstration) and record.completion is None:
        assert not isinstance(prompt, str)
        last = max((i for i, m in enumerate(prompt) if m.role == "assistant"), default=len(prompt))
        prompt = prompt[:last]
        if not prompt:
            raise Filtered("no turn before the answer")
    if isinstance(record, Demonstration) and record.prompt == "" and record.completion is not None:
        if prompt_tokens < 1:
            raise Filtered("plain text without data.prompt_tokens")
        ids, mask = chat.example("", record.completion)
        start = _first(mask)
        if len(ids) - start - len(chat.end_ids) < prompt_tokens:
            raise Filtered("shorter than data.prompt_tokens")
        ids = ids[: start + prompt_tokens]
        text = chat.tokenizer.decode(ids[start:])
        common = common | {"group": prompt_group(text), "prompt": text}
    else:
        if isinstance(prompt, tuple) and isinstance(record, PromptRecord) and prompt[-1].role == "assistant":
            prompt = prompt[:-1]
        common = common | {"group": prompt_group(prompt), "prompt": prompt}
        ids, text = chat.prompt_ids(prompt), chat.prompt_text(prompt)
    if not ids:
        raise Filtered("empty prompt")
    limit = limits.max_prompt_length or limits.max_length
    truncated = len(ids) > limit
    if truncated:
        if limits.truncation != "cut_prompt_start":
            raise Filtered("prompt too long")
        ids = ids[-limit:]
    return Example((), (), tuple(ids), text, truncated=truncated, **common)


Row = tuple[Sequence[int], Sequence[bool]]


def _limited(rows: Sequence[Row], limits: Limits) -> tuple[list[Row], int, bool]:
    """Ids and masks of one prompt's completions within the limits, tokens cut off the prompt, and whether any were cut.

    What is cut off the prompt's beginning is the same for all of them, so that they stay
    completions of one prompt. Column 0 never counts: no token precedes it.
    """
    starts = [_first(mask) for _, mask in rows]
    if any(start == len(mask) for start, (_, mask) in zip(starts, rows, strict=True)):
        raise Filtered("no completion token")
    drop = 0
    if limits.max_prompt_length and max(starts) > limits.max_prompt_length:
        if limits.truncation != "cut_prompt_start":
            raise Filtered("prompt too long")
        drop = max(starts) - limits.max_prompt_length
    over = max(len(ids) for ids, _ in rows) - drop - limits.max_length
    if over > 0:
        if limits.truncation == "filter":
            raise Filtered("too long")
        if limits.truncation == "cut_prompt_start":
            if min(starts) - drop - over < 1:
                raise Filtered("completion too long")
            drop += over
        elif max(starts) - drop >= limits.max_length:
            raise Filtered("prompt too long")
    kept = []
    for ids, mask in rows:
        ids, mask = list(ids[drop:][: limits.max_length]), list(mask[drop:][: limits.max_length])
        mask[0] = False
        if not any(mask):
            raise Filtered("no completion token")
        kept.append((ids, mask))
    return kept, drop, drop > 0 or over > 0


def _first(mask: Sequence[bool]) -> int:
    return next((i for i, counts in enumerate(mask) if counts), len(mask))


def _name(record: Record) -> str:
    return type(record).__name__.removesuffix("Record").lower()


def last_user_turn(prompt: Prompt) -> str:
    """What the user said last."""
    if isinstance(prompt, str):
        return prompt
    turns: list[Message] = [m for m in prompt if m.role == "user"]
    return turns[-1].content if turns else ""
