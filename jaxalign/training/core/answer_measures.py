"""What is measured of answers to held-out prompts: the table of the metrics `eval/generate/*`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.measures.ngrams import distinct_n, repetition
from jaxalign.measures.pass_at_k import mean_at_k, pass_at_k
from jaxalign.measures.refusals import refuses
from jaxalign.uncertainty import bootstrap_interval


@dataclass(frozen=True, kw_only=True)
class Answers:
    """N = P * S answers to P prompts, those of a prompt one after another.

    Attributes:
      samples: S.
      texts: N texts.
      lengths: [N], tokens.
      stopped: bool [N], whether they ended by themselves.
      rewards: [N] by name, the whole under "" and each part of a mix under its own; NaN where none applies.
      kl: [N], nats an answer, from the reference; None where there is none.
      wins: [N], 1 where a judge prefers the answer to the first evaluation's, 0.5 for a tie; None without a judge.
    """

    samples: int
    texts: Sequence[str]
    lengths: np.ndarray
    stopped: np.ndarray
    rewards: Mapping[str, np.ndarray] = field(default_factory=dict)
    kl: np.ndarray | None = None
    wins: np.ndarray | None = None

    def binary(self) -> dict[str, np.ndarray]:
        """bool [Q, S] by name of the rewards that are all 0 or 1: of the prompts to whose answers all they apply.

        The parts of a mix that is but one part are left out: they are the mix.
        """
        found = {}
        for name, values in self.rewards.items():
            if name and np.array_equal(values, self.rewards[""], equal_nan=True):
                continue
            known = values[~np.isnan(values)]
            rows = values.reshape(-1, self.samples)
            rows = rows[~np.isnan(rows).any(1)]
            if len(rows) and np.isin(known, (0.0, 1.0)).all():
                found[name] = rows == 1
        return found


def _ks(samples: int) -> list[int]:
    """2, 4, 8 ... below S, and S."""
    return [2**i for i in range(1, samples.bit_length()) if 2**i < samples] + [samples]


def _reward(answers: Answers) -> dict[str, Any]:
    return {_named("reward", name): values for name, values in answers.rewards.items()}


def _pass_at_k(answers: Answers) -> dict[str, Any]:
    return {
        _named(f"pass_at_{k}", name): pass_at_k(right.sum(1), answers.samples, k)
        for name, right in answers.binary().items()
        for k in _ks(answers.samples)
    }


def _mean_at_k(answers: Answers) -> dict[str, Any]:
    k = answers.samples
    return {_named(f"mean_at_{k}", name): mean_at_k(right) for name, right in answers.binary().items()}


def _named(metric: str, reward: str) -> str:
    return f"{metric}/{reward}" if reward else metric


# Name -> function of the answers, which gives values by the names under which they are logged: [N] of answers, [Q] of
# prompts, or one number of them all. Of what cannot be measured it gives none.
MEASURES: dict[str, Callable[[Answers], Mapping[str, Any]]] = {
    "length": lambda a: {"length": a.lengths},
    "stop_rate": lambda a: {"stop_rate": a.stopped},
    "distinct_1": lambda a: {"distinct_1": distinct_n(a.texts, 1)},
    "distinct_2": lambda a: {"distinct_2": distinct_n(a.texts, 2)},
    "repetition": lambda a: {"repetition": [repetition(text) for text in a.texts]},
    "refusal_rate": lambda a: {"refusal_rate": [refuses(text) for text in a.texts]},
    "reward": _reward,
    "pass_at_k": _pass_at_k,
    "mean_at_k": _mean_at_k,
    "kl": lambda a: {} if a.kl is None else {"kl": a.kl},
    "win_rate": lambda a: {} if a.wins is None else {"win_rate": a.wins},
}
# Those of several answers to a prompt.
OF_SEVERAL = ("pass_at_k", "mean_at_k")
# What those need that not every run has.
_BINARY = "no reward of this run gives 0 or 1 alone"
NEEDS = {
    "reward": "eval.generate.reward names no reward",
    "pass_at_k": _BINARY,
    "mean_at_k": _BINARY,
    "kl": "this run has no reference model (or LoRA) to measure it from",
    "win_rate": "eval.generate.judge names no judge",
}


def measured(answers: Answers, names: Sequence[str] = (), *, seed: int) -> dict[str, float]:
    """The metrics of answers, by name.

    Args:
      answers: of one model.
      names: keys of `MEASURES`; none for all that can be measured.
      seed: of the bootstrap.

    Returns:
      Means over prompts of the mean over a prompt's answers, each with `_low` and `_high` (95%, bootstrap over
      prompts), and numbers of all answers together (distinct_1, distinct_2), without. What is NaN is left out: a prompt
      to none of whose answers a reward applies, or a metric of none.

    Raises:
      UserError: a metric is named, and cannot be measured.
    """
    found: dict[str, float] = {}
    for name in names or MEASURES:
        if name in OF_SEVERAL and answers.samples < 2:
            continue
        values = MEASURES[name](answers)
        if name in names and not values:
            raise UserError(f"eval.generate.metrics: {name} cannot be measured: {NEEDS[name]}")
        for metric, each in values.items():
            found |= with_interval(metric, by_prompt(each, answers), seed=seed)
    return found


def by_prompt(values: Any, answers: Answers) -> np.ndarray:
    """Values of N answers as means of each prompt, without those that are NaN; others as they are."""
    array = np.asarray(values, np.float64)
    if array.shape != (len(answers.texts),):
        return array
    rows = array.reshape(-1, answers.samples)
    known = ~np.isnan(rows)
    some = known.any(1)
    return np.where(known, rows, 0.0).sum(1)[some] / known.sum(1)[some]


def with_interval(name: str, values: np.ndarray, *, seed: int) -> dict[str, float]:
    """The mean of values [P] with `_low` and `_high`, by bootstrap; a single number as it is; nothing for NaN."""
    values = np.asarray(values, np.float64)
    if not values.ndim:
        return {} if np.isnan(values) else {name: float(values)}
    values = values[~np.isnan(values)]
    if not len(values):
        return {}
    low, high = bootstrap_interval(values, seed=seed)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
