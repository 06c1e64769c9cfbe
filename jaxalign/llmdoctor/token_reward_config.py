"""Configuration of token rewards."""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.contrastive_prompts import INSTRUCTION_PAIRS, InstructionPair

Placement = Literal["importance", "shuffled", "even", "labels"]


@dataclass(frozen=True, kw_only=True)
class TokenRewardConfig:
    """How a patient's log-probs under two instructions become token rewards.

    Attributes:
      dimension: what the preferences are about: helpfulness, safety or truthfulness, which have shipped instructions,
        or any name with `positive` and `negative` set.
      positive: instruction to show the quality; empty uses the dimension's.
      negative: instruction to lack the quality; set both or neither.
      instructions: positive and negative instruction by name, for your own dimensions: {"brevity": ["Be brief.",
        "Ramble on."]}.
      temperature: tau in S = tanh(D / (mean D + epsilon) / tau), with D = |difference of log-probs|; a larger tau
        makes every importance S smaller.
      epsilon: nats added to the mean.
      threshold: only tokens with S above this get a reward; 0.1 keeps most tokens, 0.5 about half.
      quantile: fraction of all training tokens to reward, those with the largest S; 0 uses `threshold`.
      min_mean_delta: minimum mean D of a completion, in nats, for it to get rewards. S is relative to that mean, so
        it cannot tell a large difference from noise.
      signed: reward a token only if the difference agrees with the label: in the chosen completion, where the
        positive instruction makes it likelier; in the rejected one, where the negative instruction does. An ablation;
        by default the sign of the difference is ignored.
      placement: importance keeps rewards where they are. The others are controls that test whether the placement
        matters: shuffled permutes the rewards of a completion at random, even spreads their sum over all its tokens,
        labels gives every completion the same sum (that of the mean training completion), spread evenly, so that only
        the labels remain.
      batch_size: pairs to score at once, four rows each.
      folder: folder for log-probs and rewards, which several runs can share; empty uses the run folder.
      on_zero: what to do when neither completion of a pair has a reward: stop (only if no training pair has one;
        single pairs stay) or skip (leave such pairs out of the loss). The number of such pairs is reported.
    """

    dimension: str = "helpfulness"
    positive: str = ""
    negative: str = ""
    instructions: dict[str, tuple[str, str]] = field(default_factory=dict)
    temperature: float = 1.0
    epsilon: float = 1e-6
    threshold: float = 0.5
    quantile: float = 0.0
    min_mean_delta: float = 0.0
    signed: bool = False
    placement: Placement = "importance"
    batch_size: int = 16
    folder: str = ""
    on_zero: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if bool(self.positive) != bool(self.negative):
            raise ValueError("rewards.positive and rewards.negative: expected both or none")
        object.__setattr__(self, "instructions", {n: tuple(pair) for n, pair in self.instructions.items()})
        if self.positive and self.dimension in self.instructions:
            raise ValueError(
                f"rewards.instructions.{self.dimension} and rewards.positive: choose one; both set its instructions"
            )
        if not self.positive and self.dimension not in INSTRUCTION_PAIRS | self.instructions:
            raise ValueError(
                f"rewards.dimension: no instructions are shipped for {self.dimension!r}; expected one of "
                f"{', '.join(INSTRUCTION_PAIRS)}, or rewards.positive and rewards.negative"
            )
        try:
            for given in (*self.instructions.values(), self.pair):
                _ = given if isinstance(given, InstructionPair) else InstructionPair(*given)
        except ConfigError as error:
            raise ConfigError(f"rewards.positive, rewards.negative: {error}") from None
        if self.temperature <= 0:
            raise ValueError(f"rewards.temperature must be positive, got {self.temperature}")
        for name in ("epsilon", "min_mean_delta"):
            if getattr(self, name) < 0:
                raise ValueError(f"rewards.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"rewards.threshold must lie in [0, 1), got {self.threshold}")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"rewards.quantile must lie in [0, 1], got {self.quantile}")
        if self.batch_size < 1:
            raise ValueError(f"rewards.batch_size must be 1 or more, got {self.batch_size}")

    @property
    def pair(self) -> InstructionPair:
        """The instructions."""
        if self.positive:
            return InstructionPair(self.positive, self.negative)
        given = self.instructions.get(self.dimension)
        return INSTRUCTION_PAIRS[self.dimension] if given is None else InstructionPair(*given)

    def of(self, dimension: str) -> "TokenRewardConfig":
        """The same for one dimension alone, its own instructions (where it has any) as `positive` and `negative`."""
        own = self.instructions.get(dimension, (self.positive, self.negative))
        return replace(self, dimension=dimension, positive=own[0], negative=own[1], instructions={})
