"""Configuration of PPO."""

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
      init: initial weights: reward (the reward model, or the first member of an ensemble), policy (the policy's trunk
        with a new head) or path. The critic uses the policy's compute dtype.
      path: folder of a scalar model, for init=path.
      shared_trunk: share one trunk between policy and critic, with a value head on it.
      head: a new value head; head.init_std=0 starts it at zero, so that the first values are 0.
      optimizer: the critic's optimizer (unused with a shared trunk).
      warmup_updates: number of initial updates that train only the critic (with a shared trunk, only its value head);
        the policy, its optimizer state and its schedule start afterwards.
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
                f"critic.shared_trunk and critic.init={self.init}: choose one; a shared trunk always gets a new "
                "head"
            )


@dataclass(frozen=True, kw_only=True)
class PPOLossConfig:
    """Advantages and the two losses.

    Attributes:
      gamma: discount per token.
      lam: lambda of generalized advantage estimation.
      clip_low: clip the ratio at 1 - clip_low.
      clip_high: clip the ratio at 1 + clip_high.
      dual_clip: upper bound, above 1, on the ratio of tokens with a negative advantage (dual-clip PPO); 0 disables
        it.
      ratio_limit: skip an optimizer step whose mean ratio exceeds this (TRL 0.11 uses 10); 0 disables the check.
      value_clip: maximum change of a value per rollout, in units of reward; 0 disables clipping.
      value_weight: weight of the value loss.
      entropy_weight: weight of the entropy bonus.
      whiten_advantages: shift and scale advantages to mean 0 and variance 1 over the rollout.
      unbiased_variance: divide by n - 1 when whitening (as TRL does) instead of n (as OpenAI does).
      reduction: token (mean over all tokens) or sequence (mean over rows of each row's mean).
      bootstrap_truncated: after a completion that was cut at the length limit, use the critic's value instead of 0.
      importance_cap: maximum importance weight (ratio of the policy to the sampler) of a token in the policy loss,
        which corrects for truncated sampling or another engine; 0 disables the correction, -1 uses 2 with a server
        and 0 otherwise.
      importance_level: one importance weight per token, or one per sequence (the whole completion); auto is token.
      importance_mode: what to do with a weight above the cap: truncate (set it to the cap) or mask (set it to 0).
      function: your own loss, as file.py:function or package.module:function, used in place of the clipped policy
        loss; called as loss(logps[B, T], old_logps[B, T], advantages[B, T], mask[B, T]) -> [B, T].
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
                f"critic.warmup_updates must lie in 0 to train.updates = {self.train.updates}, got "
                f"{self.critic.warmup_updates}"
            )
        self.rollout.check_corrected(self.importance_cap)
        if self.lora.base_weights != "same" and self.critic.init == "policy":
            raise ValueError(
                f"lora.base_weights={self.lora.base_weights} and critic.init=policy: the critic trains all weights of "
                "its trunk, which cannot be quantized ones; set critic.init=reward or path"
            )
        if self.critic.shared_trunk and self.lora.enabled:
            raise ValueError(
                "critic.shared_trunk and lora.enabled: choose one; the trunk is frozen under LoRA"
            )

    @property
    def importance_cap(self) -> float:
        """Largest importance weight of a token or completion; 0 where none is weighed."""
        return self.rollout.importance_cap(self.loss.importance_cap)
