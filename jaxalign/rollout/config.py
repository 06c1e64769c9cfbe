"""How completions are drawn: the settings of a run, and the arguments of one call of `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Required, TypedDict

import jax
import numpy as np

Storage = Literal["same", "int8"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Length of completions, and how tokens are sampled.

    Attributes:
      max_new_tokens: maximum length of a completion in tokens, including its stop token.
      temperature: sampling temperature, which divides the logits; 0 decodes greedily.
      top_k: sample from the k most probable tokens; 0 uses all.
      top_p: sample from the smallest set of most probable tokens whose probabilities sum to at least p; 1 uses all.
      min_p: exclude tokens less probable than min_p times the most probable one; 0 excludes none.
      num_samples: completions per prompt.
      stop_tokens: ids of the tokens that end a completion; null uses the model's own, [] uses none.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    num_samples: int = 1
    stop_tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        for name in ("max_new_tokens", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} must be 1 or more, got {getattr(self, name)}")

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """The keyword arguments of `generate` that a configuration holds: all of `SamplingArguments` but two."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | changes


class UntruncatedSampling(TypedDict, total=False):
    """`SamplingArguments` without `top_k`, `top_p` and `min_p`."""

    max_new_tokens: Required[int]
    key: Required[jax.Array]
    temperature: float | np.ndarray
    stop_tokens: Sequence[int] | None
    num_samples: int
    row_ids: Sequence[int] | np.ndarray | None


class SamplingArguments(UntruncatedSampling, total=False):
    """The keyword arguments of `generate`, of every engine; all but the first two have a default.

    Attributes:
      max_new_tokens: longest completion, C tokens, its stop token included.
      key: source of all randomness.
      temperature: logits are divided by it; 0 is greedy. 1 by default; a number, or an array with one per prompt.
      top_k: sample from the k most probable tokens, 0 (the default) for all; a number or an array, likewise.
      top_p: sample from the fewest tokens whose probabilities add up to p, 1 (the default) for all; likewise.
      min_p: leave out tokens below min_p times the largest probability, 0 (the default) for none; likewise.
      stop_tokens: ids that end a completion; None (the default) takes the model's, () none.
      num_samples: completions per prompt, 1 by default.
      row_ids: the randomness of each of the N completions; None (the default) takes 0..N-1.
    """

    top_k: int | np.ndarray
    top_p: float | np.ndarray
    min_p: float | np.ndarray


@dataclass(frozen=True, kw_only=True)
class CheckedSampling:
    """`SamplingArguments` for P prompts and N = P * num_samples completions, checked, with the defaults filled in.

    Attributes:
      max_new_tokens, num_samples, key: as given.
      temperature, top_k, top_p, min_p: [P].
      stop_tokens: int32 [Z], perhaps none.
      row_ids: integers [N].
    """

    max_new_tokens: int
    num_samples: int
    key: jax.Array
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    stop_tokens: np.ndarray
    row_ids: np.ndarray

    @property
    def numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """temperature, top_k, top_p and min_p."""
        return self.temperature, self.top_k, self.top_p, self.min_p


def checked_sampling(
    arguments: SamplingArguments, *, prompts: int, eos_ids: Sequence[int]
) -> CheckedSampling:
    """The arguments of a call of `generate`, checked.

    Args:
      arguments: as the call gives them.
      prompts: how many, P.
      eos_ids: the model's stop tokens.

    Raises:
      TypeError: an argument that `generate` does not know, or a missing one; names it.
      ValueError: a number out of range, or not one per prompt (row_ids: per completion).
    """
    known = SamplingArguments.__annotations__
    if unknown := [name for name in arguments if name not in known]:
        raise TypeError(
            f"generate() got an unexpected keyword argument {unknown[0]!r}; expected {', '.join(known)}"
        )
    if missing := [name for name in known if name in SamplingArguments.__required_keys__ - arguments.keys()]:
        raise TypeError(f"generate() is missing the keyword argument {missing[0]!r}")
    given = SamplingConfig().arguments(**arguments)
    new_tokens, samples = given["max_new_tokens"], given["num_samples"]
    numbers = {
        name: _per_prompt(given[name], prompts, name) for name in ("temperature", "top_k", "top_p", "min_p")
    }
    for row in zip(*numbers.values(), strict=True):
        check_sampling(*row)
    if new_tokens < 1 or samples < 1:
        raise ValueError(f"max_new_tokens and num_samples must be 1 or more, got {new_tokens}, {samples}")
    stops, ids = given["stop_tokens"], given.get("row_ids")
    row_ids = np.arange(prompts * samples) if ids is None else np.asarray(ids)
    if row_ids.shape != (prompts * samples,):
        raise ValueError(
            f"row_ids has shape {row_ids.shape}; expected one per completion, ({prompts * samples},)"
        )
    return CheckedSampling(
        max_new_tokens=new_tokens,
        num_samples=samples,
        key=given["key"],
        **numbers,
        stop_tokens=np.asarray(eos_ids if stops is None else stops, np.int32).ravel(),
        row_ids=row_ids,
    )


def check_sampling(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """Raises ValueError for a number out of range."""
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must not be negative, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    if not 0 <= min_p < 1:
        raise ValueError(f"min_p must lie in [0, 1), got {min_p}")


def _per_prompt(value: float | np.ndarray, prompts: int, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim == 0:
        return np.full(prompts, array)
    if array.shape != (prompts,):
        raise ValueError(f"{name} has shape {array.shape}; expected a number or one per prompt, ({prompts},)")
    return array
