"""Medical examinations with choices: MedQA (arXiv:2009.13081), MedMCQA (arXiv:2203.14371), PubMedQA (arXiv:1909.06146).

Prompts are those of lm-evaluation-harness: choices are listed and answered by their letter; PubMedQA's abstract stands
before its question, which is answered yes, no or maybe.
"""

from collections.abc import Sequence

from jaxalign.errors import DataError
from jaxalign.evaluation.tasks.choices import Choices
from jaxalign.evaluation.tasks.rows import BenchmarkRow, benchmark_rows

LETTERS = ("A", "B", "C", "D")
DECISIONS = ("yes", "no", "maybe")


def read_medqa(path: str) -> list[Choices]:
    """USMLE questions with four options: `question`, `options` by letter, `answer_idx`; groups are the steps."""
    found = []
    for row in benchmark_rows(path):
        options = row.fields.get("options")
        if not isinstance(options, dict) or sorted(options) != list(LETTERS):
            raise DataError(f"{row.place}: expected options A, B, C and D in 'options', got {options!r:.60}")
        lettered = BenchmarkRow(row.place, options)
        context = _listed(row.text("question"), [lettered.text(letter) for letter in LETTERS])
        right = row.one_of("answer_idx", LETTERS)
        step = row.fields.get("meta_info")
        found.append(Choices(row.place, context, _answers(LETTERS), (right,), str(step or "")))
    return found


def read_medmcqa(path: str) -> list[Choices]:
    """Indian entrance examinations: `question`, `opa` to `opd`, `cop` the right one from 1; groups are the subjects."""
    found = []
    for row in benchmark_rows(path):
        options = [row.text(f"op{letter.lower()}") for letter in LETTERS]
        context = _listed(row.text("question"), options, head="Choices:\n")
        right = row.one_of("cop", (1, 2, 3, 4))
        subject = row.fields.get("subject_name")
        found.append(Choices(row.place, context, _answers(LETTERS), (right,), str(subject or "")))
    return found


def read_pubmedqa(path: str) -> list[Choices]:
    """Questions about an abstract: `question`, `contexts`, `final_decision`; groups are the right answers."""
    found = []
    for row in benchmark_rows(path):
        right = row.one_of("final_decision", DECISIONS)
        abstract = "\n".join(row.texts("contexts"))
        context = f"Abstract: {abstract}\nQuestion: {row.text('question')}\nAnswer:"
        found.append(Choices(row.place, context, _answers(DECISIONS), (right,), DECISIONS[right]))
    return found


def _listed(question: str, options: Sequence[str], head: str = "") -> str:
    lines = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, options, strict=True))
    return f"Question: {question}\n{head}{lines}Answer:"


def _answers(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(f" {text}" for text in texts)
