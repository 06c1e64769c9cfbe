"""MT-bench's files: questions of two turns, answers to them, references, and the prompts that ask a judge.

A question of mathematics, reasoning or code is judged against a reference answer, any other without. The first turn
is judged alone; the second with the whole conversation, by the prompts that end in `-multi-turn`.

Source: arXiv:2306.05685; file layouts and names of prompts as in FastChat's llm_judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaxalign.errors import DataError
from jaxalign.evaluation.judging.templates import fields_of
from jaxalign.evaluation.tasks.rows import BenchmarkRow, benchmark_rows

Message = dict[str, str]
Turns = tuple[str, ...]

WITH_REFERENCE = ("math", "reasoning", "coding")
FORMATS: dict[str, Literal["rating", "choice"]] = {"[[rating]]": "rating", "[[A]]": "choice"}
REFERENCES = {"ref_answer_1", "ref_answer_2"}
FIELDS = {
    "rating": {"question", "answer", "question_1", "question_2", "answer_1", "answer_2"} | REFERENCES,
    "choice": {"question", "answer_a", "answer_b", "question_1", "question_2"}
    | {f"answer_{side}_{turn}" for side in "ab" for turn in (1, 2)}
    | REFERENCES,
}


@dataclass(frozen=True, kw_only=True)
class BenchQuestion:
    """A question of one or two turns.

    Attributes:
      place: file:line that it comes from.
      question_id: number or text, by which answers name it.
      category: writing, math, ...
      turns: what the user says.
      reference: an answer to each turn, to judge by; () where the category needs none or no file was given.
    """

    place: str
    question_id: int | str
    category: str
    turns: Turns
    reference: Turns = ()


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """A prompt of the published file.

    Attributes:
      name: pair-v2, single-math-v1-multi-turn, ...
      system: what the system message says.
      template: the user message, with names of fields in braces.
      verdict: what the judge is asked for.
    """

    name: str
    system: str
    template: str
    verdict: Literal["rating", "choice"]
    place: str = field(default="", compare=False)

    def messages(self, **values: str) -> list[Message]:
        """The messages for a judge.

        Raises:
          DataError: the template has a field that was not given.
        """
        lacking = fields_of(self.template) - values.keys()
        if lacking:
            raise DataError(
                f"{self.place}: prompt {self.name} has {{{min(lacking)}}}, which there is nothing for"
            )
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [*system, {"role": "user", "content": self.template.format(**values)}]


def read_questions(path: str, references: str = "") -> list[BenchQuestion]:
    """The questions of a file, with the references of another (`reference_answer/gpt-4.jsonl`).

    Raises:
      DataError: a row that is no question, an id that comes twice, or (where references are given) a question that is
        to be judged by one and has none for each turn.
    """
    known = read_answers(references) if references else {}
    found: dict[int | str, BenchQuestion] = {}
    for row in benchmark_rows(path):
        turns = tuple(row.texts("turns"))
        if len(turns) > 2:
            raise DataError(f"{row.place}: expected one or two texts in 'turns', got {len(turns)}")
        one = BenchQuestion(place=row.place, question_id=_id(row), category=row.text("category"), turns=turns)
        if one.question_id in found:
            raise DataError(
                f"{row.place}: question {one.question_id} stands at {found[one.question_id].place} too"
            )
        if references and one.category in WITH_REFERENCE:
            reference = known.get(one.question_id, ())
            if len(reference) < len(turns):
                raise DataError(
                    f"{references}: expected an answer to each of the {len(turns)} turns of question "
                    f"{one.question_id} ({one.category}), got {len(reference)}"
                )
            one = replace(one, reference=reference)
        found[one.question_id] = one
    return list(found.values())


def read_answers(path: str) -> dict[int | str, Turns]:
    """Of each question the answers to its turns: the first choice of each row, as `jaxalign generate` writes them.

    Raises:
      DataError: a row without `question_id` and `choices`, or an id that comes twice.
    """
    found: dict[int | str, Turns] = {}
    for row in benchmark_rows(path):
        name, choices = _id(row), row.fields.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        turns = first.get("turns") if isinstance(first, dict) else None
        # An answer may be empty: the judge is to see that.
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise DataError(f"{row.place}: expected a list of texts in 'turns' of the first of 'choices'")
        if name in found:
            raise DataError(f"{row.place}: question {name} is answered twice")
        found[name] = tuple(turns)
    return found


def read_judge_prompts(path: str) -> dict[str, JudgePrompt]:
    """The prompts of a file (`judge_prompts.jsonl`), by name.

    Raises:
      DataError: a row that is no such prompt, a verdict other than [[rating]] or [[A]], a field that nothing fills, or
        a name that comes twice.
    """
    found: dict[str, JudgePrompt] = {}
    for row in benchmark_rows(path):
        verdict = list(FORMATS.values())[row.one_of("output_format", list(FORMATS))]
        one = JudgePrompt(
            name=row.text("name"),
            system=str(row.fields.get("system_prompt") or ""),
            template=row.text("prompt_template"),
            verdict=verdict,
            place=row.place,
        )
        try:
            unknown = fields_of(one.template) - FIELDS[verdict]
        except ValueError as error:
            raise DataError(f"{row.place}: 'prompt_template' is no template ({error})") from None
        if unknown:
            raise DataError(
                f"{row.place}: 'prompt_template' has {{{min(unknown)}}}, which there is nothing for"
            )
        if one.name in found:
            raise DataError(f"{row.place}: prompt {one.name} comes twice")
        found[one.name] = one
    return found


def rating_messages(
    question: BenchQuestion, answers: Sequence[str], turn: int, prompts: Mapping[str, JudgePrompt]
) -> list[Message]:
    """What a judge is asked, to rate a turn.

    Args:
      question: with its reference where its category needs one.
      answers: to each turn.
      turn: 1 or 2.
      prompts: of `read_judge_prompts`.

    Raises:
      DataError: no reference, no such prompt, or no answer.
    """
    prompt = _prompt("single", "v1", question, turn, prompts)
    _check_answered(question, answers, turn)
    if turn == 1:
        said = {"question": question.turns[0], "answer": answers[0]}
    else:
        said = _numbered("question", question.turns) | _numbered("answer", answers)
    return prompt.messages(**said, **_numbered("ref_answer", question.reference))


def pair_messages(
    question: BenchQuestion,
    answers_a: Sequence[str],
    answers_b: Sequence[str],
    turn: int,
    prompts: Mapping[str, JudgePrompt],
) -> list[Message]:
    """What a judge is asked, to choose between two models' answers; for arguments and errors see `rating_messages`."""
    prompt = _prompt("pair", "v2", question, turn, prompts)
    for answers in (answers_a, answers_b):
        _check_answered(question, answers, turn)
    if turn == 1:
        said = {"question": question.turns[0], "answer_a": answers_a[0], "answer_b": answers_b[0]}
    else:
        said = _numbered("question", question.turns)
        said |= _numbered("answer_a", answers_a) | _numbered("answer_b", answers_b)
    return prompt.messages(**said, **_numbered("ref_answer", question.reference))


def _prompt(
    kind: str, general: str, question: BenchQuestion, turn: int, prompts: Mapping[str, JudgePrompt]
) -> JudgePrompt:
    """The prompt for a turn of a question: pair-v2, pair-math-v1, single-v1, single-math-v1, -multi-turn."""
    if turn not in (1, 2):
        raise ValueError(f"turn must be 1 or 2, got {turn}")
    judged_by_reference = question.category in WITH_REFERENCE
    if judged_by_reference and len(question.reference) < turn:
        raise DataError(
            f"{question.place}: question {question.question_id} ({question.category}) is judged by a reference "
            "answer; give the file of references"
        )
    name = f"{kind}-{'math-v1' if judged_by_reference else general}{'-multi-turn' if turn == 2 else ''}"
    wanted = {"single": "rating", "pair": "choice"}[kind]
    if name not in prompts or prompts[name].verdict != wanted:
        raise DataError(
            f"expected a judge prompt {name} that asks for a {wanted}, got {', '.join(prompts) or 'none'}"
        )
    return prompts[name]


def _check_answered(question: BenchQuestion, answers: Sequence[str], turn: int) -> None:
    if len(question.turns) < turn or len(answers) < turn:
        raise DataError(
            f"{question.place}: question {question.question_id} has {len(question.turns)} turns and "
            f"{len(answers)} answers; expected {turn} of each"
        )


def _numbered(name: str, texts: Sequence[str]) -> dict[str, str]:
    return {f"{name}_{number}": text for number, text in enumerate(texts, 1)}


def _id(row: BenchmarkRow) -> int | str:
    value: Any = row.fields.get("question_id")
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise DataError(f"{row.place}: expected a number or a text in 'question_id', got {value!r:.60}")
    return value
