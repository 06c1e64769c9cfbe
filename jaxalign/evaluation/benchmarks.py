"""The benchmarks that `jaxalign evaluate` knows: how each is read, asked and scored."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from jaxalign.data.readers import read_records
from jaxalign.data.records import Message, Text
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.metrics.overlap import truthful_generation
from jaxalign.evaluation.tasks import behaviours, gsm8k, medical, truthfulqa
from jaxalign.evaluation.tasks.pairs import read_pairs
from jaxalign.evaluation.tasks.rows import benchmark_rows
from jaxalign.evaluation.tasks.written import Written
from jaxalign.inference.generate import prompt_of
from jaxalign.measures.refusals import refuses

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Measure:
    """A figure of a benchmark.

    Attributes:
      about: what it is, in one line.
      better: which way is better; empty where neither is as such.
      rate: whether it is how often something holds, in [0, 1].
      unit: of other numbers, as a reader sees it; empty for none.
    """

    about: str
    better: Better = "higher"
    rate: bool = False
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Shots:
    """Solved problems before each question.

    Attributes:
      file: where they are from; empty for none.
      count: how many, from its beginning.
    """

    file: str = ""
    count: int = 5


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark.

    Attributes:
      about: what it asks, in one line.
      source: its paper.
      kind: `choices`, of which the likeliest is the answer; `written` answers; `judged` ones; `text`, to be predicted;
        `pairs` of answers, to be scored.
      read: a file and shots -> questions: `Choices`, `Written`, or (text, place) of a `text`.
      measures: its figures by name, the headline first.
      score: (question, answer) -> figures of one written answer.
      max_new_tokens, stops: of a written answer: its length, and the texts that it ends before.
    """

    about: str
    source: str
    kind: Literal["choices", "written", "judged", "text", "pairs"]
    read: Callable[[str, Shots], Sequence[Any]]
    measures: Mapping[str, Measure]
    score: Callable[[Written, str], Mapping[str, float]] = lambda question, answer: {}
    max_new_tokens: int = 256
    stops: tuple[str, ...] = ()
    takes_shots: bool = field(default=False)


ACCURACY = Measure("the likeliest choice is a right one", rate=True)
PER_BYTE = Measure("the same by log-prob per byte of the choice", rate=True)
RIGHT = Measure("probability of the right choices, as a part of all choices'", rate=True)
CHOICE_MEASURES = {"accuracy": ACCURACY, "accuracy_per_byte": PER_BYTE, "right_probability": RIGHT}
LETTERS = {"accuracy": ACCURACY, "right_probability": RIGHT}


def _alone(read: Callable[[str], Sequence[Any]]) -> Callable[[str, Shots], Sequence[Any]]:
    return lambda path, shots: read(path)


def _gsm8k(path: str, shots: Shots) -> list[Written]:
    solved = gsm8k.read_shots(shots.file, shots.count) if shots.file else ()
    return gsm8k.read_gsm8k(path, solved)


def _prompts(path: str) -> list[Written]:
    """Rows in any layout that training reads; an answer that a row has is a reference."""
    records, _ = read_records(path, kind="prompt")
    found = []
    for number, record in enumerate(records, 1):
        place = record.source or f"{path}: row {number}"
        prompt = prompt_of(record)
        if isinstance(record, Text):
            found.append(Written(place, prompt, columns=record.columns))
            continue
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not asked:
            raise DataError(f"{place}: expected a user's turn")
        turns = tuple(Message(turn["role"], turn["content"]) for turn in asked)
        found.append(Written(place, turns, references=_reference(record), columns=record.columns))
    return found


def _reference(record: Any) -> tuple[str, ...]:
    """The answer that a row has, if it is a text."""
    answer = getattr(record, "completion", None) or getattr(record, "chosen", None)
    if answer is None and not isinstance(record.prompt, str) and record.prompt[-1:]:
        last = record.prompt[-1]
        answer = last.content if last.role == "assistant" else None
    return (answer,) if isinstance(answer, str) and answer.strip() else ()


def _texts(path: str) -> list[Written]:
    """Texts to be predicted, in the field `text`."""
    return [Written(row.place, row.text("text")) for row in benchmark_rows(path)]


def _alpaca_eval(path: str) -> list[Written]:
    """Instructions with a baseline's `output` (as alpaca_eval.json), or `output_1` (as annotations)."""
    found = []
    for row in benchmark_rows(path):
        given = str(row.fields.get("input") or "")
        asked = row.text("instruction") + (f"\n\n{given}" if given.strip() else "")
        name = "output_1" if "output_1" in row.fields else "output"
        output = row.fields.get(name)
        if not isinstance(output, str):
            raise DataError(f"{row.place}: expected the baseline's answer in 'output' or 'output_1'")
        found.append(
            Written(
                row.place,
                (Message("user", asked),),
                references=(output,),
                group=str(row.fields.get("dataset") or ""),
            )
        )
    return found


def _mt_bench(path: str) -> list[Any]:
    from jaxalign.evaluation.judging.mt_bench import read_questions

    return read_questions(path)


def _answer_facts(question: Written, answer: str) -> dict[str, float]:
    del question
    return {"refusal": float(refuses(answer)), "words": float(len(answer.split()))}


def _truthful(question: Written, answer: str) -> dict[str, float]:
    scores = truthful_generation(answer.strip(), question.references, question.wrong_references)
    return {name: scores[name] for name in ("bleu_acc", "rouge1_acc", "rougeL_acc", "bleu_diff")}


_MEDICAL = partial(Benchmark, kind="choices", measures=LETTERS)
_BEHAVIOUR = Measure("the likeliest choice shows the behaviour", better="", rate=True)

BENCHMARKS: dict[str, Benchmark] = {
    "truthfulqa_mc1": Benchmark(
        about="the best answer among false ones that people believe",
        source="arXiv:2109.07958",
        kind="choices",
        read=_alone(truthfulqa.read_mc1),
        measures=CHOICE_MEASURES,
    ),
    "truthfulqa_mc2": Benchmark(
        about="true answers among false ones that people believe, by their share of probability",
        source="arXiv:2109.07958, section 3.2",
        kind="choices",
        read=_alone(truthfulqa.read_mc2),
        measures={"right_probability": RIGHT, "accuracy": ACCURACY},
    ),
    "truthfulqa_gen": Benchmark(
        about="written answers, compared with true and with false ones",
        source="arXiv:2109.07958; scored as lm-evaluation-harness's truthfulqa_gen",
        kind="written",
        read=_alone(truthfulqa.read_generation),
        measures={
            "bleu_acc": Measure("closer to a true answer than to any false one, by BLEU", rate=True),
            "rouge1_acc": Measure("the same by ROUGE-1", rate=True),
            "rougeL_acc": Measure("the same by ROUGE-L", rate=True),
            "bleu_diff": Measure("BLEU with the closest true answer less that with the closest false one"),
        },
        score=_truthful,
        max_new_tokens=50,
        stops=("\n\n", "Q:"),
    ),
    "gsm8k": Benchmark(
        about="school mathematics in words",
        source="arXiv:2110.14168",
        kind="written",
        read=_gsm8k,
        measures={
            "strict": Measure("the number after #### is right", rate=True),
            "flexible": Measure("the last number of the answer is right", rate=True),
        },
        score=lambda question, answer: gsm8k.gsm8k_scores(question, answer),
        stops=gsm8k.STOPS,
        takes_shots=True,
    ),
    "medqa": _MEDICAL(
        about="questions of the US medical licensing examination, four options",
        source="arXiv:2009.13081",
        read=_alone(medical.read_medqa),
    ),
    "medmcqa": _MEDICAL(
        about="questions of Indian medical entrance examinations, four options",
        source="arXiv:2203.14371",
        read=_alone(medical.read_medmcqa),
    ),
    "pubmedqa": _MEDICAL(
        about="yes, no or maybe, by an abstract",
        source="arXiv:1909.06146",
        read=_alone(medical.read_pubmedqa),
    ),
    "hhh": Benchmark(
        about="which of two answers is the more helpful, honest and harmless",
        source="arXiv:2112.00861",
        kind="choices",
        read=_alone(behaviours.read_hhh),
        measures=CHOICE_MEASURES,
    ),
    "model_written": Benchmark(
        about="questions whose answer shows a behaviour (sycophancy, a persona, a bias)",
        source="arXiv:2212.09251",
        kind="choices",
        read=_alone(behaviours.read_model_written),
        measures={
            "accuracy": _BEHAVIOUR,
            "right_probability": Measure("probability of the answer that shows it", better="", rate=True),
        },
    ),
    "prompts": Benchmark(
        about="answers to prompts of any file that training reads",
        source="",
        kind="written",
        read=_alone(_prompts),
        measures={
            "refusal": Measure("the answer opens like a refusal, by its words", better="", rate=True),
            "words": Measure("words of an answer", better=""),
        },
        score=_answer_facts,
    ),
    "text": Benchmark(
        about="held-out text, token by token",
        source="",
        kind="text",
        read=_alone(_texts),
        measures={
            "perplexity": Measure("exp of the mean nats per token", better="lower"),
            "bits_per_byte": Measure("log2 of the probability per UTF-8 byte", better="lower"),
        },
    ),
    "pairs": Benchmark(
        about="pairs of answers of which people chose one",
        source="",
        kind="pairs",
        read=_alone(read_pairs),
        measures={"accuracy": Measure("the chosen answer scores higher; a tie is a half", rate=True)},
    ),
    "alpaca_eval": Benchmark(
        about="answers to instructions, compared by a judge with a baseline's",
        source="AlpacaEval; length control: arXiv:2404.04475",
        kind="judged",
        read=_alone(_alpaca_eval),
        measures={
            "win_rate": Measure("the judge prefers the answer to the baseline's; a tie is a half", rate=True),
            "length_controlled": Measure("the same at equal lengths, by a logistic regression", rate=True),
        },
        max_new_tokens=1024,
    ),
    "mt_bench": Benchmark(
        about="80 questions of two turns, rated by a judge from 1 to 10",
        source="arXiv:2306.05685",
        kind="judged",
        read=_alone(_mt_bench),
        measures={"rating": Measure("mean rating, 1 to 10")},
        max_new_tokens=1024,
    ),
}


def benchmark_of(task: str) -> Benchmark:
    """The benchmark of a task: `NAME`, or `NAME-LABEL` for another file of the same.

    Raises:
      ConfigError: there is none of this name, or the label is no part of a file name.
    """
    name, _, label = task.partition("-")
    if name not in BENCHMARKS:
        raise ConfigError(f"tasks.{task}: no such task; there are {', '.join(BENCHMARKS)}")
    if label and not re.fullmatch(r"[\w.-]+", label):
        raise ConfigError(f"tasks.{task}: expected letters, digits, - and _ after {name}-")
    return BENCHMARKS[name]
