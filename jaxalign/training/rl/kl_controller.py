"""The coefficient of the KL penalty: fixed, or steered to a target KL."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """The KL penalty in the reward.

    Attributes:
      coefficient: beta, the reward subtracted per nat of KL to the reference (the initial value with
        controller=adaptive).
      controller: fixed, or adaptive (adjusts the coefficient towards `target`).
      target: target KL per completion, in nats, for the adaptive controller.
      horizon: number of episodes over which the adaptive controller reacts; larger is slower.
      estimator: KL estimator per token: k1 (log-ratio), k2 (half its square), k3 (unbiased and non-negative) or abs.
      monitor: measure the KL for logs and warnings even if the coefficient is 0; false then loads no reference and
        saves its forward pass.
    """

    coefficient: float = 0.05
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: float = 6.0
    horizon: int = 10_000
    estimator: Literal["k1", "k2", "k3", "abs"] = "k1"
    monitor: bool = True

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise ValueError(f"kl.coefficient must not be negative, got {self.coefficient}")
        if self.target <= 0 or self.horizon < 1:
            raise ValueError(f"kl.target and kl.horizon must be positive, got {self.target}, {self.horizon}")

    @property
    def measured(self) -> bool:
        """Whether the reference is asked."""
        return self.monitor or self.coefficient > 0


def next_coefficient(config: KLConfig, coefficient: float, kl: float, episodes: int) -> float:
    """The coefficient after a batch of `episodes` whose mean sequence KL was `kl` nats.

    beta *= 1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon

    Source: arXiv:1909.08593, section 2.2.
    """
    if config.controller == "fixed":
        return coefficient
    error = min(max(kl / config.target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / config.horizon)


# So many updates running with a mean log-ratio to the reference below -NEGATIVE_KL nats a sequence are suspicious.
NEGATIVE_UPDATES, NEGATIVE_KL = 5, 0.05


def negative_streak(streak: int, kl: float) -> tuple[int, str]:
    """(updates running with a negative KL estimate, a warning when they have just become too many).

    The mean log-ratio of on-policy samples estimates a KL, which is not negative; one
    that stays below 0 says that the sampler and the scored policy are not the same.
    """
    streak = streak + 1 if kl < -NEGATIVE_KL else 0
    if streak != NEGATIVE_UPDATES:
        return streak, ""
    return streak, (
        f"objective/kl was below -{NEGATIVE_KL:g} nats in {NEGATIVE_UPDATES} updates running (now {kl:.3g}); the "
        "sampler and the scored policy may differ (top_k, top_p, temperature, precision)"
    )
