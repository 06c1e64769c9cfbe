"""What a PPO run is told."""

from dataclasses import dataclass, field
from typing import Literal

from jaxalign.models.heads import HeadConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.rl.kl_controller import KLConfig
from jaxalign.training.rl.on_policy_config import (
    ImportanceLevel,
    ImportanceMode,
    OnPolicyConfig,
    RolloutTrainConfig,
    check_cap,
)


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The value function.

    Attributes:
      init: reward (copy of the reward model, of an ensemble its first member), policy (the policy's trunk
        under a fresh head), or path. It computes in the policy's dtype.
      path: folder of a scalar model, where init is path.
      shared_trunk: one trunk for policy and value, with a value head on it.
      head: the value head, where it is fresh; it starts at zero (head.init_std), so that first values are 0.
      optimizer: the critic's own optimizer (unused with a shared trunk).
      warmup_updates: first updates, in which only the critic learns (of a shared trunk its value head alone). The
        policy, its moments and its schedule begin after them.
    """

    init: Literal["reward", "policy", "path"] = "policy"
    path: str = ""
    shared_trunk: bool = False
    head: HeadConfig = field(default_factory=lambda: HeadConfig(init_std=0.0))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, schedule="linear", epsilon=1e-5)
    )
    warmup_updates: int = 0

    def __post_init__(self) -> None:
        if self.shared_trunk and self.init != "policy":
            raise ValueError(
                f"critic.shared_trunk and critic.init={self.init}: choose one; a head on the policy's trunk is fresh"
            )


@dataclass(frozen=True, kw_only=True)
class PPOLossConfig:
    """Advantages and the two losses.

    Attributes:
      gamma: discount of a token's successor.
      lam: lambda of generalized advantage estimation.
      clip_low: the ratio is clipped at 1 - clip_low.
      clip_high: and at 1 + clip_high.
      dual_clip: bound on the loss where the advantage is negative, above 1; 0 turns it off.
      ratio_limit: an optimizer step whose mean ratio exceeds it is skipped (TRL 0.11 takes 10); 0 turns it off.
      value_clip: clip of the value's change, in units of reward; 0 turns it off.
      value_weight: weight of the value loss.
      entropy_weight: weight of the entropy bonus.
      whiten_advantages: shift and scale advantages over the rollout batch.
      unbiased_variance: divide by n - 1 in whitening (TRL) rather than by n (OpenAI).
      reduction: token (mean over all tokens) or sequence (mean over rows of row means).
      bootstrap_truncated: completions cut by length are followed by the critic's value, not by 0.
      importance_cap: tokens of the policy loss weigh by the ratio of the policy in training to the sampler, at most
        this (for truncated sampling, or another engine); 0 turns it off, -1 is 2 with a server and 0 else.
      importance_level: token, or sequence (one ratio for a whole completion); auto is token.
      importance_mode: truncate (a weight above the cap is the cap) or mask (it is 0).
      function: your own loss in place of the clipped policy loss, as file.py:function or package.module:function,
        called as loss(logps[B, T], old_logps[B, T], advantages[B, T], mask[B, T]) -> [B, T].
    """

    gamma: float = 1.0
    lam: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    ratio_limit: float = 0.0
    value_clip: float = 0.2
    value_weight: float = 0.1
    entropy_weight: float = 0.0
    whiten_advantages: bool = True
    unbiased_variance: bool = True
    reduction: Literal["token", "sequence"] = "token"
    bootstrap_truncated: bool = False
    importance_cap: float = -1.0
    importance_level: ImportanceLevel = "auto"
    importance_mode: ImportanceMode = "truncate"
    function: str = ""

    def __post_init__(self) -> None:
        if self.ratio_limit and self.ratio_limit <= 1:
            raise ValueError(f"loss.ratio_limit must be above 1, or 0 for none, got {self.ratio_limit}")
        check_cap(self.importance_cap)

    @property
    def weighs(self) -> Literal["token", "sequence"]:
        """What importance weights are of."""
        return "token" if self.importance_level == "auto" else self.importance_level


@dataclass(frozen=True, kw_only=True)
class PPOTrainConfig(RolloutTrainConfig):
    """The size of a rollout and how it is used; several passes by default, which the clipping allows."""

    epochs: int = 4
    minibatches: int = 4


@dataclass(frozen=True, kw_only=True)
class PPOConfig(OnPolicyConfig):
    """Proximal policy optimization with a critic.

    Attributes:
      critic: the value function.
      loss: advantages and losses.
      kl: the KL penalty in the reward.
    """

    critic: CriticConfig = field(default_factory=CriticConfig)
    loss: PPOLossConfig = field(default_factory=PPOLossConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    train: PPOTrainConfig = field(default_factory=PPOTrainConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-6, schedule="linear", epsilon=1e-5)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.critic.warmup_updates <= self.train.updates:
            raise ValueError(
                f"critic.warmup_updates must lie in 0 to train.updates = {self.train.updates}, "
                f"got {self.critic.warmup_updates}"
            )
        self.rollout.check_corrected(self.importance_cap)
        if self.critic.shared_trunk and self.lora.enabled:
            raise ValueError(
                "critic.shared_trunk and lora.enabled: choose one; the trunk is frozen under LoRA"
            )

    @property
    def importance_cap(self) -> float:
        """Largest importance weight of a token or completion; 0 where none is weighed."""
        return self.rollout.importance_cap(self.loss.importance_cap)
