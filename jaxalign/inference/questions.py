"""Question files in the layouts of AlpacaEval and MT-bench, and rows of answers that their tools read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxalign.data.files import rows_of
from jaxalign.errors import DataError

Layout = Literal["", "alpaca_eval", "mt_bench"]


@dataclass(frozen=True)
class Question:
    """A question of one or several turns.

    Attributes:
      turns: what the user says, in order: text, or (of a plain prompt, which has one) messages.
      layout: which tools the row of its answer is for; empty for none.
      columns: of the file, which that row keeps.
    """

    turns: tuple[Any, ...]
    layout: Layout = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


def questions_of(path: str) -> list[Question] | None:
    """The questions of a file in one of the two layouts; None where its first row has neither.

    AlpacaEval: `instruction` (after which comes `input`, where there is one), with `dataset` or `generator`. MT-bench
    (and Vicuna-bench): `question_id` and `turns`, a list of texts.

    Raises:
      DataError: a row that lacks what the first one has, naming file and line.
    """
    questions: list[Question] = []
    for place, row in rows_of(path):
        if isinstance(row, DataError):
            raise row
        question = _alpaca_eval(row) or _mt_bench(row)
        if question is None and not questions:
            return None
        if question is None or (questions and question.layout != questions[0].layout):
            raise DataError(f"{place}: expected a question of {questions[0].layout} as in the rows before it")
        questions.append(question)
    return questions


def _alpaca_eval(row: Mapping[str, Any]) -> Question | None:
    instruction, given = row.get("instruction"), row.get("input") or ""
    if (
        not isinstance(instruction, str)
        or not isinstance(given, str)
        or not {"dataset", "generator"} & row.keys()
    ):
        return None
    kept = {name: row[name] for name in ("instruction", "input", "dataset") if name in row}
    return Question((f"{instruction}\n\n{given}" if given.strip() else instruction,), "alpaca_eval", kept)


def _mt_bench(row: Mapping[str, Any]) -> Question | None:
    turns = row.get("turns")
    if "question_id" not in row or not isinstance(turns, list) or not turns:
        return None
    if not all(isinstance(turn, str) for turn in turns):
        return None
    kept = {name: row[name] for name in ("question_id", "category") if name in row}
    return Question(tuple(turns), "mt_bench", kept)


def next_prompt(said: Sequence[str], question: str, *, plain: bool) -> Any:
    """The prompt for a question after others and their answers, which alternate in `said`.

    A model without turns only continues text: there the question follows as a paragraph of its own.
    """
    if not said:
        return question
    if plain:
        whole = said[0]
        for index, text in enumerate([*said[1:], question], 1):
            whole += text if index % 2 else f"\n\n{text}"
        return whole
    return [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate([*said, question])
    ]


def answer_rows(
    question: Question, samples: Sequence[Sequence[dict[str, Any]]], name: str
) -> list[dict[str, Any]]:
    """The rows of a question's answers, for the tools of its layout.

    Args:
      question: what was asked.
      samples: of each sample its turns, as rows of `generate`.
      name: of the model.

    Returns:
      AlpacaEval: a row a sample, which has `output` and `generator` beside the rest. MT-bench: one row, a
      `model_answer` of FastChat, with a choice a sample; `left_out` has the turns before each question that the
      context had no room for. Else the rows themselves.
    """
    if question.layout == "mt_bench":
        facts = ("finish_reason", "logp", "tokens")
        choices = [
            {"index": index, "turns": [turn["completion"].strip() for turn in turns]}
            | {fact: [turn[fact] for turn in turns] for fact in facts}
            | ({"left_out": out} if any(out := [turn.get("left_out", 0) for turn in turns]) else {})
            for index, turns in enumerate(samples)
        ]
        return [{**question.columns, "model_id": name, "choices": choices}]
    rows = [row for turns in samples for row in turns]
    if question.layout == "alpaca_eval":
        return [
            {**question.columns, "output": row["completion"].strip(), "generator": name} | row for row in rows
        ]
    return rows


def model_name(model: str, patient: str, doctors: Sequence[str]) -> str:
    """What rows of answers call a model: the last part of its folder or hub id, and of each of its doctors'."""
    names = [name for name in (model or patient, *doctors) if name]
    last = [Path(name).parent.name if Path(name).name == "export" else Path(name).name for name in names]
    return "+".join(last)
