"""How completions are sampled: the keys of the section `sampling`."""

from dataclasses import dataclass
from typing import Any, Literal

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
        """The keyword arguments of `generate`."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "num_samples": self.num_samples,
            "stop_tokens": self.stop_tokens,
        } | changes


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
