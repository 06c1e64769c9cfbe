"""What a run of GRPO or one of its relatives is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxalign.rollout import SamplingConfig
from jaxalign.training.on_policy_config import (
    ImportanceLevel,
    ImportanceMode,
    OnPolicyConfig,
    RolloutTrainConfig,
    check_cap,
)
from jaxalign.training.optimizer import OptimizerConfig

LossName = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "gmpo", "rloo", "reinforce", "reinforce++"]
AdvantageName = Literal[
    "group",
    "group_mean",
    "batch",
    "leave_one_out",
    "global",
    "reinforce++",
    "reinforce++_baseline",
    "process",
]


@dataclass(frozen=True)
class Recipe:
    """What an algorithm's paper takes where the configuration says nothing.

    Attributes:
      advantages: how rewards become advantages.
      reduction: tokens (mean over all tokens), rows (mean over rows of their token means, or of their one
        loss a row) or length (row sums over the longest completion, mean over rows).
      clip: (low, high) bounds of the ratio.
    """

    advantages: AdvantageName
    reduction: Literal["tokens", "rows", "length"]
    clip: tuple[float, float]


RECIPES: Mapping[str, Recipe] = {
    "grpo": Recipe("group", "rows", (0.2, 0.2)),
    "dr_grpo": Recipe("group_mean", "length", (0.2, 0.2)),
    "dapo": Recipe("group", "tokens", (0.2, 0.28)),
    "gspo": Recipe("group", "rows", (3e-4, 4e-4)),
    "cispo": Recipe("group", "tokens", (0.0, 5.0)),
    "gmpo": Recipe("group", "rows", (0.4, 0.4)),
    "rloo": Recipe("leave_one_out", "rows", (0.2, 0.2)),
    "reinforce": Recipe("group_mean", "tokens", (0.0, 0.0)),
    "reinforce++": Recipe("reinforce++", "tokens", (0.2, 0.2)),
}

# One ratio, and one loss, for a whole completion.
ROW_LOSSES = frozenset({"gspo", "gmpo", "rloo"})


@dataclass(frozen=True, kw_only=True)
class GRPOLossConfig:
    """Advantages and the policy loss.

    Attributes:
      name: the algorithm: grpo, dr_grpo, dapo, gspo, cispo, gmpo, rloo, reinforce or reinforce++.
      advantages: from rewards: group (less the group's mean, over its standard deviation), group_mean (less
        the mean only), batch (over the batch's deviation), leave_one_out, global (over the whole batch, no
        groups), reinforce++ (with the KL in the reward), reinforce++_baseline, or process (token rewards of steps,
        normalised over the group; a token's is the sum of those still to come, and a score is part of the last
        step's reward); auto takes the algorithm's.
      clip_low: the ratio is clipped at 1 - clip_low; -1 takes the algorithm's.
      clip_high: and at 1 + clip_high (cispo: at clip_high itself); -1 takes the algorithm's.
      dual_clip: bound on the loss where the advantage is negative, above 1; 0 turns it off (grpo, dr_grpo, dapo).
      beta: weight of the KL to the reference (its k3 estimate a token in the loss; for rloo its k1 estimate, summed
        over the completion, off the reward, and for reinforce++ off each token's); 0 needs no reference.
      entropy_weight: weight of the entropy bonus.
      mask_truncated: completions cut by length are not learnt from (DAPO's overlong filtering). Their rewards still
        count in the mean and deviation that others are compared with.
      overlong_buffer: tokens before the longest completion over which a penalty grows from 0 to
        overlong_penalty (DAPO); 0 turns it off.
      overlong_penalty: taken from the score of a completion of the longest length.
      importance_cap: tokens weigh by the ratio of the policy in training to the sampler, at most this (for truncated
        sampling, or another engine); 0 turns it off, -1 is 2 with a server and 0 else.
      importance_level: token, or sequence (one ratio for a whole completion); auto is sequence for gspo, gmpo and rloo,
        which have one loss a completion, else token.
      importance_mode: truncate (a weight above the cap is the cap) or mask (it is 0).
    """

    name: LossName = "grpo"
    advantages: Literal["auto"] | AdvantageName = "auto"
    clip_low: float = -1.0
    clip_high: float = -1.0
    dual_clip: float = 0.0
    beta: float = 0.0
    entropy_weight: float = 0.0
    mask_truncated: bool = False
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    importance_cap: float = -1.0
    importance_level: ImportanceLevel = "auto"
    importance_mode: ImportanceMode = "truncate"

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"loss.beta must not be negative, got {self.beta}")
        if self.dual_clip and (self.dual_clip <= 1 or self.name not in ("grpo", "dr_grpo", "dapo")):
            raise ValueError(
                f"loss.dual_clip must be above 1 and needs loss.name grpo, dr_grpo or dapo; got {self.dual_clip} "
                f"for {self.name}"
            )
        check_cap(self.importance_cap)
        if self.importance_cap and self.importance_level == "token" and self.name in ROW_LOSSES:
            raise ValueError(
                f"loss.importance_level=token weighs tokens, and loss.name={self.name} has one loss a completion; "
                "take sequence (or auto), or one of " + ", ".join(sorted(set(RECIPES) - ROW_LOSSES))
            )
        if self.advantages == "process" and self.name in ROW_LOSSES:
            raise ValueError(
                f"loss.advantages=process differs from token to token, and loss.name={self.name} has one loss a "
                "completion; use one of " + ", ".join(sorted(set(RECIPES) - ROW_LOSSES))
            )

    @property
    def kl_in_reward(self) -> bool:
        """Whether beta's KL is taken off the rewards, before advantages are made of them; else the loss has it."""
        return self.name == "rloo" or self.recipe.advantages == "reinforce++"

    @property
    def weighs(self) -> Literal["token", "sequence"]:
        """What importance weights are of."""
        if self.importance_level != "auto":
            return self.importance_level
        return "sequence" if self.name in ROW_LOSSES else "token"

    @property
    def recipe(self) -> Recipe:
        """The algorithm's settings, with those of the configuration in their place."""
        base = RECIPES[self.name]
        return Recipe(
            base.advantages if self.advantages == "auto" else self.advantages,
            base.reduction,
            (
                base.clip[0] if self.clip_low < 0 else self.clip_low,
                base.clip[1] if self.clip_high < 0 else self.clip_high,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class GRPOTrainConfig(RolloutTrainConfig):
    """The size of a rollout and how it is used.

    Attributes:
      sampling_rounds: groups whose rewards are all equal teach nothing; up to so many rounds of prompts are
        sampled until there are enough others (DAPO's dynamic sampling). 1 only leaves such groups out.
    """

    sampling_rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling_rounds < 1:
            raise ValueError(f"train.sampling_rounds must be 1 or more, got {self.sampling_rounds}")


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(OnPolicyConfig):
    """Policy gradients from groups of completions, without a critic.

    Attributes:
      sampling: how completions are drawn; num_samples is the group's size.
      loss: advantages and loss.
    """

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(num_samples=8))
    loss: GRPOLossConfig = field(default_factory=GRPOLossConfig)
    train: GRPOTrainConfig = field(default_factory=GRPOTrainConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-6, schedule="constant")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rollout.check_corrected(self.importance_cap)
        if self.sampling.num_samples < 2 and self.loss.recipe.advantages not in ("global", "reinforce++"):
            raise ValueError(
                f"sampling.num_samples must be 2 or more: loss.name={self.loss.name} compares the completions of "
                f"a prompt; got {self.sampling.num_samples}"
            )
        if self.reward.whiten:
            raise ValueError("reward.whiten is for PPO; here loss.advantages says how rewards are scaled")

    @property
    def importance_cap(self) -> float:
        """Largest importance weight of a token or completion; 0 where none is weighed."""
        return self.rollout.importance_cap(self.loss.importance_cap)
