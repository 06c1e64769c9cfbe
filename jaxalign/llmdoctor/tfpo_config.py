"""Configuration of TFPO: the patient, the token rewards and the loss."""

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaxalign.data import DataConfig
from jaxalign.llmdoctor.contrastive_prompts import INSTRUCTION_PAIRS
from jaxalign.llmdoctor.token_rewards import TokenRewardConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.heads import HeadConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.models.tensor_dtypes import AutoDtype
from jaxalign.rollout import SamplingConfig
from jaxalign.rollout.config import Storage
from jaxalign.runs import RunConfig
from jaxalign.training.core.eval_config import EvalConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource

PresetName = Literal["paper", "paper_literal", "tilted", "repo"]
Reduction = Literal["mean", "sum", "batch_pairs"]
Guidance = Literal["product", "ratio"]
# Where an export of several doctors keeps what they began as, where no other folder has it.
START_FOLDER = "start"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The values that a preset sets; the fields are those of `TFPOLossConfig` and `GuidanceDefaults`."""

    reference_weight: float = 0.0
    pin_terminal: bool = True
    reduction: Reduction = "mean"
    value_weight: float = 0.1
    form: Guidance = "product"
    beta: float = 1.0


PRESETS: dict[PresetName, Preset] = {
    "paper": Preset(),
    "paper_literal": Preset(reduction="sum", pin_terminal=False),
    "tilted": Preset(reference_weight=1.0, form="ratio"),
    "repo": Preset(value_weight=1.0, beta=0.5),
}


@dataclass(frozen=True, kw_only=True)
class TFPONumbers:
    """The loss of a run: `TFPOLossConfig` with what its preset decides, and eta as a number."""

    reward_scale: float
    reference_weight: float
    pin_terminal: bool
    decay: float
    window: int
    reduction: Reduction
    margin: float
    value_weight: float
    equal_depth_pairs: int


@dataclass(frozen=True, kw_only=True)
class TFPOLossConfig:
    """Sub-trajectory balance and value discrimination.

    Attributes:
      preset: values of the keys that are null. paper: no reference, end pinned, mean over pairs, guidance by product.
        paper_literal: the paper's plain sum over pairs and unpinned end, for which every policy has log-values with
        loss 0. tilted: reference in the target, guidance by ratio. repo: as paper, with the numbers of a third-party
        configuration (value_weight 1, beta 0.5; that configuration also has rewards.threshold=0.1, which the preset
        does not set).
      reward_scale: eta, the factor on token rewards; auto derives it from the gradients of the first batches, so that
        the labels dominate the first steps (see `llmdoctor.reward_scale`).
      reference_weight: kappa, the weight of the doctor's initial model in the target, which is proportional to
        exp(eta * sum of rewards) * reference^kappa. null: 0, tilted 1.
      pin_terminal: set log V = 0 after the end token, so that the outgoing flow equals the reward; completions that
        were cut keep a free end. null: true, paper_literal false.
      decay: lambda, in (0, 1]: a pair of states n tokens apart has weight lambda^n.
      window: maximum number of tokens between the states of a pair; 0 uses all pairs.
      reduction: mean (over a completion's pairs of states) or sum (which grows with the length squared), then the
        mean over completions; batch_pairs divides by the weight of all pairs in the batch. null: mean, paper_literal
        sum.
      margin: gamma, in nats: the margin by which the value after the chosen token should be larger.
      value_weight: weight of value discrimination relative to the balance loss. null: 0.1, repo 1.
      equal_depth_pairs: number of additional value comparisons per pair, at equal depths after the two completions
        diverge, where the chosen token has a positive and the rejected token a negative reward (their prefixes
        differ); 0 uses none.
      value_ramp: rho, in nats per token: the initial slope by which log V falls along a completion; it is learned.
        null: (1 - kappa) * the mean -log pi of the completions, so that training starts near balance.
    """

    preset: PresetName = "paper"
    reward_scale: float | Literal["auto"] = "auto"
    reference_weight: float | None = None
    pin_terminal: bool | None = None
    decay: float = 1.0
    window: int = 0
    reduction: Reduction | None = None
    margin: float = 0.1
    value_weight: float | None = None
    equal_depth_pairs: int = 0
    value_ramp: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "reward_scale",
            "reference_weight",
            "window",
            "margin",
            "value_weight",
            "equal_depth_pairs",
        ):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                raise ValueError(f"loss.{name} must be non-negative and finite, got {value}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"loss.decay must lie in (0, 1], got {self.decay}")
        if self.value_ramp is not None and not math.isfinite(self.value_ramp):
            raise ValueError(f"loss.value_ramp must be finite, got {self.value_ramp}")

    def resolved(self, reward_scale: float = 1.0) -> TFPONumbers:
        """With the preset's numbers where a field is null, and this reward_scale where it is auto."""
        preset = PRESETS[self.preset]
        decided = {
            name: getattr(preset, name) if getattr(self, name) is None else getattr(self, name)
            for name in ("reference_weight", "pin_terminal", "reduction", "value_weight")
        }
        decided["reward_scale"] = reward_scale if self.reward_scale == "auto" else self.reward_scale
        plain = ("decay", "window", "margin", "equal_depth_pairs")
        return TFPONumbers(**decided, **{name: getattr(self, name) for name in plain})


@dataclass(frozen=True, kw_only=True)
class GuidanceDefaults:
    """How the trained doctor guides by default; written into its card.

    Attributes:
      form: product, or ratio (to the doctor's initial model). null: product, tilted ratio.
      alpha: exponent of the patient's probabilities.
      beta: exponent of the doctor's probabilities. null: 1, repo 0.5.
    """

    form: Guidance | None = None
    alpha: float = 1.0
    beta: float | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"guidance.{name} must be non-negative and finite, got {value}")

    def resolved(self, preset: PresetName) -> dict[str, Any]:
        """guidance, alpha and beta of a `DoctorCard`."""
        found = PRESETS[preset]
        return {
            "guidance": self.form or found.form,
            "alpha": self.alpha,
            "beta": found.beta if self.beta is None else self.beta,
        }


@dataclass(frozen=True, kw_only=True)
class PatientSource(ModelSource):
    """Where the patient comes from.

    Attributes:
      param_dtype: dtype in which parameters are stored; auto uses bfloat16 on a GPU or TPU, regardless of the files'
        dtype (the patient is never trained), and float32 on a CPU.
      weights: same, or int8: round weights to 8 bits, one at a time as they are read, while the patient scores the
        tokens.
    """

    param_dtype: AutoDtype = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    weights: Storage = "same"


@dataclass(frozen=True, kw_only=True)
class TFPOConfig:
    """TFPO training.

    Attributes:
      run: folder, seed, device, and how often to log, evaluate and save.
      patient: the frozen model whose log-probs give the token rewards, and which the doctor will guide.
      model: the doctor's initial model, with the patient's vocabulary; an empty path uses the patient.
      rewards: how the patient's log-probs under two instructions become token rewards.
      data: comparisons.
      dimensions: several preference dimensions in one run, one doctor (a LoRA adapter on a shared base) each: either
        a mapping to the data's label (data.dimension) that each learns from, as in '{"helpfulness": "better",
        "safety": "safer"}', or a list of names that all learn from data.dimension. Replaces rewards.dimension and,
        for a mapping, data.dimension; dimensions without shipped instructions need rewards.instructions. Empty trains
        one dimension.
      loss: the preset, and the values that replace its own.
      head: the head of log-values (init_std=0 starts it at zero).
      head_learning_rate: peak learning rate of the log-value head, which starts untrained, follows the optimizer's
        schedule and is clipped separately; 0 uses optimizer.learning_rate.
      on_identical: what to do with a comparison whose two completions have the same tokens: skip and count it, or
        stop at the first.
      train: batches and length of training.
      optimizer: the optimizer and its schedule.
      lora: train an adapter instead of all weights.
      mesh: number of devices along each mesh axis.
      sampling: how to sample the doctor's completions in samples.jsonl.
      eval: evaluations by generation, of what the doctor writes by itself; of several dimensions eval/generate/NAME/...
      guidance: how the doctor guides by default.
    """

    run: RunConfig = field(default_factory=RunConfig)
    patient: PatientSource = field(default_factory=PatientSource)
    model: ModelSource = field(default_factory=ModelSource)
    rewards: TokenRewardConfig = field(default_factory=TokenRewardConfig)
    data: DataConfig = field(default_factory=DataConfig)
    dimensions: dict[str, str] | tuple[str, ...] = ()
    loss: TFPOLossConfig = field(default_factory=TFPOLossConfig)
    head: HeadConfig = field(default_factory=lambda: HeadConfig(init_std=0.0))
    head_learning_rate: float = 1e-3
    on_identical: Literal["skip", "stop"] = "skip"
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=5e-5))
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    guidance: GuidanceDefaults = field(default_factory=GuidanceDefaults)

    def __post_init__(self) -> None:
        if not 0 <= self.head_learning_rate < math.inf:
            raise ValueError(
                f"head_learning_rate must be non-negative and finite, got {self.head_learning_rate}"
            )
        named = set(self.labels) if self.dimensions else {self.rewards.dimension}
        for name in sorted(self.rewards.instructions.keys() - named):
            raise ValueError(f"rewards.instructions.{name}: this run has no such dimension")
        if self.dimensions:
            self._check_dimensions()

    @property
    def labels(self) -> dict[str, str]:
        """Dimension -> label of the data, where there are several."""
        if isinstance(self.dimensions, Mapping):
            return dict(self.dimensions)
        return dict.fromkeys(self.dimensions, self.data.dimension)

    def each(self) -> dict[str, "TFPOConfig"]:
        """Dimension -> the configuration of a run of that dimension alone."""
        if not self.dimensions:
            return {self.rewards.dimension: replace(self, rewards=self.rewards.of(self.rewards.dimension))}
        return {
            name: replace(
                self,
                dimensions=(),
                rewards=self.rewards.of(name),
                data=replace(self.data, dimension=label),
            )
            for name, label in self.labels.items()
        }

    def _check_dimensions(self) -> None:
        known = typing.get_args(typing.get_type_hints(DataConfig)["dimension"])
        if len(self.labels) < len(self.dimensions):
            raise ValueError(f"dimensions: a name occurs twice in {', '.join(self.dimensions)}")
        for name, label in self.labels.items():
            if not re.fullmatch(r"\w[\w.-]*", name) or name == START_FOLDER:
                raise ValueError(
                    f"dimensions: {name!r} cannot name a doctor's folder; expected letters, digits, _ . - "
                    f"(but not {START_FOLDER}, which is reserved)"
                )
            if label not in known:
                raise ValueError(f"dimensions.{name}: no label {label!r}; expected {' or '.join(known)}")
            if name not in INSTRUCTION_PAIRS | self.rewards.instructions:
                raise ValueError(
                    f"dimensions: no instructions are shipped for {name!r}; expected "
                    f"{', '.join(INSTRUCTION_PAIRS)}, or rewards.instructions.{name}: [positive, negative]"
                )
        if self.rewards.positive:
            raise ValueError(
                "rewards.positive sets one dimension's instruction; with dimensions, set rewards.instructions by name"
            )
        if not self.lora.enabled:
            raise ValueError(
                "dimensions: several doctors are adapters on one base model; set lora.enabled=true"
            )
        if self.train.batch_tokens:
            raise ValueError(
                "train.batch_tokens cannot be combined with dimensions, whose batches must have equal sizes; set "
                "train.batch_size (train.packing=true also reduces padding)"
            )
