"""Scores pairs of answers with a reward model, or with a policy by its log-probs; and what the scores are worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign import models
from jaxalign.data.chat import ChatFormat
from jaxalign.evaluation.asking import Counter
from jaxalign.evaluation.benchmarks import Measure
from jaxalign.evaluation.kept_answers import KeptAnswers
from jaxalign.evaluation.likelihood import Continuation, ContinuationScorer
from jaxalign.evaluation.metrics.calibration import length_bias, pair_calibration
from jaxalign.evaluation.summary import Figure, Item, figure
from jaxalign.evaluation.tasks.pairs import (
    Pair,
    accuracies,
    completion_text,
    margins_and_lengths,
    prompt_messages,
)
from jaxalign.inference.loading import Template, format_of
from jaxalign.models.reward_folders import is_reward_ensemble
from jaxalign.rewards import EnsembleReward, ModelReward

# Rows of (prompt ids, answer ids) -> a score of each.
Score = Callable[[Sequence[tuple[Sequence[int], Sequence[int]]]], np.ndarray]

MEASURES = {
    "accuracy": Measure("the chosen answer scores higher; a tie is a half", rate=True),
    "calibration_error": Measure(
        "mean distance between how sure the scores are and how often they are right", better="lower"
    ),
    "brier": Measure("mean squared error of sigmoid(margin)", better="lower"),
    "nats": Measure("mean -log sigmoid(margin): Bradley-Terry's loss", better="lower"),
    "longer_preferred": Measure("of two lengths the longer answer scores higher", better="", rate=True),
    "longer_chosen": Measure("of two lengths people chose the longer answer", better="", rate=True),
    "length_correlation": Measure("Spearman's, of margin and difference of lengths", better=""),
}


@dataclass(frozen=True)
class PairSubject:
    """Who scores answers.

    Attributes:
      format: how a prompt and an answer become token ids.
      score: scores rows of them.
      calibrated: whether sigmoid of a difference of scores is meant as a probability: of reward models.
      context: the most tokens of a row.
      batch_size: pairs at once.
      reward: of a reward model, what scores; else None.
    """

    format: ChatFormat
    score: Score
    calibrated: bool
    context: int
    batch_size: int = 16
    reward: Any = None


def reward_subject(folder: str, *, template: Template, context: int, batch_size: int) -> PairSubject:
    """A reward model, or an ensemble of them, of a folder or run.

    Raises:
      ModelError: it holds none.
    """
    if is_reward_ensemble(folder):
        members = models.load_reward_ensemble(folder)
        reward: Any = EnsembleReward(members, batch_size=batch_size)
        config, words = members[0].config, models.load_tokenizer(f"{folder}/member-0")
    else:
        model = models.load_reward_model(folder)
        reward, config = ModelReward(model, batch_size=batch_size), model.config
        words = models.load_tokenizer(folder)
    return PairSubject(
        format_of(words, template, folder),
        lambda rows: np.asarray(reward.score_rows([[*prompt, *answer] for prompt, answer in rows])),
        True,
        context or int(config.max_positions),
        batch_size,
        reward,
    )


def policy_subject(
    scorer: ContinuationScorer, chat_format: ChatFormat, *, reference: Any = None, batch_size: int = 16
) -> PairSubject:
    """A policy: the summed log-prob of an answer, less that under a reference where there is one (arXiv:2305.18290)."""
    beside = None if reference is None else ContinuationScorer(reference, batch_size=scorer.batch_size)

    def score(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> np.ndarray:
        asked = [Continuation(tuple(prompt), tuple(answer)) for prompt, answer in rows]
        found = scorer.score(asked).logps
        return found if beside is None else found - beside.score(asked).logps

    return PairSubject(chat_format, score, False, scorer.context, batch_size)


def ask_pairs(subject: PairSubject, pairs: Sequence[Pair], kept: KeptAnswers, tell: Counter) -> None:
    """Rows with `scores` and `tokens` of the chosen and the rejected answer, and whether a prompt was cut for room."""
    missing = kept.missing(len(pairs))
    for start in range(0, len(missing), subject.batch_size):
        batch = missing[start : start + subject.batch_size]
        rows, cut = [], []
        for i in batch:
            for answer in pairs[i].answers:
                row = subject.format.example(pairs[i].prompt, answer)
                prompt, own = list(row.ids[: row.start]), list(row.ids[row.start :])
                # The beginning of a long prompt is left out; of a longer answer its end.
                own = own[: subject.context - 1]
                room = subject.context - len(own)
                cut.append(len(prompt) > room or len(own) < len(row.ids) - row.start)
                rows.append((prompt[-room:], own))
        scores = subject.score(rows)
        kept.add(
            {
                "index": i,
                "scores": [float(score) for score in scores[2 * n : 2 * n + 2]],
                "tokens": [len(own) for _, own in rows[2 * n : 2 * n + 2]],
                "cut": bool(cut[2 * n] or cut[2 * n + 1]),
            }
            for n, i in enumerate(batch)
        )
        tell.add(len(batch))


def pair_results(
    pairs: Sequence[Pair], rows: Mapping[int, Mapping[str, Any]], *, calibrated: bool, seed: int = 0
) -> tuple[list[Item], dict[str, Any], list[str]]:
    """Items, figures, and what a reader must know.

    Args:
      pairs, rows: as `ask_pairs` has scored them.
      calibrated: see `PairSubject`.
      seed: of the bootstrap.
    """
    margins, lengths = margins_and_lengths(rows, len(pairs))
    right = accuracies(margins)
    figures: dict[str, Figure] = {
        "accuracy": figure(right, MEASURES["accuracy"], chance=0.5, seed=seed),
    }
    if calibrated:
        found = pair_calibration(margins)
        losses = np.logaddexp(0.0, -margins)
        figures["calibration_error"] = _alone(
            "calibration_error", found.expected_calibration_error, len(pairs)
        )
        figures["brier"] = figure((1 - np.exp(-losses)) ** 2, MEASURES["brier"], seed=seed)
        figures["nats"] = figure(losses, MEASURES["nats"], seed=seed)
    bias = length_bias(margins, lengths[:, 0], lengths[:, 1])
    for name, value, low, high in (
        ("longer_preferred", bias.by_model, bias.model_low, bias.model_high),
        ("longer_chosen", bias.by_people, bias.people_low, bias.people_high),
    ):
        figures[name] = _alone(name, value, bias.uneven) | {"low": _number(low), "high": _number(high)}
    figures["length_correlation"] = _alone("length_correlation", bias.correlation, bias.count)
    items = [
        {
            "index": i,
            "place": pair.place,
            "group": "",
            "prompt": prompt_messages(pair.prompt),
            "answers": [completion_text(answer) for answer in pair.answers],
            "references": [],
            "scores": {"accuracy": float(right[i]), "margin": float(margins[i])},
            "notes": ["the first answer is the chosen one"],
        }
        for i, pair in enumerate(pairs)
    ]
    cut = sum(rows[i]["cut"] for i in range(len(pairs)))
    notes = [f"{cut} pairs were longer than the context, and cut"] * bool(cut)
    return items, {"metrics": figures, "groups": {}}, notes


def _alone(name: str, value: float, count: int) -> Figure:
    return figure([], MEASURES[name]) | {"value": _number(value), "count": count}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
