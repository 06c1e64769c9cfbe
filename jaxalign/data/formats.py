"""All supported layouts by name, and detection of a row's layout."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxalign.data.answer_formats import ANSWERS
from jaxalign.data.asking import SHARED, add_shared
from jaxalign.data.fields import BadRow, Fields, Refused, Unusable, is_media, left_of, says_more
from jaxalign.data.layouts import Format, Options
from jaxalign.data.preference_formats import PREFERENCES
from jaxalign.data.records import PromptRecord, Record, Text
from jaxalign.data.score_formats import SCORES
from jaxalign.data.turns import transcript_turns

__all__ = [
    "FORMATS",
    "BadRow",
    "Format",
    "Options",
    "Refused",
    "Unusable",
    "detect",
    "format_of",
    "left_unread",
    "read_row",
    "transcript_turns",
]

FORMATS: dict[str, Format] = {**PREFERENCES, **SCORES, **ANSWERS}
"""By name, what says more before what says less: detection takes them in this order."""

Row = Mapping[str, Any]

_NEMO_PAIRS = re.compile(r"\s*(<extra_id_[01]>|User:.*\nAssistant:)", re.DOTALL)

_NOT_ROWS: tuple[tuple[tuple[str, ...], Callable[[Row], bool], str], ...] = (
    (
        ("message_id", "parent_id", "text", "role"),
        lambda row: True,
        "messages of a tree, one by one: expected message_tree_id in each, or the file of whole trees",
    ),
    (
        ("text",),
        lambda row: isinstance(row["text"], str) and _NEMO_PAIRS.match(row["text"]) is not None,
        "a dialogue marked as for NeMo-Aligner's reward models, whose chosen and rejected rows follow each other: "
        "give one row with prompt, chosen and rejected, or set data.format=text to continue it as text",
    ),
)
"""Layouts that no single row of says what it means: fields, a further test, what to do."""


def detect(row: Row) -> str | None:
    """The format that reads a row and leaves nothing of meaning in it, or None."""
    try:
        return format_of(row, Options())
    except Refused:
        return None


def format_of(row: Row, options: Options, ignored: Collection[str] = ()) -> str:
    """The format of a row: the first whose fields are there and that leaves nothing of meaning unread.

    If none does, the format with the most fields whose reader explains what is wrong with the row, or why it is
    unusable.

    Args:
      row: the first of a file.
      options: what readers are told.
      ignored: columns that may go unread.

    Raises:
      Refused: which formats come near, and what they lack or would leave.
    """
    for fields, test, advice in _NOT_ROWS:
        if all(name in row for name in fields) and test(row):
            raise Refused(advice)
    wrong: list[str] = []
    leaves: list[tuple[str, dict[str, str]]] = []
    for name, form in FORMATS.items():
        if form.missing(row) or not form.test(row):
            continue
        fields = Fields(row)
        try:
            record = read_row(form, fields, options)
        except (BadRow, Unusable):
            wrong.append(name)
            continue
        left = _left_meanings(name, fields, record, options, ignored)
        if not left:
            return name
        leaves.append((name, left))
    most = max(wrong, key=lambda name: len(FORMATS[name].fields), default="")
    best, left = min(leaves, key=lambda leaf: len(leaf[1]), default=("", {}))
    if most and (not best or len(FORMATS[most].fields) > len(FORMATS[best].fields)):
        return most
    if best:
        near = _near(row, more_than=len(FORMATS[best].fields)).removesuffix("; ")
        raise Refused(would_leave(best, left) + (f"; {near}" if near else ""))
    columns = ", ".join(sorted(map(str, row)))
    raise Refused(
        f"no known format has the fields {columns}; {_near(row)}map columns by data.columns, as "
        '{"prompt": "question", "chosen": "answers.0.text"}, or name a format with data.format'
    )


def would_leave(name: str, left: Mapping[str, str]) -> str:
    """What to say of columns that a format would leave unread, by what their names say they hold."""
    columns = ", ".join(f"{column!r} ({what})" for column, what in left.items())
    return (
        f"the format {name} would leave unread {columns}: map it with data.columns, choose rows by it with data.keep "
        "or data.min_score, or name it in data.ignore_columns to leave it"
    )


def _near(row: Row, more_than: int = 0) -> str:
    """Formats that lack one field of several and have more than so many."""
    near = []
    for name, form in FORMATS.items():
        missing = form.missing(row)
        if len(missing) == 1 and len(form.fields) - 1 > more_than and not name.startswith("kto_"):
            near.append((-len(form.fields), f"{name} lacks {missing[0].replace('|', ' or ')}"))
    near.sort(key=lambda pair: pair[0])
    return f"near are {'; '.join(text for _, text in near[:4])}; " if near else ""


def read_row(form: Format, row: Fields, options: Options) -> Record:
    """A row as a record, with its shared columns.

    Raises:
      BadRow: the row does not fit.
      Unusable: it says nothing for training.
    """
    record = form.read(row, options)
    if not SHARED.isdisjoint(row.row):
        add_shared(record, row, options.human, options.assistant)
    _look_for_media(record, row)
    return record


_MARK = re.compile(r"<(?:image|video|audio)>")
_FILES = frozenset(("file_name", "file_names", "filename", "filenames"))
# On a line of their own, at the beginning or the end of what the user says.
_ALONE = re.compile(rf"\s*{_MARK.pattern}(?:[ \t]*{_MARK.pattern})*[ \t]*(?:\r?\n|\Z)")
_LAST = re.compile(rf"\n[ \t]*{_MARK.pattern}(?:[ \t]*{_MARK.pattern})*\s*\Z")


def _look_for_media(record: Record, row: Fields) -> None:
    """Tells of a mark that stands for an image, a video or sound; elsewhere it may be text as any other."""
    if isinstance(record, Text):
        said = [record.text]
    elif isinstance(record.prompt, str):
        said = [record.prompt]
    else:
        said = [turn.content for turn in record.prompt if turn.role == "user"]
    for words in said:
        mark = _MARK.search(words) if "<" in words else None
        if mark is None:
            continue
        beside = any(is_media(name) or name.lower() in _FILES for name in row.row)
        alone = not isinstance(record, Text) and (_ALONE.match(words) or _LAST.search(words))
        if beside or alone:
            row.inside[mark.group()] = words


def left_unread(row: Fields) -> dict[str, Any]:
    """Columns, and keys within columns, that were not read although they hold something."""
    return {**left_of(row), **row.inside}


def meaning(name: str, form: Format, options: Options, *, answers: bool) -> str:
    """What a column that a format leaves unread holds, by its name; empty where that does not matter."""
    if name in form.redundant:
        return ""
    return says_more(name, answers=answers, prompts_only=options.kind == "prompt")


def reads_no_answer(record: Record) -> bool:
    """Whether answers in other columns would be lost."""
    return isinstance(record, (PromptRecord, Text))


def _left_meanings(
    name: str, row: Fields, record: Record, options: Options, ignored: Collection[str]
) -> dict[str, str]:
    """Columns that a format would leave though they matter, and what they hold."""
    answers = reads_no_answer(record)
    left = left_unread(row)
    meanings = {
        c: meaning(c, FORMATS[name], options, answers=answers) for c in (*left, *row.row) if c not in row.seen
    }
    # An answer that is missing from the first row alone is no reason to take a file for prompts.
    return {
        c: what
        for c, what in meanings.items()
        if what and c not in ignored and (c in left or (answers and what == "an answer"))
    }
