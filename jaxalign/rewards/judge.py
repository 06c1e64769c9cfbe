"""Inputs and outputs of a judge, which compares two completions of a prompt.

A judge is any callable

    judge(prompts, first, second, *, columns)

that returns for each row whether `first` is better: a probability in [0, 1], True or False, or None for no opinion.
To cancel a position bias, the order is random for each row.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jaxalign.errors import UserError
from jaxalign.processes import by_first
from jaxalign.rewards.user_code import is_ours, user_code


@dataclass(frozen=True)
class Verdicts:
    """A judge's verdicts on N pairs.

    Attributes:
      preference: float32 [N], how sure it is that `first`, as the caller gave it, is the better; 0.5 where it
        has no opinion.
      metrics: no_opinion, the share of rows at 0.5; first_shown_preferred, of the other rows the share in which
        it took the completion shown first (0.5 for a judge without a bias to a place; left out where there are none).
    """

    preference: np.ndarray
    metrics: Mapping[str, float]


class PairwiseJudge(Protocol):
    """See the module's docstring."""

    def __call__(
        self,
        prompts: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        *,
        columns: Mapping[str, Sequence[Any]],
    ) -> Any: ...


def evaluate_judge(
    judge: Any,
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    *,
    columns: Mapping[str, Sequence[Any]],
    key: jax.Array,
    name: str = "",
) -> Verdicts:
    """Shows a judge two completions of each prompt, in random order, and checks its verdicts.

    Args:
      judge: see the module's docstring.
      prompts: N texts.
      first: a completion of each.
      second: another one of each.
      columns: the data set's other columns, a list of N each.
      key: of the orders.
      name: of the judge, for messages; its own where empty.

    Raises:
      UserError: a wrong number of verdicts, or one that is not a probability, bool or None.
      UserCodeError: a user's judge raised.
    """
    rows = len(prompts)
    swapped = np.asarray(jax.random.bernoulli(key, 0.5, (rows,)))
    shown = [(b, a) if swap else (a, b) for a, b, swap in zip(first, second, swapped, strict=True)]
    label = name or getattr(judge, "__name__", type(judge).__name__)

    def asked() -> np.ndarray:
        with contextlib.nullcontext() if is_ours(judge) else user_code(f"judge {label}"):
            result = judge(list(prompts), [a for a, _ in shown], [b for _, b in shown], columns=columns)
        return _checked(result, shown, label)

    # Ours compute on the mesh, all processes together; another is asked once.
    said = asked() if is_ours(judge) else by_first(asked)
    decided = said != 0.5
    metrics = {"no_opinion": float(1 - decided.mean())} if rows else {}
    if decided.any():
        metrics["first_shown_preferred"] = float((said[decided] > 0.5).mean())
    return Verdicts(np.where(swapped, 1 - said, said).astype(np.float32), metrics)


def _checked(result: Any, shown: Sequence[tuple[str, str]], label: str) -> np.ndarray:
    """float64 [N]: how sure the judge is of the completion shown first."""
    if hasattr(result, "tolist"):
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        raise UserError(f"judge {label}: expected a list with one verdict per pair, got {result!r:.60}")
    if len(result) != len(shown):
        raise UserError(f"judge {label}: returned {len(result)} verdicts for {len(shown)} pairs")
    said = np.full(len(shown), 0.5)
    for row, value in enumerate(result):
        if value is None:
            continue
        try:
            said[row] = np.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError):
            said[row] = np.nan
        if not 0 <= said[row] <= 1:
            raise UserError(
                f"judge {label}: pair {row}: expected a probability in [0, 1], True, False or None, got {value!r:.60}, "
                f"for {shown[row][0][:40]!r} against {shown[row][1][:40]!r}"
            )
    return said
