"""Perplexity of a model on held-out text."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over unmasked tokens.

    Attributes:
      value: exp of `nats_per_token`.
      nats_per_token: mean negative log-likelihood.
      tokens: unmasked tokens.
    """

    value: float
    nats_per_token: float
    tokens: int


def perplexity(score: Callable[[Mapping[str, Any]], Any], batches: Iterable[Mapping[str, Any]]) -> Perplexity:
    """Perplexity over all unmasked tokens of all batches: one mean, independent of the batches.

    Args:
      score: batch -> log-probs [B, T] of its tokens, nats; ignored outside the mask.
      batches: each with `mask` bool [B, T], and `valid` bool [B] where filler rows may be.

    Raises:
      ValueError: no unmasked token.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        mask = np.asarray(batch["mask"], bool)
        if "valid" in batch:
            mask = mask & np.asarray(batch["valid"], bool)[:, None]
        total -= float(np.asarray(score(batch), np.float64)[mask].sum())
        tokens += int(mask.sum())
    if not tokens:
        raise ValueError("expected at least one token with a True mask")
    mean = total / tokens
    return Perplexity(math.exp(min(mean, 700.0)), mean, tokens)
