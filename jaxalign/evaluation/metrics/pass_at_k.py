"""Of several answers to a problem: is one right, how many are, and is the most frequent one?"""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from jaxalign.measures.pass_at_k import mean_at_k as mean_at_k
from jaxalign.measures.pass_at_k import pass_at_k as pass_at_k

# Subsets of k answers that are looked at one by one; of more, so many are drawn.
MOST_SUBSETS = 1000


def majority(answers: Iterable[Hashable | None]) -> tuple[Hashable, ...]:
    """The most frequent answers, all that tie, in the order in which they came; None does not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    return tuple(answer for answer, count in votes.items() if count == most)


def majority_at_k(
    answers: Sequence[Sequence[Hashable | None]],
    references: Sequence[Hashable],
    k: int | None = None,
    *,
    seed: int = 0,
) -> np.ndarray:
    """maj@k: probability that the most frequent of k answers is right, for each problem.

    A tie is broken by chance: of t answers that tie, one of which is right, 1 / t counts. A problem without any vote
    counts 0. Where there are more answers than k, the mean over their subsets of k is taken: over all if they are
    at most `MOST_SUBSETS`, else over so many that are drawn.

    Args:
      answers: for each problem its answers, normalised so that equal ones compare equal (`final_number`, say); None
        where a text has no answer.
      references: the right answer of each problem.
      k: answers that vote; None for all.
      seed: of the draws.

    Returns:
      float64 [N].

    Raises:
      ValueError: different numbers of problems and references, or k outside [1, answers].

    Source: self-consistency, arXiv:2203.11171; the name: arXiv:2206.14858 (maj1@k).
    """
    if len(answers) != len(references):
        raise ValueError(f"expected one reference a problem, got {len(references)} for {len(answers)}")
    rng = np.random.default_rng(seed)
    found = []
    for number, (given, reference) in enumerate(zip(answers, references, strict=True)):
        size = len(given) if k is None else k
        if not 1 <= size <= len(given):
            raise ValueError(f"problem {number}: k must lie in [1, {len(given)}], its answers, got {size}")
        found.append(np.mean([_right(part, reference) for part in _subsets(given, size, rng)]))
    return np.asarray(found, np.float64)


def _subsets(answers: Sequence, k: int, rng: np.random.Generator) -> Iterable[Sequence]:
    if math.comb(len(answers), k) <= MOST_SUBSETS:
        return itertools.combinations(answers, k)
    drawn = (rng.choice(len(answers), k, replace=False) for _ in range(MOST_SUBSETS))
    return ([answers[i] for i in places] for places in drawn)


def _right(answers: Sequence, reference: Hashable) -> float:
    winners = majority(answers)
    return (reference in winners) / len(winners) if winners else 0.0
