"""How token rewards are made: settings."""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.contrastive_prompts import INSTRUCTION_PAIRS, InstructionPair

Placement = Literal["importance", "shuffled", "even", "labels"]


@dataclass(frozen=True, kw_only=True)
class TokenRewardConfig:
    """How a patient's log-probs under two instructions become rewards of tokens.

    Attributes:
      dimension: what the preferences are about: helpfulness, safety or truthfulness, whose instructions are shipped, or
        any name where positive and negative say them.
      positive: instruction to show the quality; empty takes that of the dimension.
      negative: instruction to lack it; both are set, or none.
      instructions: both by name, for dimensions of your own: {"brevity": ["Be brief.", "Ramble on."]}.
      temperature: tau in S = tanh(D / (mean D + epsilon) / tau), with D = |difference of log-probs|; the larger, the
        smaller all importances S.
      epsilon: nats added to the mean.
      threshold: a token has a reward where S is larger; 0.1 keeps most tokens, 0.5 about half.
      quantile: share of all tokens of the training responses that have a reward, the largest S; 0 goes by threshold.
      min_mean_delta: nats; responses whose mean D is smaller have no rewards. S alone cannot tell a large difference
        from noise, as it is relative to the response's mean.
      signed: a token has a reward only where the faces' difference agrees with the label: in the preferred response
        where the positive instruction makes it likelier, in the other where the negative one does. An ablation;
        otherwise the sign of the difference does not count.
      placement: importance leaves rewards where they are. The others are controls, which say whether it matters where
        they are: shuffled deals a response's rewards out to its tokens at random, even spreads their sum over all of
        its tokens, labels gives every response the same sum (that of the mean training response), spread evenly, so
        that nothing is left of the faces.
      batch_size: pairs scored at once, four rows each.
      folder: where log-probs and rewards are kept, to be shared by runs; empty takes the run's folder.
      on_zero: where both responses of a pair have no reward at all: stop (at a training set without any reward;
        single pairs stay), or skip (such pairs are left out of the loss). Their number is reported.
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
                f"rewards.instructions.{self.dimension} and rewards.positive: choose one; both instruct it"
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
