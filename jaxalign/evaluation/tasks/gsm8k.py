"""GSM8K: school mathematics in words (arXiv:2110.14168).

A model works a problem out behind solved ones, as lm-evaluation-harness's task `gsm8k` asks it. `strict` needs the
answer after "####", as the solved ones have it; `flexible` takes the last number of a text without that mark.
"""

import re
from collections.abc import Sequence

from jaxalign.errors import DataError
from jaxalign.evaluation.tasks.rows import benchmark_rows
from jaxalign.evaluation.tasks.written import Written
from jaxalign.rewards.verifiable import final_number

STOPS = ("Question:", "</s>", "<|im_end|>")
_STRICT = re.compile(r"####\s*-?\$?[\d.,]")


def read_gsm8k(path: str, shots: Sequence[tuple[str, str]] = ()) -> list[Written]:
    """Problems (`question`, `answer` with its number after "####"), each after `shots` of (question, answer).

    Raises:
      DataError: an answer without such a number.
    """
    before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in shots)
    found = []
    for row in benchmark_rows(path):
        answer = row.text("answer")
        if not _STRICT.search(answer):
            raise DataError(f"{row.place}: expected a number after #### in 'answer', got {answer[-60:]!r}")
        prompt = f"{before}Question: {row.text('question')}\nAnswer:"
        found.append(Written(row.place, prompt, references=(answer,)))
    return found


def read_shots(path: str, count: int) -> list[tuple[str, str]]:
    """The first problems of another file, its training file, say, with their answers.

    Raises:
      DataError: it has fewer.
    """
    found = []
    for row in benchmark_rows(path):
        if len(found) == count:
            break
        found.append((row.text("question"), row.text("answer")))
    if len(found) < count:
        raise DataError(f"{path}: expected at least {count} solved problems, got {len(found)}")
    return found


def gsm8k_scores(question: Written, text: str) -> dict[str, float]:
    """strict and flexible (see the module), 1 or 0."""
    right = float(final_number(text) == final_number(question.references[0]))
    return {"strict": right if _STRICT.search(text) else 0.0, "flexible": right}
