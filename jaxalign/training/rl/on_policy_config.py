"""What every run that learns from its own samples is told."""

from dataclasses import dataclass, field
from typing import Literal

from jaxalign.data import DataConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import EngineConfig, SamplingConfig
from jaxalign.rollout.config import Storage
from jaxalign.runs import RunConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.rl.collapse import CollapseConfig
from jaxalign.training.rl.reward_source import RewardSource

# What a server computes is close to the policy but not equal: the largest importance weight of its samples.
SERVER_CAP = 2.0

ImportanceLevel = Literal["auto", "token", "sequence"]
ImportanceMode = Literal["truncate", "mask"]


def check_cap(cap: float) -> None:
    """Raises ValueError for a loss.importance_cap that is none."""
    if cap not in (0.0, -1.0) and cap < 1:
        raise ValueError(
            f"loss.importance_cap must be 1 or more, 0 for none, or -1 for the default, got {cap}"
        )


@dataclass(frozen=True, kw_only=True)
class RolloutTrainConfig:
    """The size of a rollout and how it is used.

    Attributes:
      updates: rollouts in all.
      prompts: prompts a rollout; with sampling.num_samples completions each.
      epochs: passes over a rollout.
      minibatches: optimizer steps a pass.
      accumulation_steps: micro-batches an optimizer step is split into.
      score_batch_size: rows scored at once by policy, reference and critic, and packed rows (each of several
        completions, where they are short) by reward models.
      eval_prompts: held-out prompts (data.validation, or data.validation_fraction of the training prompts) that an
        evaluation answers at most, at run.eval_every and at the end; 0 for no evaluation.
      target_kl: stop the passes over a rollout when approx-KL (nats a token) exceeds it; 0 turns it off.
      logp_tolerance: largest difference of sampler and training log-probs allowed before the first
        update, nats; 0 picks 1e-3 for float32 and 0.1 for bfloat16 (a server has rollout.engine.logp_tolerance).
        With int8 rollouts it bounds the mean difference, and 0 picks 0.05.
      packing: lay out the rows of a batch end to end in fewer rows, so that padding costs little; the loss is
        the same.
      offload: keep the reference and the reward models in the host's memory while they are not used, where the
        device has memory of its own (GPU, TPU). Each update copies them to the device once.
    """

    updates: int = 100
    prompts: int = 64
    epochs: int = 1
    minibatches: int = 1
    accumulation_steps: int = 1
    score_batch_size: int = 64
    eval_prompts: int = 128
    target_kl: float = 0.0
    logp_tolerance: float = 0.0
    packing: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        for name in ("updates", "prompts", "epochs", "minibatches", "accumulation_steps", "score_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be 1 or more, got {getattr(self, name)}")
        if self.eval_prompts < 0:
            raise ValueError(f"train.eval_prompts must not be negative, got {self.eval_prompts}")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Where rollouts come from.

    Attributes:
      engine: who samples.
      weights: int8 samples from the policy with its weights rounded to 8-bit integers, in a quarter of the memory
        (float32); same takes them as they are.
      cache: int8 keeps the keys and values of a rollout as 8-bit integers; same in the compute dtype. Either makes the
        sampler another distribution than the policy: PPO and GRPO ask for loss.importance_cap then.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    weights: Storage = "same"
    cache: Storage = "same"

    def __post_init__(self) -> None:
        if self.int8 and self.engine.kind != "local":
            raise ValueError(
                f"rollout.weights and rollout.cache must be same with rollout.engine.kind={self.engine.kind}: "
                "the server has its own settings for that"
            )

    @property
    def int8(self) -> bool:
        """Whether samples come from a rounded policy."""
        return "int8" in (self.weights, self.cache)

    def importance_cap(self, asked: float) -> float:
        """The cap that a loss asks for; where it leaves that open, SERVER_CAP for a server's samples and 0 for ours."""
        if asked >= 0:
            return asked
        return 0.0 if self.engine.kind == "local" else SERVER_CAP

    def check_corrected(self, importance_cap: float) -> None:
        """Raises ValueError where samples of a rounded policy would be taken for the policy's own."""
        if self.int8 and not importance_cap:
            raise ValueError(
                "rollout.weights=int8 and rollout.cache=int8 sample from another distribution than the policy's; "
                "correct for it with loss.importance_cap=2 (where the loss has it), or leave both at same"
            )


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """A policy that learns from rewards of its own samples.

    Attributes:
      run: folder, seed, device, and how often to log and save (in updates).
      model: the policy to start from.
      reference: the frozen reference; an empty path takes the policy as it starts (with LoRA: its base).
      reward: where rewards come from.
      data: prompts (any format; completions are ignored).
      sampling: how completions are drawn; its temperature is the one log-probs are scored at.
      rollout: who draws them.
      train: the size of a rollout and how it is used.
      optimizer: the policy's optimizer.
      lora: train an adapter instead of all policy weights.
      mesh: devices by axis.
      collapse: when to warn that the policy may have collapsed.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    reference: ModelSource = field(default_factory=ModelSource)
    reward: RewardSource = field(default_factory=RewardSource)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: RolloutTrainConfig = field(default_factory=RolloutTrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)

    def __post_init__(self) -> None:
        rows = self.train.prompts * self.sampling.num_samples
        step = self.train.minibatches * self.train.accumulation_steps
        if rows % step:
            raise ValueError(
                f"train.prompts x sampling.num_samples = {rows} completions do not divide by "
                f"train.minibatches x train.accumulation_steps = {step}"
            )
        if self.sampling.temperature <= 0:
            raise ValueError(
                f"sampling.temperature must be positive for training, got {self.sampling.temperature}"
            )
        engine, sampling = self.rollout.engine, self.sampling
        if engine.kind != "local" and (sampling.top_k or sampling.top_p < 1 or sampling.min_p):
            raise ValueError(
                f"sampling.top_k, top_p and min_p must be off with rollout.engine.kind={engine.kind}: the server's "
                "log-probs of a truncated distribution cannot be held against the policy's"
            )
        if engine.weights == "adapter" and not self.lora.enabled:
            raise ValueError("rollout.engine.weights=adapter needs lora.enabled")
