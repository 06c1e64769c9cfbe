"""What can be measured of any written answers: overlap with references, listed words, rewards, distance, diversity."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.data.files import rows_of
from jaxalign.errors import DataError
from jaxalign.evaluation.benchmarks import Measure
from jaxalign.evaluation.judged import prompt_text
from jaxalign.evaluation.judging.judges import RewardModelJudge
from jaxalign.evaluation.metrics.contamination import contaminated_rows
from jaxalign.evaluation.metrics.diversity import distinct_n, self_bleu
from jaxalign.evaluation.metrics.overlap import bleu, chrf, rouge
from jaxalign.evaluation.metrics.similarity import greedy_matching, token_embeddings
from jaxalign.evaluation.metrics.toxicity import has_listed_word
from jaxalign.evaluation.policy_kl import policy_kl
from jaxalign.evaluation.subject import Subject
from jaxalign.evaluation.summary import Figure, Item, figure
from jaxalign.evaluation.tasks.written import Written

Row = Mapping[str, Any]

MEASURES = {
    "reward": Measure("the reward that the evaluation names"),
    "gold": Measure("the second reward, which nothing was trained on"),
    "kl": Measure("KL from the reference of the answer, exact at each token", better="", unit="nats"),
    "sampled_kl": Measure("log-prob of the answer less that under the reference", better="", unit="nats"),
    "entropy": Measure("entropy of the next token, mean over the answer's", better="", unit="nats"),
    "bleu": Measure("BLEU with the reference, 0 to 100"),
    "chrf": Measure("chrF with the reference, 0 to 100"),
    "rouge1": Measure("ROUGE-1 F1 with the reference"),
    "rouge2": Measure("ROUGE-2 F1 with the reference"),
    "rougeL": Measure("ROUGE-L F1 with the reference"),
    "similarity": Measure(
        "greedy matching of hidden states with the reference's (compare on one encoder alone)"
    ),
    "listed_word": Measure(
        "the answer has a word of the list (a crude sign of toxicity)", better="lower", rate=True
    ),
    "toxicity": Measure("probability of toxicity by the classifier", better="lower"),
    "rating": Measure("the judge's rating, 1 to 10"),
    "distinct_1": Measure("different words as a part of all", better=""),
    "distinct_2": Measure("different pairs of words as a part of all", better=""),
    "self_bleu": Measure(
        "BLEU of each answer with the others, 0 to 100: high where all are alike", better="lower"
    ),
}


def add_overlap(questions: Sequence[Written], items: Sequence[Item]) -> None:
    """BLEU, chrF and ROUGE of the first answer to each question that has a reference."""
    with_reference = [i for i, question in enumerate(questions) if question.references]
    if not with_reference:
        return
    texts = [items[i]["answers"][0] for i in with_reference]
    references = [list(questions[i].references) for i in with_reference]
    overlaps = {"bleu": bleu(texts, references), "chrf": chrf(texts, references), **rouge(texts, references)}
    for name, overlap in overlaps.items():
        for i, value in zip(with_reference, overlap.per_text, strict=True):
            items[i]["scores"][name] = float(value)


def add_similarity(questions: Sequence[Written], items: Sequence[Item], encoder: Any, tokenizer: Any) -> None:
    """BERTScore-style F1 of the first answer and the closest reference, where a question has one."""
    places = [i for i, question in enumerate(questions) if question.references]
    texts = [items[i]["answers"][0] for i in places]
    references = [text for i in places for text in questions[i].references]
    answers = token_embeddings(encoder, tokenizer, texts)
    theirs = iter(token_embeddings(encoder, tokenizer, references))
    for i, answer in zip(places, answers, strict=True):
        own = [greedy_matching(answer.vectors, next(theirs).vectors).f1 for _ in questions[i].references]
        items[i]["scores"]["similarity"] = max(own)


def add_listed_words(items: Sequence[Item], words: Sequence[str]) -> None:
    """Which share of a question's answers has a word of the list."""
    for item in items:
        item["scores"]["listed_word"] = float(np.mean(has_listed_word(item["answers"], words)))


def add_rewards(
    questions: Sequence[Written],
    items: Sequence[Item],
    reward: Any,
    subject: Subject,
    *,
    name: str = "reward",
    turned: Callable[[float], float] = float,
) -> list[str]:
    """The mean reward (`turned` into something else) of a question's answers, and pass@k where rewards are 0 or 1.

    Returns:
      What a reader must know.
    """
    judge = RewardModelJudge(reward, chat=subject.chat_model.format if hasattr(reward, "score") else None)
    owner = [i for i, item in enumerate(items) for _ in item["answers"]]
    columns = {key: [questions[i].columns.get(key) for i in owner] for key in _shared_columns(questions)}
    said = judge.rate(
        [prompt_text(questions[i]) for i in owner],
        [answer for item in items for answer in item["answers"]],
        columns=columns,
    )
    for i, item in enumerate(items):
        own = [turned(value) for value, at in zip(said, owner, strict=True) if at == i and value is not None]
        item["scores"][name] = float(np.mean(own)) if own else None
        if len(own) > 1 and {*own} <= {0.0, 1.0}:
            item["scores"][f"{name}_pass@{len(own)}"] = max(own)
    return [f"{judge.unread} of {judge.asked} answers have no {name}"] * bool(judge.unread)


def _shared_columns(questions: Sequence[Written]) -> list[str]:
    names = dict.fromkeys(name for question in questions for name in question.columns)
    return [name for name in names if all(name in question.columns for question in questions)]


def add_distance(
    questions: Sequence[Written],
    rows: Mapping[int, Row],
    items: Sequence[Item],
    subject: Subject,
    reference: Any,
) -> None:
    """KL from a reference, and entropy, of a question's first answer."""
    ids = [subject.encode(question.prompt) for question in questions]
    room = subject.chat_model.context
    pairs = []
    for i, prompt in enumerate(ids):
        answer = rows[i]["tokens"][0]
        pairs.append((prompt[-max(1, room - len(answer)) :], answer))
    found = policy_kl(subject.model, reference, pairs, batch_size=subject.batch_size)
    for item, kl, sampled, entropy in zip(items, *found, strict=True):
        item["scores"] |= {"kl": float(kl), "sampled_kl": float(sampled), "entropy": float(entropy)}


def corpus_figures(items: Sequence[Item], *, with_bleu: bool, seed: int = 0) -> dict[str, Figure]:
    """Figures of all first answers together, without interval: distinct-1 and -2, self-BLEU where there are two."""
    texts = [item["answers"][0] for item in items]
    values: dict[str, float] = {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2)}
    if with_bleu and len(texts) > 1:
        values["self_bleu"] = self_bleu(texts, seed=seed).mean
    return {
        name: figure([], MEASURES[name]) | {"value": value, "count": len(texts)}
        for name, value in values.items()
        if not math.isnan(value)
    }


def contamination(prompts: Sequence[str], files: Sequence[str]) -> list[str]:
    """A line for a reader where questions share 13 words in a row with training files.

    What all prompts begin with (solved examples, instructions) is left out first.
    """
    header = _common_beginning(prompts) if len(prompts) > 1 else 0
    found = contaminated_rows([prompt[header:] for prompt in prompts], _training_texts(files))
    if not found:
        return []
    first = found[0]
    return [
        f"{len(found)} of the {len(prompts)} questions share 13 words in a row (short ones all their words) with "
        f"{', '.join(files)}; the first is question {first.row + 1}: {first.ngram[:100]!r}"
    ]


def _common_beginning(prompts: Sequence[str]) -> int:
    """Letters that all begin with, up to the last line end among them."""
    low, high = min(prompts), max(prompts)
    same = next(
        (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
    )
    return low.rfind("\n", 0, same) + 1


def _training_texts(files: Sequence[str]) -> Iterator[str]:
    for file in files:
        for _, row in rows_of(file):
            if isinstance(row, DataError):
                raise row
            yield " ".join(_texts_in(row))


def _texts_in(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts_in(part)
