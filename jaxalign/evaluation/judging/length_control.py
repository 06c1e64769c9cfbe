"""Length-controlled win rate: what the win rate would be if both models wrote answers of the same length.

Judges favour long answers. A logistic model of the judge's preference takes the part that length explains apart from
the rest, and predicts without it. AlpacaEval's own fit needs two files that come with no annotation: the difficulty of
each instruction, used here only where the caller has it, and judged rows of a baseline told to write much or little,
which hold the length effect where one model's answers are nearly always the longer. One ridge penalty stands for its
cross-validated L1.

So the figures are not the leaderboard's. Without difficulties, of its annotations:

    judge, baseline                     model           raw    here, interval       published   longer
    alpaca_eval_gpt4, davinci-003       alpaca-7b       26.5   25.9 [22.6, 29.2]    26.3        47.3 %
                                        zephyr-7b-beta  90.6   76.4 [68.2, 83.7]    76.3        97.9 %
                                        llama-2-7b      71.4   21.4 [13.6, 30.6]    29.3        97.2 %
    weighted gpt4_turbo, gpt4_1106      alpaca-7b        2.6   14.1 [ 8.2, 21.1]     5.9         2.4 %

Where `longer` is near 0 or 100, equal lengths lie outside of what was seen, and the rate rests on the model's form.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.errors import DataError
from jaxalign.evaluation.judging.alpaca import Annotation
from jaxalign.uncertainty import bootstrap_interval

MOST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """A length-controlled win rate. Rates are in percent, as AlpacaEval publishes them.

    Attributes:
      win_rate: predicted at a length difference of 0.
      low, high: its bootstrap interval, over questions; the model is fitted anew each time.
      raw_win_rate: mean preference of the same rows.
      longer: rows in which the model's answer is the longer, ties half; near 0 or 100 the rate is an extrapolation.
      intercept: theta, log-odds of the model at equal lengths (and difficulty 0); infinite where it won all or none.
      length_effect: phi, log-odds gained by an answer that is much longer; positive for a judge who likes length.
      difficulty_effect: psi, log-odds a unit of difficulty; None where no difficulty was given.
      count: rows.
    """

    win_rate: float
    low: float
    high: float
    raw_win_rate: float
    longer: float
    intercept: float
    length_effect: float
    difficulty_effect: float | None
    count: int


def length_controlled(
    annotations: Sequence[Annotation],
    *,
    difficulty: Mapping[str, float] | None = None,
    l2: float = 1.0,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LengthControlled:
    """`length_controlled_win_rate` of AlpacaEval's annotations; lengths are in characters, as there.

    Args:
      annotations: of one model; those without a preference are left out (alpaca_eval predicts them too).
      difficulty: of each instruction; None fits without.
      l2, confidence, resamples, seed: see there.

    Raises:
      DataError: no judged row, or an instruction without a difficulty.
    """
    judged = [(one, one.win) for one in annotations if one.win is not None]
    if not judged:
        raise DataError(f"expected at least one judged row, got {len(annotations)} rows without a preference")
    hard = None
    if difficulty is not None:
        lacking = [one.instruction for one, _ in judged if one.instruction not in difficulty]
        if lacking:
            raise DataError(
                f"expected a difficulty of each instruction; {len(lacking)} have none, first: {lacking[0][:60]!r}"
            )
        hard = [difficulty[one.instruction] for one, _ in judged]
    return length_controlled_win_rate(
        [win for _, win in judged],
        [len(one.output) for one, _ in judged],
        [len(one.baseline_output) for one, _ in judged],
        difficulty=hard,
        l2=l2,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def length_controlled_win_rate(
    wins: Sequence[float] | np.ndarray,
    lengths: Sequence[float] | np.ndarray,
    baseline_lengths: Sequence[float] | np.ndarray,
    *,
    difficulty: Sequence[float] | np.ndarray | None = None,
    l2: float = 1.0,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LengthControlled:
    """Win rate at equal lengths.

    With d_i = lengths_i - baseline_lengths_i, s = std(d) (divides by n - 1) and gamma_i the difficulty:

        z_i = theta + phi tanh(d_i / s) + psi gamma_i
        minimise  sum_i (log(1 + exp z_i) - wins_i z_i) + l2/2 (phi^2 + psi^2)
        win_rate = 100 mean_i sigmoid(theta + psi gamma_i)

    theta has no penalty, so that the mean prediction is the raw win rate: where lengths say nothing (d_i all equal,
    phi = 0) the two are equal. Shrinking phi moves the result towards the raw rate. Exchanging the two models gives
    100 minus the rate, exactly.

    Args:
      wins: [N] in [0, 1]: 1, 0, 0.5 for a tie, or how sure the judge is.
      lengths, baseline_lengths: [N], of the two answers, in any one unit.
      difficulty: [N], or None.
      l2: inverse variance of a normal prior on phi and psi, positive; the default is the standard normal. The length
        effects that AlpacaEval publishes lie between 0.2 and 3, most of them near 1.6.
      confidence: of the interval, in (0, 1).
      resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: different lengths, no row, a number that is not finite, a win outside [0, 1], or l2 not positive.

    Source: arXiv:2404.04475, section 3; s and characters as alpaca_eval, metrics/glm_winrate.py.
    """
    columns = [np.asarray(wins, np.float64), np.asarray(lengths, np.float64) - np.asarray(baseline_lengths)]
    if difficulty is not None:
        columns.append(np.asarray(difficulty, np.float64))
    if columns[0].ndim != 1 or not columns[0].size or len({column.shape for column in columns}) > 1:
        shapes = ", ".join(str(column.shape) for column in columns)
        raise ValueError(f"expected columns of one length, at least one row, got {shapes}")
    rows = np.stack(columns, axis=1)
    if not np.isfinite(rows).all() or (rows[:, 0] < 0).any() or (rows[:, 0] > 1).any():
        raise ValueError("expected finite numbers, and wins in [0, 1]")
    fitted = _fitted(rows, l2)
    low, high = bootstrap_interval(
        rows,
        seed=seed,
        statistic=lambda part: _rate(part, _fitted(part, l2)),
        confidence=confidence,
        resamples=resamples,
    )
    return LengthControlled(
        win_rate=100 * _rate(rows, fitted),
        low=100 * low,
        high=100 * high,
        raw_win_rate=100 * float(rows[:, 0].mean()),
        longer=100 * float((np.sign(rows[:, 1]) / 2 + 0.5).mean()),
        intercept=float(fitted[0]),
        length_effect=float(fitted[1]),
        difficulty_effect=None if difficulty is None else float(fitted[2]),
        count=len(rows),
    )


def fit_logistic(
    features: np.ndarray, targets: np.ndarray, *, l2: Sequence[float] | np.ndarray
) -> np.ndarray:
    """float64 [F]: weights w of a logistic model of soft targets, by Newton's method with halved steps.

    minimise  sum_i (log(1 + exp z_i) - y_i z_i) + 1/2 sum_j l2_j w_j^2,   z = X w

    Args:
      features: X [N, F].
      targets: y [N], in [0, 1].
      l2: [F], not negative; 0 for an intercept, which needs targets that are not all 0 or all 1.

    Raises:
      ValueError: no minimum was found: without a penalty the targets can be separated.
    """
    x, y, penalty = (np.asarray(given, np.float64) for given in (features, targets, l2))

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float((np.logaddexp(0.0, z) - y * z).sum() + 0.5 * (penalty * w * w).sum())

    w = np.zeros(x.shape[1])
    now = loss(w)
    for _ in range(MOST_STEPS):
        p = _sigmoid(x @ w)
        slope = x.T @ (p - y) + penalty * w
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        try:
            step = np.linalg.solve(curvature, slope)
        except np.linalg.LinAlgError:
            break
        # Far from the minimum a whole step may overshoot; within rounding of it the loss cannot fall any more.
        scale, after = 1.0, loss(w - step)
        while not after <= now + 1e-12 * abs(now) and scale > 1e-9:
            scale /= 2
            after = loss(w - scale * step)
        w, now = w - scale * step, after
        if np.abs(scale * step).max() <= 1e-10 * (1 + np.abs(w).max()):
            return w
    raise ValueError("the logistic model has no finite weights; expected a penalty, or targets of both kinds")


def _fitted(rows: np.ndarray, l2: float) -> np.ndarray:
    """theta, phi and perhaps psi of rows [wins, length difference, perhaps difficulty]."""
    if not l2 > 0:
        raise ValueError(f"l2 must be positive, got {l2}")
    wins, difference = rows[:, 0], rows[:, 1]
    if wins.min() == wins.max() and wins[0] in (0.0, 1.0):
        # The likelihood grows with theta without end, and nothing is left for the others to explain.
        return np.asarray([math.inf if wins[0] else -math.inf, *np.zeros(rows.shape[1] - 1)])
    features = [np.ones(len(rows)), _scaled(difference), *rows[:, 2:].T]
    return fit_logistic(np.stack(features, axis=1), wins, l2=[0.0, *[l2] * (rows.shape[1] - 1)])


def _scaled(difference: np.ndarray) -> np.ndarray:
    """tanh(d / s); 0 where all are equal, for such a difference cannot be told from the model itself."""
    if np.ptp(difference) == 0:
        return np.zeros_like(difference)
    return np.tanh(difference / difference.std(ddof=1))


def _rate(rows: np.ndarray, fitted: np.ndarray) -> float:
    return float(_sigmoid(fitted[0] + rows[:, 2:] @ fitted[2:]).mean())


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -z))
