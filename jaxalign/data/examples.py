"""Tokenized examples: records as token ids, truncated or dropped by rule, and counted.

A record becomes drafts, which are text, and drafts become examples: many are tokenized together.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from jaxalign.data.chat import ChatFormat
from jaxalign.data.config import Truncation
from jaxalign.data.encoding import Row, RowPlan, Span
from jaxalign.data.formats import transcript_turns
from jaxalign.data.records import (
    Comparison,
    Completion,
    Demonstration,
    Prompt,
    PromptRecord,
    Ranking,
    Rating,
    Record,
    Stepwise,
    Text,
    Turns,
)


@dataclass(frozen=True)
class Example:
    """One row of training data.

    Attributes:
      rows: token ids: one completion (demonstrations), two (chosen, rejected), K, or none (prompts).
      masks: the same shape, True at unmasked tokens (of steps: at each step's last token).
      prompt_tokens: ids of the prompt.
      prompt_text: its text.
      best: index of the best row, for rankings.
      margin: by how much chosen is better.
      labels: for labeled completions, whether each row is desirable; for steps, how right each is, in [0, 1].
      group: hash of the first user turn; rows with the same hash are on the same side of a split.
      columns: the record's other fields.
      source: file:line.
      truncated: something was cut off, by the rule of `Limits.truncation`.
      prompt: the record's whole prompt.
      weights: how much each token counts, where some unmasked token's weight is not 1; else empty.
      note: a remark on how it was written, that is counted and shown.
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
    weights: tuple[tuple[float, ...], ...] = ()
    note: str = ""


class Filtered(Exception):
    """The row is dropped; the message is the reason that it is counted under."""


@dataclass(frozen=True)
class Limits:
    """How long rows may be, in tokens.

    Attributes:
      max_length: prompt and completion together.
      max_prompt_length: the prompt; 0 for no separate limit.
      truncation: filter, cut_completion (its end) or cut_prompt_start (the prompt's beginning).
    """

    max_length: int
    max_prompt_length: int
    truncation: Truncation


class Draft(NamedTuple):
    """An example before it is tokenized.

    Attributes:
      plans: its rows as text; of prompts the prompt.
      kind: what it trains; see `drafts_of`.
      limits: how long rows may be.
      fields: fields of the example that are known already.
      prompt_tokens: of prompts that open a text: how many tokens of it they take; else 0.
    """

    plans: tuple[RowPlan, ...]
    kind: str
    limits: Limits
    fields: Mapping[str, Any]
    prompt_tokens: int = 0


def prompt_group(prompt: Prompt, human: str = "\n\nHuman:", assistant: str = "\n\nAssistant:") -> str:
    """A hash of what the user says first: 16 hexadecimal digits, the same in all layouts of a prompt.

    Prompts that begin alike (turns of one chat, one question in several files) are kept together by it.
    """
    if isinstance(prompt, str) and prompt.lstrip().startswith(human.strip()):
        prompt = transcript_turns(prompt, human, assistant) or prompt
    first = prompt if isinstance(prompt, str) else _first_said(prompt)
    return hashlib.sha256(" ".join(first.split()).encode()).hexdigest()[:16]


def _first_said(turns: Turns) -> str:
    said = [turn for turn in turns if turn.role not in ("system", "developer", "tools")] or turns
    return next((turn.content for turn in said if turn.role == "user"), said[0].content if said else "")


def make_examples(
    record: Record,
    kind: str,
    chat: ChatFormat,
    limits: Limits,
    *,
    prompt_tokens: int = 0,
    separator: str = "\n",
) -> list[Example]:
    """The examples of a record: one, or several of a chat whose template rewrites earlier turns.

    Args and errors are those of `drafts_of`.

    Raises:
      Filtered: no example of the record can be used.
    """
    outcomes = finished(
        drafts_of(record, kind, chat, limits, prompt_tokens=prompt_tokens, separator=separator), chat
    )
    examples = [example for example in outcomes if isinstance(example, Example)]
    if not examples:
        raise next(reason for reason in outcomes if isinstance(reason, Filtered))
    return examples


def make_example(record: Record, kind: str, chat: ChatFormat, limits: Limits, **options: Any) -> Example:
    """The only example of a record; see `make_examples`.

    Raises:
      Filtered: it cannot be used.
      ValueError: the record gives several.
    """
    examples = make_examples(record, kind, chat, limits, **options)
    if len(examples) > 1:
        raise ValueError(f"{record.source}: expected one example, got {len(examples)} from the record")
    return examples[0]


def drafts_of(
    record: Record,
    kind: str,
    chat: ChatFormat,
    limits: Limits,
    *,
    prompt_tokens: int = 0,
    separator: str = "\n",
) -> list[Draft]:
    """What a record trains, as text.

    Args:
      record: what a reader made.
      kind: demonstration, comparison, ranking, label, stepwise or prompt.
      chat: how text becomes ids.
      limits: how long rows may be.
      prompt_tokens: for prompts of plain text: how many leading tokens of it make the prompt.
      separator: text that ends each step.

    Raises:
      Filtered: the row has no completion token, or another kind's content.
      DataError: the chat template cannot write the row.
    """
    common: dict[str, Any] = {"columns": record.columns, "source": record.source}
    if kind == "prompt":
        return [_prompt_draft(record, chat, limits, prompt_tokens, common)]
    if isinstance(record, Text):
        if kind != "demonstration":
            raise Filtered(f"not a {kind} but a text")
        if not record.text.strip():
            raise Filtered("no completion token")
        group = prompt_group(record.text, chat.human, chat.assistant)
        return [
            Draft((chat.continued(record.text),), kind, limits, common | {"group": group, "prompt_text": ""})
        ]
    if kind == "demonstration" and isinstance(record, Demonstration) and record.completion is None:
        return _chat_drafts(record, chat, limits, common)
    answers, extra = _answers(record, kind)
    if not all(map(_says, answers)):
        raise Filtered("no completion token")
    first = answers[0] if not record.prompt and isinstance(answers[0], str) else record.prompt
    turns = chat.turns(record.prompt) if kind != "stepwise" else None
    fields = {
        **common,
        **extra,
        "group": prompt_group(first, chat.human, chat.assistant),
        "prompt": record.prompt,
        "prompt_text": chat.prompt_text(record.prompt, turns),
    }
    if turns is None:
        assert isinstance(record, Stepwise)
        return [Draft((_steps(record, chat, separator),), kind, limits, fields)]
    written = [chat.answered(turns, answer) for answer in answers]
    if not all(each.rows for each in written):
        raise Filtered("no completion token")
    fields["note"] = next((each.note for each in written if each.note), "")
    return [Draft(tuple(each.rows[0] for each in written), kind, limits, fields)]


def finished(drafts: Sequence[Draft], chat: ChatFormat) -> list["Example | Filtered"]:
    """The examples of drafts, tokenized together; a reason in place of one that is left out."""
    rows = iter(chat.encoder.rows([plan for draft in drafts for plan in draft.plans]))
    outcomes: list[Example | Filtered] = []
    for draft in drafts:
        own = list(islice(rows, len(draft.plans)))
        try:
            outcomes.append(
                _prompt_example(draft, own[0], chat) if draft.kind == "prompt" else _example(draft, own)
            )
        except Filtered as reason:
            outcomes.append(reason)
    return outcomes


def _answers(record: Record, kind: str) -> tuple[tuple[Completion, ...], dict[str, Any]]:
    """The completions that a record of one kind has, and the example's fields that say what they are."""
    if kind == "demonstration":
        return (_imitated(record),), {}
    if kind == "comparison":
        if not isinstance(record, Comparison):
            raise Filtered(f"not a comparison but a {_name(record)}")
        return (record.chosen, record.rejected), {"margin": record.margin}
    if kind == "label":
        answers, labels = _labelled(record)
        return answers, {"labels": labels}
    if kind == "ranking":
        if not isinstance(record, Ranking):
            raise Filtered(f"not a ranking but a {_name(record)}")
        return record.candidates, {"best": record.best}
    if kind == "stepwise":
        if not isinstance(record, Stepwise):
            raise Filtered(f"not a solution in steps but a {_name(record)}")
        return ("\n".join(record.steps),), {"labels": record.labels}
    raise ValueError(
        f"kind must be demonstration, comparison, ranking, label, stepwise or prompt, got {kind!r}"
    )


def _imitated(record: Record) -> Completion:
    """The completion of a record that is a good one."""
    if isinstance(record, Rating) and record.label is False:
        raise Filtered("labeled undesirable")
    if isinstance(record, Comparison):
        return record.chosen
    if isinstance(record, Ranking):
        return record.candidates[record.best]
    if isinstance(record, (Demonstration, Rating)) and record.completion is not None:
        return record.completion
    raise Filtered(f"not a demonstration but a {_name(record)}")


def _labelled(record: Record) -> tuple[tuple[Completion, ...], tuple[bool, ...]]:
    """Completions and whether each is to be imitated; of a comparison the chosen one is, the rejected one is not."""
    if isinstance(record, Comparison):
        return (record.chosen, record.rejected), (True, False)
    if not isinstance(record, Rating):
        raise Filtered(f"not a labelled completion but a {_name(record)}")
    if record.label is None:
        raise Filtered("no label")
    return (record.completion,), (record.label,)


def _says(completion: Completion) -> bool:
    """Whether a completion has an answer that says or calls something."""
    if isinstance(completion, str):
        return bool(completion.strip())
    return any(
        turn.content.strip() or turn.extra.get("tool_calls")
        for turn in completion
        if turn.role == "assistant"
    )


def _chat_drafts(
    record: Demonstration, chat: ChatFormat, limits: Limits, common: dict[str, Any]
) -> list[Draft]:
    """A draft for each row that the chat takes."""
    turns = record.prompt
    assert not isinstance(turns, str)
    counted = [_says((turn,)) for turn in turns if turn.role == "assistant" and turn.weight > 0]
    if not any(counted):
        raise Filtered("no completion token")
    if not all(counted):
        raise Filtered("an answer without text")
    written = chat.conversation(turns)
    prompt = turns[: next(i for i, turn in enumerate(turns) if turn.role == "assistant")]
    fields = common | {
        "group": prompt_group(turns),
        "prompt": prompt,
        "prompt_text": chat.prompt_text(prompt) if prompt else "",
        "note": written.note,
    }
    return [Draft((plan,), "demonstration", limits, fields) for plan in written.rows]


def _steps(record: Stepwise, chat: ChatFormat, separator: str) -> RowPlan:
    """A solution whose row is cut where steps end."""
    steps = [step.removesuffix(separator) for step in record.steps]
    if not all(step.strip() for step in steps):
        raise Filtered("a step without text")
    if any(separator in step for step in steps):
        # Where the reward is used such a step would be taken for two.
        raise Filtered("the separator inside a step")
    return chat.steps(record.prompt, steps, separator)


def _example(draft: Draft, rows: Sequence[Row]) -> Example:
    kept, drop, truncated = _limited(rows, draft.limits)
    start = min([row.start for row in kept])
    fields = dict(draft.fields)
    if draft.kind == "stepwise":
        [row] = kept
        ends = [cut - 1 - drop for cut in rows[0].cuts[1::2] if cut - 1 - drop < len(row.ids)]
        if not ends:
            raise Filtered("no whole step")
        kept = [Row(row.ids[: ends[-1] + 1], [Span(end, end + 1, 1.0) for end in dict.fromkeys(ends)])]
        fields["labels"] = fields["labels"][: len(ends)]
    ids = tuple([tuple(row.ids) for row in kept])
    if len(ids) > 1:
        _check_apart(draft, ids, max(min(row.start for row in rows) - drop, 0))
    weighted = any(span.weight != 1.0 for row in kept for span in row.spans)
    if weighted and draft.kind != "demonstration":
        raise Filtered("weights of turns other than 0 and 1")
    return Example(
        rows=ids,
        masks=tuple([row.mask for row in kept]),
        prompt_tokens=tuple(kept[0].ids[:start]),
        truncated=truncated,
        weights=tuple([row.weights for row in kept]) if weighted else (),
        **fields,
    )


def _check_apart(draft: Draft, ids: Sequence[tuple[int, ...]], prompt_length: int) -> None:
    """Rows of one prompt, of `prompt_length` tokens, must begin alike and differ where they are compared."""
    if any(row[:prompt_length] != ids[0][:prompt_length] for row in ids):
        raise Filtered("a template that writes the prompt otherwise for each completion")
    if draft.kind in ("comparison", "label") and ids[0] == ids[1]:
        raise Filtered("chosen equals rejected once trimmed or cut")
    if draft.kind == "ranking" and ids.count(ids[draft.fields["best"]]) > 1:
        raise Filtered("the best candidate equals another once trimmed or cut")


def _prompt_draft(
    record: Record, chat: ChatFormat, limits: Limits, prompt_tokens: int, common: dict[str, Any]
) -> Draft:
    if isinstance(record, Text) or (
        isinstance(record, Demonstration) and record.prompt == "" and isinstance(record.completion, str)
    ):
        if prompt_tokens < 1:
            raise Filtered("plain text without data.prompt_tokens")
        text = record.text if isinstance(record, Text) else record.completion
        assert isinstance(text, str)
        return Draft((chat.continued(text),), "prompt", limits, common, prompt_tokens)
    prompt = record.prompt
    if isinstance(record, Demonstration) and record.completion is None:
        assert not isinstance(prompt, str)
        last = max((i for i, m in enumerate(prompt) if m.role == "assistant"), default=len(prompt))
        prompt = prompt[:last]
        if not prompt:
            raise Filtered("no turn before the answer")
    if isinstance(prompt, tuple) and isinstance(record, PromptRecord) and prompt[-1].role == "assistant":
        prompt = prompt[:-1]
    fields = {
        "group": prompt_group(prompt, chat.human, chat.assistant),
        "prompt": prompt,
        "prompt_text": chat.prompt_text(prompt),
    }
    return Draft((chat.prompt_plan(prompt),), "prompt", limits, common | fields)


def _prompt_example(draft: Draft, row: Row, chat: ChatFormat) -> Example:
    ids, fields = row.ids, dict(draft.fields)
    if draft.prompt_tokens:
        start = row.start
        ended = draft.plans[0].end
        if len(ids) - start - len(ended) < draft.prompt_tokens:
            raise Filtered("shorter than data.prompt_tokens")
        ids = ids[: start + draft.prompt_tokens]
        text = chat.tokenizer.decode(ids[start:])
        fields |= {
            "group": prompt_group(text, chat.human, chat.assistant),
            "prompt": text,
            "prompt_text": text,
        }
    if not ids:
        raise Filtered("empty prompt")
    limit = draft.limits.max_prompt_length or draft.limits.max_length
    truncated = len(ids) > limit
    if truncated:
        if draft.limits.truncation != "cut_prompt_start":
            raise Filtered("prompt too long")
        ids = ids[-limit:]
    return Example((), (), tuple(ids), truncated=truncated, **fields)


def _limited(rows: Sequence[Row], limits: Limits) -> tuple[list[Row], int, bool]:
    """Rows of one prompt's completions within the limits, tokens cut off the prompt, and whether any were cut.

    What is cut off the prompt's beginning is the same for all of them, so that they stay
    completions of one prompt.
    """
    if not all(row.spans for row in rows):
        raise Filtered("no completion token")
    starts = [row.start for row in rows]
    drop = 0
    if limits.max_prompt_length and max(starts) > limits.max_prompt_length:
        if limits.truncation != "cut_prompt_start":
            raise Filtered("prompt too long")
        drop = max(starts) - limits.max_prompt_length
    over = max([len(row.ids) for row in rows]) - drop - limits.max_length
    if over > 0:
        if limits.truncation == "filter":
            raise Filtered("too long")
        if limits.truncation == "cut_prompt_start":
            if min(starts) - drop - over < 1:
                raise Filtered("completion too long")
            drop += over
        elif max(starts) - drop >= limits.max_length:
            raise Filtered("prompt too long")
    kept = [row.within(drop, limits.max_length) for row in rows]
    if not all(row.spans for row in kept):
        raise Filtered("no completion token")
    return kept, drop, drop > 0 or over > 0


def _name(record: Record) -> str:
    return type(record).__name__.removesuffix("Record").lower()
