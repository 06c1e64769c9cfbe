"""Configuration shared by all on-policy runs."""

from dataclasses import dataclass, field
from typing import Literal

from jaxalign.data import DataConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import EngineConfig, SamplingConfig
from jaxalign.rollout.config import Storage
from jaxalign.runs import RunConfig
from jaxalign.training.core.eval_config import EvalConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.rl.collapse import CollapseConfig

# A server computes almost the policy, not exactly: the largest importance weight of its samples.
SERVER_CAP = 2.0

ImportanceLevel = Literal["auto", "token", "sequence"]
ImportanceMode = Literal["truncate", "mask"]


def check_cap(cap: float) -> None:
    """Raises ValueError for a loss.importance_cap out of range."""
    if cap not in (0.0, -1.0) and cap < 1:
        raise ValueError(
            f"loss.importance_cap must be 1 or more, 0 for none, or -1 for the default, got {cap}"
        )


@dataclass(frozen=True, kw_only=True)
class RolloutTrainConfig:
    """Size of a rollout, and the updates made from it.

    Attributes:
      updates: number of rollouts in the run; each is one update.
      prompts: prompts per rollout, with sampling.num_samples completions each.
      epochs: passes over each rollout.
      minibatches: optimizer steps per pass.
      accumulation_steps: number of micro-batches to split each minibatch into, to save memory.
      score_batch_size: rows that the policy, reference and critic score at once; for reward models, packed rows
        (several short completions each). On a mesh rounded up to a multiple of mesh.data x mesh.fsdp x mesh.expert.
      eval_prompts: maximum number of held-out prompts (data.validation, or data.validation_fraction of the training
        prompts) per evaluation, run every run.eval_every updates and at the end; 0 disables evaluation, and
        eval.generate.every above 0 takes its place.
      target_kl: stop the passes over a rollout once the approximate KL, in nats per token, exceeds this; 0 disables
        the check.
      logp_tolerance: maximum difference, in nats, between the sampler's and the policy's log-probs before the first
        update: in float32 of any token, where 0 uses 1e-3; in bfloat16 and float16 of the mean over tokens,
        where 0 uses 0.1; in int8 rollouts likewise, where 0 uses 0.05. Servers use
        rollout.engine.logp_tolerance instead.
      packing: pack several short rows into one to reduce padding; the loss does not change.
      offload: keep the reference and reward models in host memory while they are idle, on devices with their own
        memory (GPU, TPU); each update copies them to the device once.
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
      engine: the engine that samples.
      weights: int8 samples from the policy with 8-bit integer weights, a quarter of the float32 memory; same uses
        them unchanged.
      cache: int8 stores the keys and values of a rollout as 8-bit integers; same uses the compute dtype. With either,
        the sampler's distribution differs from the policy's, so PPO and GRPO require loss.importance_cap.
      exact: compute every token in programs of one shape, so that sampler and trainer give it the same log-prob to the
        bit, however rows are batched or packed; a run stops where they differ. Slower; on one device.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    weights: Storage = "same"
    cache: Storage = "same"
    exact: bool = False

    def __post_init__(self) -> None:
        if self.exact and self.int8:
            raise ValueError("rollout.exact needs rollout.weights and rollout.cache to be same: 8 bits round")
        if self.exact and self.engine.kind != "local":
            raise ValueError(f"rollout.exact needs rollout.engine.kind=local, got {self.engine.kind}")
        if self.int8 and self.engine.kind != "local":
            raise ValueError(
                f"rollout.weights and rollout.cache must be same with rollout.engine.kind={self.engine.kind}: "
                "the server configures its own precision"
            )

    @property
    def int8(self) -> bool:
        """Whether samples come from a rounded policy."""
        return "int8" in (self.weights, self.cache)

    def importance_cap(self, asked: float) -> float:
        """The cap that a loss sets; by default SERVER_CAP for a server's samples and 0 for the local sampler's."""
        if asked >= 0:
            return asked
        return 0.0 if self.engine.kind == "local" else SERVER_CAP

    def check_corrected(self, importance_cap: float) -> None:
        """Raises ValueError if samples of a rounded policy would be used without importance weights."""
        if self.int8 and not importance_cap:
            raise ValueError(
                "rollout.weights=int8 and rollout.cache=int8 sample from a distribution that is not the policy's; "
                "correct for it with loss.importance_cap=2 (if the loss has that key), or set both to same"
            )


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """Training a policy on rewards for its own samples.

    Attributes:
      run: folder, seed, device, and how often to log and save (in updates).
      model: the policy's initial model.
      reference: the frozen reference; an empty path uses the policy's initial model (with LoRA, its base model).
      reward: where rewards come from.
      data: prompts (any layout; completions are ignored).
      sampling: how completions are sampled; log-probs are scored at the same temperature.
      rollout: the engine that samples them.
      train: size of a rollout, and the updates made from it.
      optimizer: the optimizer and its schedule.
      lora: train an adapter instead of all policy weights.
      mesh: number of devices along each mesh axis.
      collapse: when to warn that the policy may have collapsed.
      eval: evaluations by generation, in place of those at run.eval_every.
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
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        rows = self.train.prompts * self.sampling.num_samples
        step = self.train.minibatches * self.train.accumulation_steps
        if rows % step:
            raise ValueError(
                f"train.prompts x sampling.num_samples = {rows} completions must be divisible by "
                f"train.minibatches x train.accumulation_steps = {step}"
            )
        if self.sampling.temperature <= 0:
            raise ValueError(
                f"sampling.temperature must be positive for training, got {self.sampling.temperature}"
            )
        generate = self.eval.generate
        if generate.every and self.run.eval_every:
            raise ValueError(
                "run.eval_every and eval.generate.every: choose one; both sample answers to held-out prompts"
            )
        if generate.every and "kl" in generate.metrics and not self.measures_kl:
            raise ValueError(
                "eval.generate.metrics: kl needs eval.generate.sampling.temperature = sampling.temperature = "
                f"{self.sampling.temperature:g}, at which the reference is read; got {generate.sampling.temperature:g}"
            )
        engine, sampling = self.rollout.engine, self.sampling
        if engine.kind != "local" and (sampling.top_k or sampling.top_p < 1 or sampling.min_p):
            raise ValueError(
                f"sampling.top_k, top_p and min_p must be off with rollout.engine.kind={engine.kind}: the server's "
                "log-probs of a truncated distribution are not comparable with the policy's"
            )
        if self.rollout.exact and (self.lora.dropout or self.lora.base_weights != "same"):
            raise ValueError(
                "rollout.exact needs lora.dropout=0 and lora.base_weights=same: they differ in training"
            )
        if engine.weights == "adapter" and not self.lora.enabled:
            raise ValueError("rollout.engine.weights=adapter needs lora.enabled")
        if engine.weights == "adapter" and self.lora.dora:
            raise ValueError(
                "rollout.engine.weights=adapter: servers do not take adapters with lora.dora; set merged"
            )

    @property
    def measures_kl(self) -> bool:
        """Whether held-out answers are sampled at the temperature at which policy and reference are scored."""
        return self.eval.generate.sampling.temperature == self.sampling.temperature

    @property
    def rows_per_prompt(self) -> int:
        """Rows that an update trains on, of each prompt."""
        return self.sampling.num_samples
