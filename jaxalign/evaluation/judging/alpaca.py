"""AlpacaEval's annotations and the figures of its leaderboards.

An annotation says which of two outputs an annotator prefers: `preference` is 1 for output_1 (the baseline's), 2 for
output_2 (the model's), anything between them where the annotator gives a probability, and 1.5 (in old files 0) for a
draw. null or NaN is a question whose answer could not be judged.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import DataError
from jaxalign.evaluation.tasks.rows import BenchmarkRow, benchmark_rows
from jaxalign.runs.records import write_whole
from jaxalign.uncertainty import estimate_mean

DRAW = 1.5


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One judged question.

    Attributes:
      instruction: what both were asked.
      baseline, model: names of the two.
      baseline_output, output: what each answered; may be empty.
      preference: in [1, 2], see the module; None where it could not be judged.
      annotator: who judged.
      dataset: part of the benchmark; may be empty.
    """

    instruction: str
    baseline: str
    baseline_output: str
    model: str
    output: str
    preference: float | None
    annotator: str = ""
    dataset: str = ""

    def __post_init__(self) -> None:
        if self.preference is not None and not 1 <= self.preference <= 2:
            raise ValueError(f"preference must lie in [1, 2] or be None, got {self.preference}")

    @property
    def win(self) -> float | None:
        """How sure the annotator is of the model's output: in [0, 1], 0.5 for a draw."""
        return None if self.preference is None else self.preference - 1


@dataclass(frozen=True, kw_only=True)
class AlpacaFigures:
    """The columns of a leaderboard, and what they leave out. Rates are in percent, as published.

    Attributes:
      win_rate: mean preference for the model; a draw is a half.
      standard_error: of that mean (divides by n - 1); NaN for a single judged row, as published.
      n_wins, n_wins_base, n_draws, n_total: judged questions; n_total is the sum of the others.
      discrete_win_rate: wins and half of the draws, where a probability counts as whichever is likelier.
      avg_length: mean characters of the model's outputs, rounded down; unjudged rows count too.
      unjudged: rows without a preference; no rate counts them.
      missing: questions without a row, unknown: rows of no question; both None where no questions were given.
    """

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    avg_length: int
    unjudged: int
    missing: int | None = None
    unknown: int | None = None


def read_annotations(path: str) -> list[Annotation]:
    """The rows of an annotation file (`annotations.json`, or the same as .jsonl, .jsonl.gz).

    Raises:
      DataError: a row without its fields, with a preference that is none, or of another pair of models than the first.
    """
    found: list[Annotation] = []
    for row in benchmark_rows(path):
        one = Annotation(
            instruction=row.text("instruction"),
            baseline=row.text("generator_1"),
            baseline_output=_output(row, "output_1"),
            model=row.text("generator_2"),
            output=_output(row, "output_2"),
            preference=_preference(row),
            annotator=str(row.fields.get("annotator") or ""),
            dataset=str(row.fields.get("dataset") or ""),
        )
        if found and (one.baseline, one.model) != (found[0].baseline, found[0].model):
            raise DataError(
                f"{row.place}: expected {found[0].model} against {found[0].baseline} as in the rows before it, got "
                f"{one.model} against {one.baseline}"
            )
        found.append(one)
    return found


def alpaca_figures(
    annotations: Sequence[Annotation], *, questions: Sequence[str] | None = None
) -> AlpacaFigures:
    """The published figures of one model's annotations.

    With p_i = preference_i - 1 over the n judged rows:

        win_rate = 100 mean p,   standard_error = 100 std(p) / sqrt(n)
        discrete_win_rate = 100 (#{p > 1/2} + #{p = 1/2} / 2) / n

    Args:
      annotations: of one model.
      questions: the instructions of the whole benchmark, to count those that have no row.

    Raises:
      DataError: no row is judged.

    Source: alpaca_eval, metrics/helpers.py (`describe_head2head`), whose leaderboards the tests recompute.
    """
    wins = np.asarray([one.win for one in annotations if one.win is not None], np.float64)
    if not wins.size:
        raise DataError(f"expected at least one judged row, got {len(annotations)} rows without a preference")
    estimate = estimate_mean(wins)
    won, drawn = int((wins > 0.5).sum()), int((wins == 0.5).sum())
    missing = unknown = None
    if questions is not None:
        asked, answered = Counter(questions), Counter(one.instruction for one in annotations)
        missing, unknown = (asked - answered).total(), (answered - asked).total()
    return AlpacaFigures(
        win_rate=100 * estimate.mean,
        standard_error=100 * estimate.standard_error if wins.size > 1 else math.nan,
        n_wins=won,
        n_wins_base=wins.size - won - drawn,
        n_draws=drawn,
        n_total=wins.size,
        discrete_win_rate=100 * (won + drawn / 2) / wins.size,
        avg_length=int(np.mean([len(one.output) for one in annotations])),
        unjudged=len(annotations) - wins.size,
        missing=missing,
        unknown=unknown,
    )


def annotation_row(annotation: Annotation) -> dict[str, Any]:
    """An annotation with the names of alpaca_eval's own files."""
    return {
        "instruction": annotation.instruction,
        "dataset": annotation.dataset,
        "generator_1": annotation.baseline,
        "output_1": annotation.baseline_output,
        "generator_2": annotation.model,
        "output_2": annotation.output,
        "annotator": annotation.annotator,
        "preference": annotation.preference,
    }


def write_annotations(path: str | Path, annotations: Sequence[Annotation]) -> None:
    """Writes a file that alpaca_eval reads: a JSON list (.json) or rows (.jsonl); it appears whole or not at all.

    Raises:
      DataError: a name that ends in neither.
    """
    path = Path(path)
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"{path}: expected a name that ends in .json or .jsonl")
    lines = [json.dumps(annotation_row(one), ensure_ascii=False) for one in annotations]
    text = "[\n" + ",\n".join(lines) + "\n]\n" if path.suffix == ".json" else "".join(f"{x}\n" for x in lines)
    write_whole(path, text)


def _output(row: BenchmarkRow, name: str) -> str:
    """An output, which may be empty: a model that said nothing has lost, but was asked."""
    value = row.fields.get(name)
    if not isinstance(value, str):
        raise DataError(f"{row.place}: expected a text in {name!r}, got {value!r:.60}")
    return value


def _preference(row: BenchmarkRow) -> float | None:
    if "preference" not in row.fields:
        raise DataError(
            f"{row.place}: expected a number from 1 to 2, or null, in 'preference', got no such field"
        )
    value = row.fields["preference"]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (value == 0 or 1 <= value <= 2):
        raise DataError(
            f"{row.place}: expected a number from 1 to 2, or null, in 'preference', got {value!r:.60}"
        )
    return DRAW if value == 0 else float(value)
