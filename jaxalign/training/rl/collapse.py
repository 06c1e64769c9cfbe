"""Signs that a policy collapses, each warned of once: no entropy left, far from the reference, text that repeats."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jaxalign.rollout import Completions

# Tokens of a phrase, and the shortest completion that can be said to repeat itself.
PHRASE, SHORTEST = 4, 8


@dataclass(frozen=True, kw_only=True)
class CollapseConfig:
    """When to warn that the policy may have collapsed; training continues.

    Attributes:
      entropy: warn when objective/entropy falls below this many nats per token; 0 disables the warning.
      kl: warn when objective/kl exceeds this many nats per completion; 0 disables the warning.
      repetition: warn when rollout/repetition exceeds this: the fraction of a completion's 4-token phrases that
        occurred in it before, over completions of 8 tokens or more; 0 disables the warning.
    """

    entropy: float = 0.05
    kl: float = 100.0
    repetition: float = 0.5

    def __post_init__(self) -> None:
        for name in ("entropy", "kl", "repetition"):
            if getattr(self, name) < 0:
                raise ValueError(f"collapse.{name} must not be negative, got {getattr(self, name)}")


def collapse_signs(config: CollapseConfig, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """(setting, what is wrong, in one line with its threshold) of each sign that the metrics show."""
    entropy, kl, repeated = (
        metrics.get(name, float("nan"))
        for name in ("objective/entropy", "objective/kl", "rollout/repetition")
    )
    if config.entropy and entropy < config.entropy:
        limit = f"below collapse.entropy = {config.entropy:g}"
        yield (
            "entropy",
            f"objective/entropy is {entropy:.3g} nats a token, {limit}: the policy hardly varies any more",
        )
    if config.kl and kl > config.kl:
        limit = f"above collapse.kl = {config.kl:g}"
        yield (
            "kl",
            f"objective/kl is {kl:.3g} nats a completion, {limit}: the policy is far from its reference",
        )
    if config.repetition and repeated > config.repetition:
        limit = f"above collapse.repetition = {config.repetition:g}"
        yield "repetition", f"rollout/repetition is {repeated:.3g}, {limit}: completions repeat themselves"


def repetition(completions: Completions) -> float:
    """Mean share of phrases that a completion had before, over the completions long enough; 0 where none is."""
    shares = []
    for tokens, length in zip(np.asarray(completions.tokens), completions.lengths, strict=True):
        if length < SHORTEST:
            continue
        ids = tokens[:length].astype(np.uint64)
        # One number a phrase: products that wrap around hardly ever meet.
        phrases = np.zeros(length - PHRASE + 1, np.uint64)
        for place in range(PHRASE):
            phrases = (
                phrases * np.uint64(0x9E3779B97F4A7C15) + ids[place : place + len(phrases)] + np.uint64(1)
            )
        shares.append(1 - len(np.unique(phrases)) / len(phrases))
    return float(np.mean(shares)) if shares else 0.0
