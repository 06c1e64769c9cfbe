"""Configuration of distillation."""

from dataclasses import dataclass, field
from typing import Literal

from jaxalign.data import DataConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.eval_config import EvalConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource

DivergenceName = Literal["jsd", "forward_kl", "reverse_kl"]


@dataclass(frozen=True, kw_only=True)
class DistillLossConfig:
    """The divergence of teacher and student at each completion token.

    Attributes:
      name: jsd (generalized Jensen-Shannon divergence), forward_kl (KL(teacher || student)) or reverse_kl
        (KL(student || teacher)).
      beta: weight of the teacher in the mixture of jsd, in (0, 1): close to 0 it acts as forward_kl, close to 1 as
        reverse_kl.
      temperature: divides the logits of both.
    """

    name: DivergenceName = "jsd"
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(
                f"loss.beta must lie between 0 and 1, got {self.beta}; for its ends set loss.name to forward_kl or "
                "reverse_kl"
            )
        if self.name != "jsd" and self.beta != 0.5:
            raise ValueError(f"loss.beta is not used by loss.name={self.name}; leave it at 0.5")
        if self.temperature <= 0:
            raise ValueError(f"loss.temperature must be positive, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation of a teacher into a student with the same tokenizer.

    Attributes:
      run: folder, seed, device, and how often to log, evaluate and save.
      model: the student's initial model.
      teacher: the frozen teacher.
      data: demonstrations; the student's own completions follow their prompts.
      on_policy: probability that a step learns from completions that the student samples for the batch's prompts,
        in place of the demonstrations; 0 is supervised distillation, 1 is on-policy.
      loss: the divergence.
      train: batches and length of training.
      optimizer: the optimizer and its schedule.
      lora: train an adapter instead of all weights.
      mesh: number of devices along each mesh axis.
      sampling: how the student's completions are sampled, for training and for samples.jsonl.
      eval: evaluations by generation.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    teacher: ModelSource = field(default_factory=ModelSource)
    data: DataConfig = field(default_factory=DataConfig)
    on_policy: float = 0.5
    loss: DistillLossConfig = field(default_factory=DistillLossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=128))
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.on_policy <= 1:
            raise ValueError(f"on_policy must lie in [0, 1], got {self.on_policy}")
        if self.sampling.num_samples != 1:
            raise ValueError(f"sampling.num_samples must be 1, got {self.sampling.num_samples}")
        if self.on_policy and self.train.packing:
            raise ValueError("train.packing needs on_policy=0: the student's completions are not packed")
        if self.on_policy and self.train.batch_tokens:
            raise ValueError(
                "train.batch_tokens needs on_policy=0: the lengths of the student's completions are not known; set "
                "train.batch_size"
            )
