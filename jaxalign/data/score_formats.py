"""Layouts of scores: several ranked completions, completions with a score, solutions with labeled steps, trees."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.asking import prompt_in
from jaxalign.data.fields import (
    BadRow,
    Fields,
    Refused,
    Unusable,
    first_of,
    index_below,
    kind_name,
    listed,
    number,
    text,
)
from jaxalign.data.layouts import Format, Options
from jaxalign.data.records import (
    Completion,
    Demonstration,
    Message,
    Prompt,
    Ranking,
    Rating,
    Record,
    Stepwise,
    Turns,
)
from jaxalign.data.turns import ROLES, messages, split_answer, transcript_turns

_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def _ranking(prompt: Prompt, answers: Sequence[Completion], scores: Sequence[float]) -> Ranking:
    if len(answers) < 2:
        raise Unusable("one answer, so nothing to compare")
    if len(set(scores)) == 1:
        raise Unusable("tie")
    return Ranking(prompt, tuple(answers), scores.index(max(scores)), tuple(scores))


def _best_of_n(row: Fields, options: Options) -> Record:
    names = sorted((n for n in row if re.fullmatch(r"sample\d+", n)), key=lambda n: int(n[6:]))

    def decoded(name: str) -> str:
        value = row[name]
        if isinstance(value, str):
            return value
        if isinstance(value, list) and all(isinstance(v, int) for v in value):
            if options.decode is None:
                raise BadRow(
                    f"field {name!r} contains token ids: set data.label_tokenizer to their tokenizer"
                )
            return options.decode(value)
        raise BadRow(f"field {name!r}: expected text or a list of token ids, got {kind_name(value)}")

    best = index_below(row["best"], "best", len(names))
    prompt = prompt_in(row, "query") if isinstance(row["query"], str) else decoded("query")
    return Ranking(prompt, tuple(decoded(n) for n in names), best)


def _ultrafeedback(row: Fields, options: Options) -> Record:
    completions = listed(row["completions"])
    if not isinstance(completions, list) or not all(isinstance(c, Mapping) for c in completions):
        raise BadRow("field 'completions': expected a list of objects with response and scores")
    if len(completions) < 2:
        raise Unusable("one answer, so nothing to compare")
    named = options.score_field
    if named != "score" and named not in completions[0]:
        there = ", ".join(map(str, completions[0]))
        raise Refused(f"data.score_field: there is no {named!r} in 'completions', which have {there}")
    name = next((n for n in (named, "fine-grained_score", "overall_score") if n in completions[0]), "")
    answers, scores = [], []
    for place, completion in enumerate(completions):
        answers.append(text(completion, "response"))
        if name:
            scores.append(number(completion.get(name), f"completions.{name}"))
        else:
            scores.append(_mean_rating(completion.get("annotations"), place))
    return _ranking(prompt_in(row, "instruction"), answers, scores)


def _mean_rating(annotations: Any, place: int) -> float:
    """Mean over the aspects that were rated."""
    ratings = []
    for name, aspect in annotations.items() if isinstance(annotations, Mapping) else ():
        aspect = aspect[0] if isinstance(aspect, list) and aspect else aspect
        rating = aspect.get("Rating") if isinstance(aspect, Mapping) else None
        if rating not in (None, "N/A"):
            ratings.append(number(rating, f"completions.annotations.{name}"))
    if not ratings:
        raise BadRow(f"field 'completions': {place}: expected a score or annotations with ratings")
    return sum(ratings) / len(ratings)


def _nectar(row: Fields, options: Options) -> Record:
    prompt = text(row, "prompt")
    turns = transcript_turns(prompt, options.human, options.assistant)
    if turns and turns[-1] == Message("assistant", ""):
        turns = turns[:-1]
    answers = listed(row["answers"])
    if not isinstance(answers, list) or not all(isinstance(a, Mapping) for a in answers):
        raise BadRow("field 'answers': expected a list of objects with answer and rank")
    ranks = [number(a.get("rank"), "answers.rank") for a in answers]
    return _ranking(turns or prompt, [text(a, "answer").strip() for a in answers], [-rank for rank in ranks])


def _candidates(row: Fields, options: Options) -> Record:
    del options
    answers = row["candidates"]
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise BadRow("field 'candidates': expected a list of texts")
    prompt = prompt_in(row, "prompt")
    if "best" in row:
        return Ranking(prompt, tuple(answers), index_below(row["best"], "best", len(answers)))
    scores = row["scores"]
    if not isinstance(scores, list) or len(scores) != len(answers):
        raise BadRow(f"field 'scores': expected {len(answers)} numbers, one for each candidate")
    return _ranking(prompt, answers, [number(score, "scores") for score in scores])


def _scored(row: Fields, options: Options) -> Record:
    del options
    prompt, answer = split_answer(messages(row["conversation"], "conversation", row), "conversation")
    score = number(row["meta_eval_score"], "meta_eval_score")
    return Rating(prompt, answer, score, None, str(row.get("score_reason") or ""))


def _helpsteer(row: Fields, options: Options) -> Record:
    name = options.score_field if options.score_field in _HELPSTEER else "helpfulness"
    return Rating(prompt_in(row, "prompt"), text(row, "response"), number(row[name], name))


def _stepwise(row: Fields, options: Options) -> Record:
    del options
    steps, labels = row["completions"], row["labels"]
    for name, value in (("completions", steps), ("labels", labels)):
        if not isinstance(value, (list, tuple)):
            raise BadRow(f"field {name!r}: expected a list, one for each step, got {kind_name(value)}")
    if not steps:
        raise BadRow("field 'completions': expected at least one step, got an empty list")
    if len(steps) != len(labels):
        raise BadRow(f"field 'labels': expected one for each of the {len(steps)} steps, got {len(labels)}")
    for place, (step, label) in enumerate(zip(steps, labels, strict=True), 1):
        if not isinstance(step, str):
            raise BadRow(f"field 'completions': step {place}: expected text, got {kind_name(step)}")
        if not isinstance(label, (bool, int, float)) or not 0 <= label <= 1:
            raise BadRow(
                f"field 'labels': step {place}: expected true, false or a number in [0, 1], got {label!r}"
            )
    return Stepwise(
        prompt_in(row, first_of(row, "prompt", "question")), tuple(steps), tuple(map(float, labels))
    )


def _prm800k(row: Fields, options: Options) -> Record:
    """The solution that the labelling followed; neutral steps count as right, as in the paper."""
    del options
    question, labels = row["question"], row["label"]
    problem = question.get("problem") if isinstance(question, Mapping) else None
    given = labels.get("steps") if isinstance(labels, Mapping) else None
    if not isinstance(problem, str) or not isinstance(given, list):
        raise BadRow("expected question.problem as text and label.steps as a list")
    steps, right = [], []
    for place, step in enumerate(given, 1):
        choice, goes_on = _followed(step, place)
        if choice is None:
            break
        rating, said = choice.get("rating"), choice.get("text")
        if rating not in (-1, 0, 1) or not isinstance(said, str):
            raise BadRow(f"field 'label': step {place}: expected text and a rating of -1, 0 or 1")
        steps.append(said)
        right.append(float(rating >= 0))
        if not goes_on:
            break
    if not steps:
        raise Unusable("no step with a rating")
    return Stepwise(problem, tuple(steps), tuple(right))


def _followed(step: Any, place: int) -> tuple[Mapping[str, Any] | None, bool]:
    """The proposal that the labelling went on with, and whether it did; none where it stopped without a verdict."""
    completions = (step.get("completions") or []) if isinstance(step, Mapping) else None
    if not isinstance(completions, list) or not all(isinstance(c, Mapping) for c in completions):
        raise BadRow(f"field 'label': step {place}: expected an object with a list of completions")
    chosen, by_hand = step.get("chosen_completion"), step.get("human_completion")
    if chosen is not None:
        return completions[index_below(chosen, "chosen_completion", len(completions))], True
    if isinstance(by_hand, Mapping):
        return {"rating": 1, "text": by_hand.get("text")}, True
    # Where every proposal was wrong, the labelling ended here.
    return next((c for c in completions if c.get("rating") == -1), None), False


_STEP_TAG = "ки"


def _math_shepherd(row: Fields, options: Options) -> Record:
    """Steps end with a tag, where the label's text has a plus or a minus."""
    del options
    given, marked = text(row, "input"), text(row, "label")
    parts = given.split(_STEP_TAG)
    if parts[-1].strip():
        raise BadRow(f"field 'input': expected every step to end with {_STEP_TAG!r}")
    labels, place = [], 0
    for part in parts[:-1]:
        place += len(part)
        sign = marked[place : place + 1] if marked.startswith(part, place - len(part)) else ""
        if sign not in ("+", "-"):
            raise BadRow("field 'label': expected the text of 'input' with + or - for each step tag")
        labels.append(float(sign == "+"))
        place += 1
    question, mark, first = parts[0].partition("Step 1:")
    if not mark:
        raise BadRow("field 'input': expected the question before 'Step 1:'")
    steps = [mark + first, *parts[1:-1]]
    return Stepwise(question.strip(), tuple(step.strip() for step in steps), tuple(labels))


def _tree(row: Fields, options: Options) -> Record:
    """A tree of messages: the best path as a chat; for comparisons the ranked replies where it first has several."""
    row.seen.add("message_tree_id")
    turns: list[Message] = []
    node: Any = row["prompt"]
    while node is not None:
        if not isinstance(node, Mapping) or not isinstance(node.get("text"), str):
            raise BadRow("field 'prompt': expected messages with text, role and replies")
        role = ROLES.get(str(node.get("role")).lower(), "")
        if role not in ("user", "assistant"):
            raise BadRow(f"field 'prompt': unknown role {str(node.get('role'))[:40]!r}")
        turns.append(Message(role, node["text"]))
        replies = node.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(r, Mapping) for r in replies):
            raise BadRow("field 'prompt': expected replies as a list of messages")
        replies = [r for r in replies if not r.get("deleted")]
        ranked = [r for r in replies if r.get("rank") is not None]
        if options.kind in ("ranking", "comparison", "label") and role == "user" and len(ranked) > 1:
            scores = [-number(r["rank"], "rank") for r in ranked]
            return _ranking(tuple(turns), [text(r, "text") for r in ranked], scores)
        node = min(ranked, key=lambda r: number(r["rank"], "rank")) if ranked else next(iter(replies), None)
    if options.kind in ("ranking", "comparison", "label"):
        raise Unusable("no ranked replies")
    return _chat_until_answer(tuple(turns))


def _chat_until_answer(turns: Turns) -> Record:
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0:
        raise Unusable("no assistant turn")
    return Demonstration(turns[: last + 1], None)


def _objects(name: str, key: str) -> Any:
    """A test of whether a field is a list of objects with a key."""

    def test(row: Mapping[str, Any]) -> bool:
        value = listed(row[name])
        return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and key in value[0]

    return test


SCORES: dict[str, Format] = {
    "oasst_tree": Format(
        ("message_tree_id", "prompt"), _tree, lambda row: isinstance(row["prompt"], Mapping)
    ),
    "best_of_n": Format(("query", "sample0", "sample1", "best"), _best_of_n),
    "ultrafeedback": Format(
        ("instruction", "completions"), _ultrafeedback, _objects("completions", "response")
    ),
    "nectar": Format(("prompt", "answers"), _nectar, _objects("answers", "rank")),
    "candidates": Format(("prompt", "candidates", "best|scores"), _candidates),
    "scored_conversation": Format(
        ("conversation", "meta_eval_score"),
        _scored,
        redundant=frozenset({"scores"}),
        says="meta_eval_score",
    ),
    "helpsteer": Format(
        ("prompt", "response", *_HELPSTEER),
        _helpsteer,
        redundant=frozenset(_HELPSTEER),
        says="helpfulness",
    ),
    "stepwise": Format(("prompt|question", "completions", "labels"), _stepwise),
    "prm800k": Format(("question", "label"), _prm800k, lambda row: isinstance(row["label"], Mapping)),
    "math_shepherd": Format(
        ("input", "label"),
        _math_shepherd,
        lambda row: isinstance(row["input"], str) and _STEP_TAG in row["input"],
    ),
}
"""By name; detection takes them in this order."""
