"""Configuration of preference training."""

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxalign.data import DataConfig
from jaxalign.losses.preference import PREFERENCE_LOSSES, LossSpec, Option
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.eval_config import EvalConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource

LossName = Literal[tuple(PREFERENCE_LOSSES)]


def options_of(table: Mapping[str, LossSpec]) -> dict[str, Option]:
    """The options of all losses by name: those that a loss does not read must stay at their defaults.

    Raises:
      ValueError: two losses own different options of one name, which would be one key of a configuration.
    """
    found: dict[str, Option] = {}
    for name, spec in table.items():
        for option in spec.options:
            if found.setdefault(option.name, option) != option:
                raise ValueError(f"{name}: another loss has a different option {option.name}")
    return found


def _meanings(table: Mapping[str, LossSpec]) -> dict[str, str]:
    """Meanings, for `--help`, of the keys that depend on the table."""

    def names(holds: Any) -> str:
        return ", ".join(name for name, spec in table.items() if holds(spec))

    kinds = {
        "pairs, with a reference": names(lambda spec: not spec.unpaired and spec.reference),
        "pairs, without a reference": names(lambda spec: not spec.unpaired and not spec.reference),
        "labeled completions (or pairs, split into two)": names(lambda spec: spec.unpaired),
    }
    supervised = names(lambda spec: spec.sft_weight)
    return {
        "name": "the loss. For " + "; for ".join(f"{kind}: {found}" for kind, found in kinds.items()),
        **{
            name: f"{option.meaning} ({names(lambda spec, o=option: o in spec.options)})"
            for name, option in options_of(table).items()
        },
        "sft_weight": "weight of the chosen completion's negative log-likelihood per token (the RPO term); null "
        f"uses the paper's weight for {supervised}, and 0 for all others",
    }


@dataclass(frozen=True, kw_only=True)
class PreferenceLossConfig:
    """The keys that all preference losses share; `loss_config` adds the options of each.

    Attributes:
      beta: strength of the penalty that keeps the policy close to the reference (simpo, alphapo: scale of the margin;
        orpo: weight of the odds ratio).
      length_normalize: divide each completion's log-prob by its length, for losses with a reference (for ipo this
        matches TRL).
      length_alpha: weight of the tokens that make one completion longer than the other of its pair (LD-DPO); 1
        weights all tokens alike.
      weighted: multiply each pair's loss by its WPO weight, the likelihood of both completions under the policy.
      function: your own loss, as file.py:function or package.module:function, used in place of the one that `name`
        selects; it receives the same arrays and none of the options. For dpo: loss(policy_chosen_logps[B],
        policy_rejected_logps[B], ref_chosen_logps[B], ref_rejected_logps[B]) -> [B]. beta then only scales the logged
        rewards.
    """

    table: ClassVar[Mapping[str, LossSpec]] = {}
    name: str = "dpo"
    beta: float = 0.1
    length_normalize: bool = False
    length_alpha: float = 1.0
    weighted: bool = False
    sft_weight: float | None = None
    function: str = ""

    def __post_init__(self) -> None:
        if self.name not in self.table:
            raise ValueError(f"loss.name must be one of {', '.join(self.table)}, got {self.name!r}")
        spec, options = self.spec, options_of(self.table).values()
        if self.beta <= 0:
            raise ValueError(f"loss.beta must be positive, got {self.beta}")
        for option in options:
            option.check(getattr(self, option.name))
        if not 0 <= self.length_alpha <= 1:
            raise ValueError(f"loss.length_alpha must lie in [0, 1], got {self.length_alpha}")
        for option in options:
            moved = getattr(self, option.name) != option.default
            if option.name in spec.required and not moved:
                raise ValueError(
                    f"loss.name={self.name} needs loss.{option.name} {spec.required[option.name]}"
                )
            # One that is set and not read would mislead.
            if moved and option not in spec.options:
                raise ValueError(
                    f"loss.{option.name} is not used by loss.name={self.name}; leave it at {option.default}"
                )
        if spec.unpaired and (self.length_alpha != 1 or self.weighted):
            raise ValueError(f"loss.length_alpha and loss.weighted need pairs, not loss.name={self.name}")
        if self.length_normalize and (spec.unpaired or not spec.reference):
            raise ValueError(f"loss.length_normalize is not used by loss.name={self.name}; set it to false")

    @property
    def spec(self) -> LossSpec:
        """What the loss is and needs."""
        return self.table[self.name]

    @property
    def arguments(self) -> dict[str, Any]:
        """Beta and the options of the loss, as its function takes them."""
        return {"beta": self.beta} | {option.name: getattr(self, option.name) for option in self.spec.options}

    @property
    def supervised_weight(self) -> float:
        """`sft_weight`, or what the loss has by itself."""
        return self.spec.sft_weight if self.sft_weight is None else self.sft_weight


def loss_config(table: Mapping[str, LossSpec]) -> type[PreferenceLossConfig]:
    """The configuration of a table's losses: `name` is one of theirs, and their options are fields."""
    options = options_of(table).values()
    lines = ["The preference loss.", "", "Attributes:"]
    lines += [f"  {name}: {meaning}." for name, meaning in _meanings(table).items()]
    return make_dataclass(
        "DPOLossConfig",
        [("name", Literal[tuple(table)], "dpo"), *((o.name, o.type, o.default) for o in options)],
        bases=(PreferenceLossConfig,),
        namespace={"__doc__": "\n".join(lines), "__module__": __name__, "table": table},
        frozen=True,
        kw_only=True,
    )


if TYPE_CHECKING:

    class DPOLossConfig(PreferenceLossConfig):
        """`loss_config` of `PREFERENCE_LOSSES`, whose options no type checker sees as fields."""

        def __init__(
            self,
            *,
            name: str = ...,
            beta: float = ...,
            length_normalize: bool = ...,
            length_alpha: float = ...,
            weighted: bool = ...,
            sft_weight: float | None = ...,
            function: str = ...,
            **options: Any,
        ) -> None: ...

else:
    DPOLossConfig = loss_config(PREFERENCE_LOSSES)


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Preference training.

    Attributes:
      run: folder, seed, device, and how often to log, evaluate and save.
      model: the policy's initial model.
      reference: the frozen reference; an empty path uses the policy's initial model (with LoRA, its base model).
      reference_logps: live (run the reference beside the policy) or precomputed (compute its log-probs for all rows
        once, store them in files and free the reference's device memory; use this instead of train.offload, which
        would move the reference to the device and back at every step).
      reference_cache: folder of the precomputed log-probs; empty uses the run folder. Runs with the same data and
        reference can share one.
      data: comparisons; losses of labeled completions (see loss.name) also read those.
      loss: which loss, and its options.
      train: batches and length of training.
      optimizer: the optimizer and its schedule.
      lora: train an adapter instead of all weights.
      mesh: number of devices along each mesh axis.
      sampling: how to sample the completions in samples.jsonl.
      eval: evaluations by generation.
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
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        statistic = self.loss.spec.statistic
        if statistic and statistic.mismatched and self.reference_logps == "precomputed":
            raise ValueError(
                f"reference_logps=precomputed cannot be combined with loss.name={self.loss.name}, which also "
                "scores each prompt with the completion of another, different in every batch"
            )
        read = {
            "batch_size": not (self.train.batch_tokens and self.train.eval_batch_size),
            "eval_batch_size": True,
        }
        for name in (name for name, used in read.items() if used):
            if statistic and getattr(self.train, name) == 1:
                raise ValueError(
                    f"train.{name} must be 2 or more with loss.name={self.loss.name}, which compares each example "
                    "with the others of its batch; got 1"
                )
        if self.reference_cache and self.reference_logps == "live":
            raise ValueError("reference_cache needs reference_logps=precomputed")
