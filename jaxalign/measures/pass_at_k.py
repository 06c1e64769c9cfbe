"""Of several answers to a problem: is one right, and how many are?"""

from collections.abc import Sequence

import numpy as np


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
