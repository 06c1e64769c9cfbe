"""One loss with one set of options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

B, T, V, K, D = 8, 7, 11, 4, 5
"""Rows, tokens, vocabulary, candidates, hidden: small, all different, B a multiple of the 8 virtual devices."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the parity table.

    Attributes:
      function: its name in `jaxalign.losses`.
      inputs: a seeded generator -> array arguments by name; float32, int32 or bool. All have the rows as first
        axis, but for those in `shared`.
      options: keyword hyper-parameters.
      grads: arguments that get a gradient; every other float argument must get none.
      mask: the argument that masks tokens; its shape [B, T] tells which other arguments have a time axis.
      time_plus_one: arguments with T + 1 columns: states before, between and after the tokens.
      contiguous: counted tokens must form one run a row (no gaps in the mask).
      shared: arguments without a row axis (a batch statistic, a whole batch's negatives).
      coupled: the result of a row depends on other rows.
      statistics: for coupled rows: (all inputs, rows as a slice) -> the keyword arguments that make a part
        of the batch give what the whole gives for these rows.
      integers: arguments that may hold integers, which count as their float32 values.
      wrong: hyper-parameter -> concrete values that must raise ValueError naming it.
      extreme: arguments that may hold -1e4 where they count (log-probs, logits) with everything staying finite.
      reference: what the values were checked against, for the table.
      bounds: (value, gradient) bounds, absolute + relative alike, where float32 cannot keep the common ones.
      why: the derivation of other bounds, in a sentence.
      pick: the part of the result that is looked at, where it is a tuple or mapping.
      derivation: the reference itself, (float64 inputs, options) -> float64 result in NumPy, of a loss without one in
        `tests/golden`: it is computed where it is read, its gradient by differences, and nothing is stored.
      given: what sets the inputs apart from those of another case, for its id.
      padded: the mask's second axis is time, and may be longer.
    """

    function: str
    inputs: Callable[[np.random.Generator], Arrays]
    grads: tuple[str, ...]
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    mask: str | None = None
    time_plus_one: tuple[str, ...] = ()
    contiguous: bool = False
    shared: tuple[str, ...] = ()
    coupled: bool = False
    statistics: Callable[[Arrays, slice], Mapping[str, Any]] | None = None
    integers: tuple[str, ...] = ()
    wrong: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    extreme: tuple[str, ...] = ()
    bounds: tuple[float, float] = (1e-6, 1e-5)
    why: str = ""
    pick: int | str | None = None
    derivation: Callable[[Arrays, Mapping[str, Any]], np.ndarray] | None = None
    given: str = ""
    padded: bool = True

    @property
    def option(self) -> str:
        """The options as text, for the table."""
        return ", ".join(f"{name}={value}" for name, value in self.options.items()) or "defaults"

    @property
    def id(self) -> str:
        """Unique among all cases."""
        part = "" if self.pick is None else f".{self.pick}"
        return f"{self.function}{part}{f'({self.given_text})' if self.given_text else ''}[{self.option}]"

    @property
    def given_text(self) -> str:
        """What is given beside the options, for the table."""
        return ", ".join(sorted(self._optional()) + ([self.given] if self.given else []))

    @property
    def label(self) -> str:
        """Options, and what else is given."""
        return self.option + (f"; with {self.given_text}" if self.given_text else "")

    def _optional(self) -> set[str]:
        """Array arguments with a default that this case gives, so that ids differ."""
        return set(self.inputs(np.random.default_rng(0))) & {
            "ref_logps",
            "negatives",
            "margin",
            "bootstrap_values",
            "matched",
            "matched_chosen",
            "matched_rejected",
            "undesirable_weight",
        }

    def arrays(self, seed: int = 0) -> Arrays:
        """The inputs of one seed."""
        return self.inputs(np.random.default_rng((seed, *self.function.encode())))

    def call(self, losses: Any, arrays: Mapping[str, Any], **more: Any) -> Any:
        """The loss of these arrays, as one array."""
        result = getattr(losses, self.function)(**arrays, **self.options, **more)
        if self.pick is None:
            return result
        return result[self.pick] if isinstance(self.pick, int) else getattr(result, self.pick)

    def slots(self, arrays: Arrays, name: str) -> np.ndarray | None:
        """Which slots of an argument count, bool; None where it has no time axis.

        Of T + 1 states, those before and after a counted token do.
        """
        if self.mask is None:
            return None
        mask = arrays[self.mask].astype(bool)
        if name in self.time_plus_one:
            return np.pad(mask, [(0, 0), (0, 1)]) | np.pad(mask, [(0, 0), (1, 0)])
        return mask if self.has_time(arrays, name) else None

    def has_time(self, arrays: Arrays, name: str) -> bool:
        """Whether an argument has the mask's time axis."""
        if self.mask is None:
            return False
        return arrays[name].shape[:2] == arrays[self.mask].shape and name not in self.shared


def logps(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Log-probs of tokens (or sums of them): negative, float32."""
    return -scale * rng.exponential(size=shape).astype(np.float32)


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Gaussian numbers, float32."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def ragged_mask(rng: np.random.Generator, *, gaps: bool = False) -> np.ndarray:
    """bool [B, T]: one run of tokens a row, of lengths 1 to T, with holes where `gaps`; no row is empty."""
    start = rng.integers(0, 3, B)
    length = rng.integers(1, T - 2, B)
    columns = np.arange(T)
    mask = (columns >= start[:, None]) & (columns < (start + length)[:, None])
    mask[0] = True
    if gaps:
        mask[0, 2] = False
    return mask
