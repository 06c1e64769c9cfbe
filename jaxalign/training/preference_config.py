"""Settings of preference training: which loss, and its numbers."""

from dataclasses import dataclass, field, fields
from typing import Literal

from jaxalign.data import DataConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.loop import TrainConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.preference_losses import FORMS
from jaxalign.training.setup import ModelSource

LossName = Literal[
    "dpo",
    "robust",
    "ipo",
    "hinge",
    "exo",
    "nca",
    "bco_pair",
    "sppo",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "f_divergence",
    "simpo",
    "cpo",
    "alphapo",
    "orpo",
    "kto",
    "bco",
    "apo_zero_unpaired",
]
# Fields that not every loss reads; one that is set and not read would mislead.
OPTIONAL = (
    "label_smoothing",
    "gamma",
    "alpha",
    "tau",
    "divergence",
    "desirable_weight",
    "undesirable_weight",
)


@dataclass(frozen=True, kw_only=True)
class DPOLossConfig:
    """The preference loss.

    Attributes:
      name: the loss, `jaxalign.losses.NAME_loss` (robust and f_divergence: NAME_dpo_loss). Of pairs with a
        reference: dpo (conservative with label_smoothing), robust, ipo, hinge, exo, nca, bco_pair, sppo, aot,
        aot_unpaired, apo_zero, apo_down, discopop, f_divergence; of pairs without one: simpo, cpo, alphapo,
        orpo; of labelled completions (or pairs, taken apart): kto, bco, apo_zero_unpaired.
      beta: strength of the pull to the reference, in units of 1 / nats (simpo, alphapo: scale of the margin;
        orpo: weight of the odds ratio).
      label_smoothing: chance that a label is flipped, in [0, 0.5); for dpo, robust, exo (there positive), aot,
        aot_unpaired and cpo.
      gamma: the margin asked for, for simpo and alphapo.
      alpha: for alphapo (0 is simpo) and for f_divergence=alpha.
      tau: temperature of discopop's blend.
      divergence: for f_divergence: reverse_kl, forward_kl, js or alpha.
      desirable_weight: weight of completions to be imitated, for kto, bco and apo_zero_unpaired.
      undesirable_weight: weight of the others.
      length_normalize: give a loss with a reference the mean log-prob a token instead of the sum (IPO as in TRL).
      length_alpha: weight of the tokens by which a completion is longer than its pair's other one (LD-DPO); 1
        counts them as all others.
      weighted: multiply by the pair's WPO weight, the likelihood of both completions under the policy.
      sft_weight: weight of the chosen completion's negative log-likelihood a token (the RPO term); unset, 1 for
        cpo and orpo, whose papers have it, and 0 for the others.
    """

    name: LossName = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    alpha: float = 0.5
    tau: float = 0.05
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    length_normalize: bool = False
    length_alpha: float = 1.0
    weighted: bool = False
    sft_weight: float | None = None

    def __post_init__(self) -> None:
        form = FORMS[self.name]
        if self.beta <= 0:
            raise ValueError(f"loss.beta must be positive, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"loss.label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")
        if not 0 <= self.length_alpha <= 1:
            raise ValueError(f"loss.length_alpha must lie in [0, 1], got {self.length_alpha}")
        if self.name == "exo" and not self.label_smoothing:
            raise ValueError("loss.name=exo needs loss.label_smoothing above 0 (its paper has 0.001)")
        for option in fields(self):
            moved = getattr(self, option.name) != option.default
            if option.name in OPTIONAL and moved and option.name not in form.options:
                raise ValueError(
                    f"loss.{option.name} has no meaning for loss.name={self.name}; leave it at {option.default}"
                )
        if form.unpaired and (self.length_alpha != 1 or self.weighted):
            raise ValueError(f"loss.length_alpha and loss.weighted need pairs, not loss.name={self.name}")
        if self.length_normalize and (form.unpaired or not form.reference):
            raise ValueError(
                f"loss.length_normalize has no meaning for loss.name={self.name}; set it to false"
            )

    @property
    def supervised_weight(self) -> float:
        """`sft_weight`, or what the loss has by itself."""
        return (1.0 if self.name in ("cpo", "orpo") else 0.0) if self.sft_weight is None else self.sft_weight


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Preference training.

    Attributes:
      run: folder, seed, device, and how often to log, evaluate and save.
      model: the policy to start from.
      reference: the frozen reference; an empty path takes the policy as it starts (with LoRA: its base).
      reference_logps: live (the reference runs beside the policy) or precomputed (its log-probs of all rows
        are computed once and kept in files, and the reference leaves the device: what train.offload is elsewhere, which
        would move it there and back for every step).
      reference_cache: folder of the files; empty takes the run's own. Runs on the same data and reference
        may share one.
      data: comparisons; for kto, bco and apo_zero_unpaired also labelled completions.
      loss: which loss, and its numbers.
      train: batches and length.
      optimizer: AdamW and its schedule.
      lora: train an adapter instead of all weights.
      mesh: devices by axis.
      sampling: how the samples of samples.jsonl are drawn.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    reference: ModelSource = field(default_factory=ModelSource)
    reference_logps: Literal["live", "precomputed"] = "live"
    reference_cache: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    loss: DPOLossConfig = field(default_factory=DPOLossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-6, schedule="linear", warmup_ratio=0.1)
    )
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.loss.name == "kto" and self.reference_logps == "precomputed":
            raise ValueError(
                "reference_logps=precomputed does not go with loss.name=kto, which also scores each prompt with "
                "another one's completion, and those change with every batch"
            )
        read = {
            "batch_size": not (self.train.batch_tokens and self.train.eval_batch_size),
            "eval_batch_size": True,
        }
        for name in (name for name, used in read.items() if used):
            if FORMS[self.loss.name].statistic and getattr(self.train, name) == 1:
                raise ValueError(
                    f"train.{name} must be 2 or more with loss.name={self.loss.name}, which sets each example against "
                    "the others of its batch; got 1"
                )
        if self.reference_cache and self.reference_logps == "live":
            raise ValueError("reference_cache needs reference_logps=precomputed")
