"""Of several answers to a problem: is one right, how many are, and is the most frequent one?"""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

# Subsets of k answers that are looked at one by one; of more, so many are drawn.
MOST_SUBSETS = 1000


def pass_at_k(
    correct: Sequence[int] | np.ndarray, samples: int | Sequence[int] | np.ndarray, k: int
) -> np.ndarray:
    """Probability that at least one of k answers is right, for each problem, unbiased.

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1}^{n} (1 - k / i)

    Its mean over problems is the benchmark's figure (`estimate_mean` gives the interval).

    Args:
      correct: c, [N], right answers of each problem.
      samples: n, answers to each problem, [N] or one number.
      k: answers that a problem may take, at least 1 and at most the smallest n.

    Returns:
      float64 [N].

    Raises:
      ValueError: counts that are no whole numbers with 0 <= c <= n, or k outside [1, n].

    Source: arXiv:2107.03374, eq. 1; the product is its numerically stable form (figure 3).
    """
    c = np.atleast_1d(np.asarray(correct))
    n = np.broadcast_to(np.asarray(samples), c.shape)
    if c.ndim != 1 or not (np.issubdtype(c.dtype, np.integer) and np.issubdtype(n.dtype, np.integer)):
        raise ValueError("correct and samples: expected whole numbers, one or as many as there are problems")
    if (c < 0).any() or (c > n).any():
        raise ValueError("expected 0 <= correct <= samples for each problem")
    if c.size and not 1 <= k <= n.min():
        raise ValueError(f"k must lie in [1, {n.min()}], the fewest samples of a problem, got {k}")
    return np.asarray([_pass_at_k(int(right), int(of), k) for right, of in zip(c, n, strict=True)])


def _pass_at_k(c: int, n: int, k: int) -> float:
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1, dtype=np.float64)))


def mean_at_k(right: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """mean@k: the share of k answers that are right, for each problem. Its expectation is pass@1.

    Args:
      right: [N, K], 1 or True for a right answer, or a score in [0, 1].

    Returns:
      float64 [N].

    Raises:
      ValueError: another shape, or a number outside [0, 1].
    """
    array = np.asarray(right, np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"expected [problems, answers], got shape {array.shape}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError("expected numbers in [0, 1]")
    return array.mean(1)


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
