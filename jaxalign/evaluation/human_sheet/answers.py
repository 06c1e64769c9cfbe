"""Files of models' answers, in each layout that `jaxalign generate` writes, matched by their prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.data.files import rows_of
from jaxalign.errors import ConfigError, DataError
from jaxalign.inference.questions import questions_of

# (role, text) of each turn: a prompt ends with the user's, an answer begins and ends with the assistant's.
Said = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class ModelAnswers:
    """The answers of one model.

    Attributes:
      path: of their file.
      model: its name.
      answers: prompts, without space around them, with the first answer to each, in the file's order.
      prompts: these prompts as they are written.
      doubled: prompts of the further answers, which are left out: once for each of these.
    """

    path: str
    model: str
    answers: Mapping[Said, Said]
    prompts: Mapping[Said, Said]
    doubled: tuple[Said, ...] = ()


def read_model_answers(path: str, *, name: str = "", questions: str = "") -> ModelAnswers:
    """The answers of a file.

    Rows are plain (`prompt` as text or messages, `completion`), of AlpacaEval (`instruction`, `input`, `output`,
    `generator`) or of MT-bench (`question_id`, `model_id`, `choices`), whose questions are in a file of their own. An
    AlpacaEval row asks what a plain row with the instruction, a blank line and the input asks. Space around a prompt
    does not matter. Several samples of a prompt are doubled answers: the first counts.

    Args:
      path: any kind of file that `data.files` reads.
      name: of the model; empty takes it from the rows, or else from the file's name.
      questions: MT-bench's questions.

    Raises:
      DataError: a row of no such layout, of another model than the first, or of a question that is not there.
    """
    asked = _bench_questions(questions) if questions else {}
    answers: dict[Said, Said] = {}
    prompts: dict[Said, Said] = {}
    doubled: list[Said] = []
    model = None
    for place, row in rows_of(path):
        if isinstance(row, DataError):
            raise row
        prompt, samples = _read(place, row, asked, questions)
        called = str(row.get("generator") or row.get("model_id") or "")
        if model is None:
            model = called
        elif called != model:
            raise DataError(
                f"{place}: expected an answer of {model or 'no named model'}, got one of {called}"
            )
        plainly = shown(prompt)
        doubled += [plainly] * (len(samples) - (plainly not in answers))
        answers.setdefault(plainly, samples[0])
        prompts.setdefault(plainly, prompt)
    stem = Path(path).name.partition(".")[0]
    return ModelAnswers(
        path=path, model=name or model or stem, answers=answers, prompts=prompts, doubled=tuple(doubled)
    )


def read_all(
    paths: Sequence[str], *, names: Sequence[str] = (), questions: str = ""
) -> tuple[ModelAnswers, ...]:
    """The answers of several files, whose models have different names.

    Raises:
      ConfigError: not as many names as files, or one name twice.
      DataError: as `read_model_answers`.
    """
    if names and len(names) != len(paths):
        raise ConfigError(f"names: expected one for each of the {len(paths)} files, got {len(names)}")
    called = names or [""] * len(paths)
    found = tuple(
        read_model_answers(path, name=name, questions=questions)
        for path, name in zip(paths, called, strict=True)
    )
    models = [one.model for one in found]
    for place, model in enumerate(models):
        if model in models[:place]:
            first = found[models.index(model)].path
            raise ConfigError(f"names: {found[place].path} and {first} are both of {model}; give each a name")
    return found


def common_prompts(several: Sequence[ModelAnswers]) -> tuple[list[Said], dict[str, tuple[Said, ...]]]:
    """The prompts that all models answered, in the first's order; and of each model those that only others did.

    Raises:
      DataError: no prompt is common to all.
    """
    every = list(dict.fromkeys(prompt for one in several for prompt in one.answers))
    missing = {one.model: tuple(prompt for prompt in every if prompt not in one.answers) for one in several}
    common = [prompt for prompt in every if all(prompt in one.answers for one in several)]
    if not common:
        told = ", ".join(f"{one.path} has {len(one.answers)}" for one in several)
        raise DataError(f"expected prompts that all files have, got none ({told})")
    return common, missing


def messages(said: Said) -> list[dict[str, str]]:
    """As a list of role and content."""
    return [{"role": role, "content": text} for role, text in said]


def shown(said: Said) -> Said:
    """Without space around the texts, by which a rater could tell models apart."""
    return tuple((role, text.strip()) for role, text in said)


def plain(said: Said) -> str | list[dict[str, str]]:
    """The text of a lone turn of the user or the assistant, else messages."""
    return said[0][1] if len(said) == 1 and said[0][0] in ("user", "assistant") else messages(said)


def _read(
    place: str, row: Mapping[str, Any], asked: Mapping[Any, Said], questions: str
) -> tuple[Said, list[Said]]:
    """The prompt of a row and its answers, at least one."""
    if "question_id" in row and "choices" in row:
        return _mt_bench(place, row, asked, questions)
    # Before `prompt` and `completion`, which such rows have too.
    if "instruction" in row and "output" in row:
        instruction, given = _text(place, row, "instruction"), row.get("input") or ""
        prompt = f"{instruction}\n\n{given}" if isinstance(given, str) and given.strip() else instruction
        return (("user", prompt),), [(("assistant", _text(place, row, "output")),)]
    if "prompt" in row and "completion" in row:
        return _prompt(place, row["prompt"]), [(("assistant", _text(place, row, "completion")),)]
    raise DataError(
        f"{place}: expected prompt and completion, instruction and output, or question_id and choices; got "
        f"{', '.join(map(str, row))}"
    )


def _text(place: str, row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise DataError(f"{place}: expected a text in {name!r}, got {row[name]!r:.60}")
    return row[name]


def _prompt(place: str, value: Any) -> Said:
    if isinstance(value, str):
        return (("user", value),)
    turns = value if isinstance(value, list) else []
    said = [
        (turn["role"], turn["content"])
        for turn in turns
        if isinstance(turn, Mapping) and all(isinstance(turn.get(x), str) for x in ("role", "content"))
    ]
    if not said or len(said) < len(turns):
        raise DataError(
            f"{place}: expected a text or messages with role and content in 'prompt', got {value!r:.60}"
        )
    return tuple(said)


def _bench_questions(path: str) -> dict[Any, Said]:
    """The user's turns of each question, by its id."""
    found = questions_of(path)
    if found is None or found[0].layout != "mt_bench":
        raise DataError(f"{path}: expected MT-bench questions, with question_id and turns")
    return {one.columns["question_id"]: tuple(("user", turn) for turn in one.turns) for one in found}


def _mt_bench(
    place: str, row: Mapping[str, Any], asked: Mapping[Any, Said], questions: str
) -> tuple[Said, list[Said]]:
    number, choices = row["question_id"], row["choices"]
    if not asked:
        raise DataError(f"{place}: an MT-bench answer has no question; give the file of questions")
    if number not in asked:
        raise DataError(f"{place}: there is no question {number!r} in {questions}")
    turns, samples = asked[number], []
    for choice in choices if isinstance(choices, list) else []:
        texts = choice.get("turns") if isinstance(choice, Mapping) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{place}: expected a list of texts in 'turns' of each of 'choices'")
        if len(texts) != len(turns):
            raise DataError(f"{place}: expected an answer to each of {len(turns)} turns, got {len(texts)}")
        answers = [("assistant", text) for text in texts]
        # What follows the first question: answer, question, answer.
        samples.append(tuple(x for pair in zip(turns, answers, strict=True) for x in pair)[1:])
    if not samples:
        raise DataError(f"{place}: expected a list of answers in 'choices', got {choices!r:.60}")
    return turns[:1], samples
