"""Layouts of comparisons: a prompt with a chosen and a rejected completion."""

import re
from collections.abc import Mapping
from typing import Any

from jaxalign.data.asking import functions, joined, prompt_in
from jaxalign.data.fields import BadRow, Fields, Unusable, index_below, is_label, label, left_of, number, text
from jaxalign.data.layouts import Format, Options, Read
from jaxalign.data.records import Comparison, Completion, Message, Prompt, Record, Turns
from jaxalign.data.turns import (
    alternate,
    check_answered,
    completion_of,
    extra_id_turns,
    from_json,
    messages,
    transcript,
    turns_in,
)

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
)
# Where a row says which answer is chosen, these say it again, or more finely.
_FINER = frozenset(
    "score scores rating ratings reward rewards rank ranks quality helpfulness correctness".split()
)


def pair(
    row: Fields, prompt: Prompt, chosen: Completion, rejected: Completion, margin: float = 0.0
) -> Comparison:
    """A comparison with its margin: the row's own, or the difference of its two scores.

    Raises:
      Unusable: the two are the same.
      BadRow: a margin or score that is no number.
    """
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    if "margin" in row and row["margin"] not in (None, ""):
        margin = number(row["margin"], "margin")
    elif len(row.row) > 3:
        for better, worse in _SCORES:
            if better in row and worse in row and None not in (row[better], row[worse]):
                margin = number(row[better], better) - number(row[worse], worse)
                break
    return Comparison(prompt, chosen, rejected, margin)


def parted(chosen: Turns, rejected: Turns) -> tuple[Turns, Completion, Completion]:
    """(what two dialogues share, the rest of each).

    Raises:
      Unusable: they are the same, or differ in what the user says.
      BadRow: one does not end with an answer.
    """
    check_answered(chosen, "chosen")
    check_answered(rejected, "rejected")
    common = 0
    for one, other in zip(chosen, rejected, strict=False):
        # What an answer counts says nothing where it is asked upon.
        if (one.role, one.content, one.extra) != (other.role, other.content, other.extra):
            break
        common += 1
    if common == len(chosen) == len(rejected):
        raise Unusable("chosen equals rejected")
    rests = chosen[common:], rejected[common:]
    said = [[turn.content for turn in rest if turn.role == "user"] for rest in rests]
    if said[0] != said[1] or not all(rest and rest[0].role == "assistant" for rest in rests):
        raise Unusable("dialogues differ before the last turn")
    return chosen[:common], completion_of(chosen[common:]), completion_of(rejected[common:])


def preference(ask: str) -> Read:
    """Reads a prompt in the field `ask`, `chosen` and `rejected`: texts, or turns that may repeat the prompt."""

    def read(row: Fields, options: Options) -> Record:
        chosen = row["chosen"]
        if isinstance(chosen, str) and not turns_in(chosen, "chosen"):
            rejected = text(row, "rejected")
            if not turns_in(rejected, "rejected"):
                return pair(row, prompt_in(row, ask), chosen, rejected)
        turns = messages(chosen, "chosen", row)
        before, one, other = parted(turns, messages(row["rejected"], "rejected", row))
        _look_at_copies(row, turns)
        prompt = prompt_in(row, ask) if row.peek(ask) not in (None, "", []) else ()
        return pair(row, joined(prompt, before, ask, "chosen", options), one, other)

    return read


def _look_at_copies(row: Fields, chosen: Turns) -> None:
    """Marks as looked at what only repeats the chosen dialogue."""
    for name in ("messages", "conversation"):
        copy = row.peek(name)
        if not isinstance(copy, list) or not copy or not isinstance(copy[0], Mapping):
            continue
        said = [t.get("content", t.get("input")) for t in copy if isinstance(t, Mapping)]
        if all(any(s == turn.content for turn in chosen) for s in said):
            row.seen.add(name)


def _preference_chat(row: Fields, options: Options) -> Record:
    chosen = messages(row["chosen"], "chosen", row)
    before, one, other = parted(chosen, messages(row["rejected"], "rejected", row))
    _look_at_copies(row, chosen)
    return pair(row, joined("", before, "prompt", "chosen", options), one, other)


def _hh(row: Fields, options: Options) -> Record:
    turns = [
        transcript(text(row, name), options.human, options.assistant, name) for name in ("chosen", "rejected")
    ]
    return pair(row, *parted(*turns))


def _pku(row: Fields, options: Options) -> Record:
    name = {"better": "better_response_id", "safer": "safer_response_id"}.get(options.dimension)
    if name is None:
        raise BadRow(f"data.dimension: expected better or safer, got {options.dimension!r}")
    best = index_below(row.get(name), name, 2)
    answers = (text(row, "response_0"), text(row, "response_1"))
    return pair(row, prompt_in(row, "prompt"), answers[best], answers[1 - best])


def _sharegpt_pair(row: Fields, options: Options) -> Record:
    prompt = messages(row["conversations"], "conversations", row)
    before, one, other = parted(*(messages(row[name], name, row) for name in ("chosen", "rejected")))
    return pair(row, joined(prompt, before, "conversations", "chosen", options), one, other)


def _openai_pair(row: Fields, options: Options) -> Record:
    given = row["input"]
    inner = Fields(given if isinstance(given, Mapping) else {})
    prompt = messages(inner.get("messages"), "input.messages", row)
    tools = functions(inner, ["tools"]) if "tools" in inner else []
    row.inside.update((f"input.{key}", value) for key, value in left_of(inner).items())
    sides = [messages(row[name], name, row) for name in ("preferred_output", "non_preferred_output")]
    before, one, other = parted(*sides)
    asks = joined(prompt, before, "input.messages", "preferred_output", options)
    return pair(row, (*tools, *asks), one, other)


def _rejected_beside(row: Fields, options: Options) -> Record:
    del options
    turns = messages(row["messages"], "messages", row)
    rejected = row["rejected_response"]
    if isinstance(rejected, list):
        other = messages(rejected, "rejected_response", row)
    else:
        other = (Message("assistant", text(row, "rejected_response")),)
    check_answered(turns, "messages")
    return pair(row, *parted(turns, (*turns[:-1], *other)))


def _ranked_outputs(row: Fields, options: Options) -> Record:
    del options
    outputs = row["output"]
    if not isinstance(outputs, list) or len(outputs) != 2 or not all(isinstance(o, str) for o in outputs):
        raise BadRow("field 'output': expected the chosen and the rejected completion, as two texts")
    return pair(row, prompt_in(row, "instruction"), *outputs)


def _by_winner(
    row: Fields, prompt: Prompt, answers: tuple[Completion, Completion], winner: int | None
) -> Record:
    """A comparison of two answers of which the first (0), the second (1) or neither (None) is better."""
    if winner is None:
        raise Unusable("tie")
    return pair(row, prompt, answers[winner], answers[1 - winner])


def _annotated_pair(row: Fields, options: Options) -> Record:
    del options
    votes = [row[name] for name in sorted(row) if re.fullmatch(r"annotator\d+", name)]
    if any(v not in (0, 1, 2) for v in votes):
        raise BadRow(f"fields annotator1..: expected 0 (tie), 1 or 2, got {votes}")
    first, second = votes.count(1), votes.count(2)
    answers = (text(row, "response1"), text(row, "response2"))
    winner = None if first == second else int(second > first)
    return _by_winner(row, prompt_in(row, "instruction"), answers, winner)


def _auto_j(row: Fields, options: Options) -> Record:
    del options
    winner = index_below(row["label"], "label", 3)
    answers = (text(row, "response 1"), text(row, "response 2"))
    return _by_winner(row, prompt_in(row, "prompt"), answers, winner if winner < 2 else None)


def _alpaca_eval(row: Fields, options: Options) -> Record:
    del options
    if row["preference"] is None:
        raise Unusable("tie")
    preferred = number(row["preference"], "preference")
    if preferred and not 1 <= preferred <= 2:
        raise BadRow(f"field 'preference': expected 1 to 2, or 0 for a tie, got {preferred:g}")
    answers = (text(row, "output_1"), text(row, "output_2"))
    winner = None if preferred in (0, 1.5) else int(preferred > 1.5)
    return _by_winner(row, prompt_in(row, "instruction"), answers, winner)


def _strength(prompt: str, first: str, second: str, name: str) -> Read:
    """Reads answers with a strength from -3 (the first is much better) to 3 (the second is), as HelpSteer has it."""

    def read(row: Fields, options: Options) -> Record:
        del options
        strength = number(row[name], name)
        if not -3 <= strength <= 3:
            raise BadRow(f"field {name!r}: expected -3 to 3, got {strength:g}")
        answers = (text(row, first), text(row, second))
        if strength == 0:
            raise Unusable("tie")
        best = int(strength > 0)
        return pair(row, prompt_in(row, prompt), answers[best], answers[1 - best], abs(strength))

    return read


def _shp(row: Fields, options: Options) -> Record:
    del options
    answers = (text(row, "human_ref_A"), text(row, "human_ref_B"))
    return _by_winner(row, text(row, "history"), answers, 1 - index_below(row["labels"], "labels", 2))


def _webgpt(row: Fields, options: Options) -> Record:
    del options
    question = row["question"]
    question = question.get("full_text") if isinstance(question, Mapping) else question
    if not isinstance(question, str):
        raise BadRow("field 'question': expected an object with full_text")
    scores = [number(row[name], name) for name in ("score_0", "score_1")]
    if scores[0] == scores[1]:
        raise Unusable("tie")
    best = int(scores[1] > scores[0])
    answers = (text(row, "answer_0"), text(row, "answer_1"))
    return pair(row, question, answers[best], answers[1 - best], abs(scores[0] - scores[1]))


def _summaries(row: Fields, options: Options) -> Record:
    del options
    info, summaries = row["info"], row["summaries"]
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise BadRow("field 'summaries': expected two objects with text")
    texts = [text(s if isinstance(s, Mapping) else {}, "text") for s in summaries]
    best = index_below(row["choice"], "choice", 2)
    return pair(row, _post(info), texts[best].strip(), texts[1 - best].strip())


def _post(info: Any) -> str:
    """What is to be summarized, in the words of the paper's prompts."""
    if isinstance(info, Mapping) and isinstance(info.get("post"), str):
        parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post")]
        return "\n\n".join([*(f"{head}{info[key]}" for head, key in parts if info.get(key)), "TL;DR:"])
    if isinstance(info, Mapping) and isinstance(info.get("article"), str):
        return f"{info['article']}\n\nTL;DR:"
    raise BadRow("field 'info': expected an object with a post or an article")


def _arena(row: Fields, options: Options) -> Record:
    del options
    winner = _winner(row["winner"])
    sides = [messages(row[name], name, row) for name in ("conversation_a", "conversation_b")]
    if winner is None:
        raise Unusable("tie")
    return pair(row, *parted(sides[winner], sides[1 - winner]))


def _winner(value: Any) -> int | None:
    winner = {"model_a": 0, "a": 0, "model_b": 1, "b": 1}.get(str(value).lower())
    if winner is None and not str(value).lower().startswith(("tie", "both", "none")):
        raise BadRow(f"field 'winner': expected model_a, model_b or tie, got {str(value)[:40]!r}")
    return winner


def _arena_columns(row: Fields, options: Options) -> Record:
    del options
    given, first, second = (
        from_json(text(row, name), name) if isinstance(row[name], str) else row[name]
        for name in ("prompt", "response_a", "response_b")
    )
    won = [label(row, f"winner_{name}") for name in ("model_a", "model_b", "tie")]
    sides = [
        alternate(given, [a or "" for a in answers], "prompt") if isinstance(answers, list) else None
        for answers in (first, second)
    ]
    if None in sides or sum(won) != 1:
        raise BadRow("fields winner_...: expected lists of answers, and one winner or a tie")
    if won[2]:
        raise Unusable("tie")
    best = won.index(True)
    return pair(row, *parted(sides[best], sides[1 - best]))  # type: ignore[arg-type]


def _nemo_dpo(row: Fields, options: Options) -> Record:
    del options
    prompt = text(row, "prompt")
    answers = [text(row, name) for name in ("chosen_response", "rejected_response")]
    if "<extra_id_1>" in prompt:
        bare = [answer.removesuffix("<extra_id_1>").strip() for answer in answers]
        return pair(row, extra_id_turns(prompt), bare[0], bare[1])
    return pair(row, prompt, answers[0], answers[1])


def _marked(row: Mapping[str, Any]) -> bool:
    return isinstance(row["chosen"], str) and "Human:" in row["chosen"] and "Assistant:" in row["chosen"]


def _listed(row: Mapping[str, Any]) -> bool:
    chosen = row["chosen"]
    return isinstance(chosen, list) or (isinstance(chosen, str) and turns_in(chosen) is not None)


PREFERENCES: dict[str, Format] = {
    "pku_saferlhf": Format(("prompt", "response_0", "response_1"), _pku, redundant=frozenset({"is_safer"})),
    "sharegpt_pair": Format(("conversations", "chosen", "rejected"), _sharegpt_pair, redundant=_FINER),
    "instruction_pair": Format(
        ("instruction", "chosen", "rejected"), preference("instruction"), redundant=_FINER
    ),
    "annotated_pair": Format(("instruction", "response1", "response2", "annotator1"), _annotated_pair),
    "preference": Format(("prompt", "chosen", "rejected"), preference("prompt"), redundant=_FINER),
    "question_pair": Format(("question", "chosen", "rejected"), preference("question"), redundant=_FINER),
    "query_pair": Format(("query", "chosen", "rejected"), preference("query"), redundant=_FINER),
    "input_pair": Format(("input", "chosen", "rejected"), preference("input"), redundant=_FINER),
    "preference_chat": Format(("chosen", "rejected"), _preference_chat, _listed, redundant=_FINER),
    "hh_rlhf": Format(("chosen", "rejected"), _hh, _marked, redundant=_FINER),
    "openai_preference": Format(("input", "preferred_output", "non_preferred_output"), _openai_pair),
    "messages_and_rejected": Format(("messages", "rejected_response"), _rejected_beside),
    "nemo_dpo": Format(("prompt", "chosen_response", "rejected_response"), _nemo_dpo),
    "auto_j": Format(("prompt", "response 1", "response 2", "label"), _auto_j),
    "alpaca_eval": Format(("instruction", "output_1", "output_2", "preference"), _alpaca_eval),
    "ranked_outputs": Format(
        ("instruction", "output"), _ranked_outputs, lambda row: isinstance(row["output"], list)
    ),
    "helpsteer2_preference": Format(
        ("prompt", "response_1", "response_2", "preference_strength"),
        _strength("prompt", "response_1", "response_2", "preference_strength"),
    ),
    "helpsteer3": Format(
        ("context", "response1", "response2", "overall_preference"),
        _strength("context", "response1", "response2", "overall_preference"),
    ),
    "shp": Format(("history", "human_ref_A", "human_ref_B", "labels"), _shp),
    "webgpt": Format(("question", "answer_0", "answer_1", "score_0", "score_1"), _webgpt),
    "summarize_feedback": Format(("info", "summaries", "choice"), _summaries),
    "arena": Format(("conversation_a", "conversation_b", "winner"), _arena),
    "arena_columns": Format(
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        _arena_columns,
        lambda row: is_label(row["winner_model_a"]),
    ),
}
"""By name; detection takes them in this order."""
