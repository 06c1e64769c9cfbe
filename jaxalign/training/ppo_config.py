"""What a PPO run is told."""

from dataclasses import dataclass, field
from typing import Literal

from jaxalign.data import DataConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.heads import HeadConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.kl_controller import KLConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.setup import ModelSource


@dataclass(frozen=True, kw_only=True)
class RewardSource:
    """Where rewards come from: a reward model, Python functions, or a weighted mix of both.

    Attributes:
      model: folder of a reward model (or its run folder); empty for none.
      functions: Python functions, as package.module:function or file.py:function.
      model_weight: weight of the reward model in the mix.
      weights: weights of the functions, in their order; empty for 1 each.
      missing_stop_penalty: taken from the score of a completion without a stop token.
      missing_stop_score: score of a completion without a stop token, in place of its own; None keeps it.
      clip: scores are clipped to +-clip; 0 turns it off.
      normalize: divide scores by their running standard deviation, after taking the running mean away.
      whiten: scale token rewards to variance 1 over the rollout batch, the mean kept.
    """

    model: str = ""
    functions: tuple[str, ...] = ()
    model_weight: float = 1.0
    weights: tuple[float, ...] = ()
    missing_stop_penalty: float = 0.0
    missing_stop_score: float | None = None
    clip: float = 0.0
    normalize: bool = False
    whiten: bool = False

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.functions):
            raise ValueError(
                f"reward.weights: expected one weight for each of the {len(self.functions)} functions, "
                f"got {len(self.weights)}"
            )


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The value function.

    Attributes:
      init: reward (copy of the reward model), policy (the policy's trunk under a fresh head), or path.
      path: folder of a scalar model, where init is path.
      shared_trunk: one trunk for policy and value, with a value head on it.
      head: the value head, where it is fresh.
      optimizer: the critic's own optimizer (unused with a shared trunk).
      warmup_updates: first updates, in which only the critic learns.
    """

    init: Literal["reward", "policy", "path"] = "policy"
    path: str = ""
    shared_trunk: bool = False
    head: HeadConfig = field(default_factory=HeadConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, schedule="linear", epsilon=1e-5)
    )
    warmup_updates: int = 0


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

    def __post_init__(self) -> None:
        if self.ratio_limit and self.ratio_limit <= 1:
            raise ValueError(f"loss.ratio_limit must be above 1, or 0 for none, got {self.ratio_limit}")


@dataclass(frozen=True, kw_only=True)
class PPOTrainConfig:
    """The size of a rollout and how it is used.

    Attributes:
      updates: rollouts in all.
      prompts: prompts a rollout; with sampling.num_samples completions each.
      epochs: passes over a rollout.
      minibatches: optimizer steps a pass.
      accumulation_steps: micro-batches an optimizer step is split into.
      score_batch_size: rows scored at once by policy, reference, critic and reward model.
      target_kl: stop the passes over a rollout when approx-KL (nats a token) exceeds it; 0 turns it off.
      logp_tolerance: largest difference of sampler and training log-probs allowed before the first
        update, nats; 0 picks 1e-3 for float32 and 0.1 for bfloat16.
    """

    updates: int = 100
    prompts: int = 64
    epochs: int = 4
    minibatches: int = 4
    accumulation_steps: int = 1
    score_batch_size: int = 64
    target_kl: float = 0.0
    logp_tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("updates", "prompts", "epochs", "minibatches", "accumulation_steps", "score_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Proximal policy optimization with a critic.

    Attributes:
      run: folder, seed, device, and how often to log and save (in updates).
      model: the policy to start from.
      reference: the frozen reference; an empty path takes the policy as it starts (with LoRA: its base).
      reward: where rewards come from.
      critic: the value function.
      data: prompts (any format; completions are ignored).
      sampling: how completions are drawn; its temperature is the one log-probs are scored at.
      loss: advantages and losses.
      kl: the KL penalty in the reward.
      train: the size of a rollout and how it is used.
      optimizer: the policy's optimizer.
      lora: train an adapter instead of all policy weights.
      mesh: devices by axis.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    reference: ModelSource = field(default_factory=ModelSource)
    reward: RewardSource = field(default_factory=RewardSource)
    critic: CriticConfig = field(default_factory=CriticConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: PPOLossConfig = field(default_factory=PPOLossConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    train: PPOTrainConfig = field(default_factory=PPOTrainConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-6, schedule="linear", epsilon=1e-5)
    )
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        rows = self.train.prompts * self.sampling.num_samples
        step = self.train.minibatches * self.train.accumulation_steps
        if rows % step:
            raise ValueError(
                f"train.prompts x sampling.num_samples = {rows} completions do not divide by "
                f"train.minibatches x train.accumulation_steps = {step}"
            )
        if self.critic.shared_trunk and self.lora.enabled:
            raise ValueError(
                "critic.shared_trunk and lora.enabled: choose one; the trunk is frozen under LoRA"
            )
        if self.sampling.temperature <= 0:
            raise ValueError(
                f"sampling.temperature must be positive for PPO, got {self.sampling.temperature}"
            )
