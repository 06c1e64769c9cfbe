"""The settings of `jaxalign compare`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxalign.config_values import as_tuples
from jaxalign.evaluation.evaluate_config import AnswerConfig
from jaxalign.evaluation.judging.config import JudgeConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.training.core.reward_source import RewardSource


@dataclass(frozen=True, kw_only=True)
class CompareData:
    """The files of a comparison, in any layout that training reads.

    Attributes:
      demonstrations: for supervised fine-tuning, the start of all methods.
      pairs: comparisons, for the reward model, DPO, KTO (split into two) and TFPO.
      feedback: what people said of answers, in the order in which they said it: rows with a label (only the good ones
        are learned from), a score (with settings.feedback data.min_score), or `edited`, a person's own wording, which
        takes the answer's place.
      prompts: for methods that sample; empty uses the prompts of the pairs.
      held_out_prompts: on which all methods are measured.
      held_out_pairs: on which losses of pairs are evaluated; empty evaluates none.
    """

    demonstrations: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    feedback: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    held_out_prompts: str = ""
    held_out_pairs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, "demonstrations", "pairs", "feedback", "prompts", "held_out_pairs")


@dataclass(frozen=True, kw_only=True)
class CompareBudget:
    """What every method may use beyond the supervised model.

    Attributes:
      samples: rows or pairs that a method on fixed data trains on, and completions that a method that samples draws.
      batch_size: rows, pairs or completions per optimizer step.
      rollout: completions per update of methods that sample, in rollout / batch_size optimizer steps per pass.
      rounds: parts into which the feedback is split, and rounds of training.
      best_of: answers of which best-of-n keeps one.
    """

    samples: int = 2048
    batch_size: int = 16
    rollout: int = 64
    rounds: int = 3
    best_of: int = 8

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "rollout", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"budget.{name} must be 1 or more, got {getattr(self, name)}")
        if self.best_of < 2:
            raise ValueError(f"budget.best_of must be 2 or more, got {self.best_of}")
        for whole, part in (("samples", "rollout"), ("rollout", "batch_size"), ("samples", "batch_size")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"budget.{whole} = {getattr(self, whole)} must be a multiple of budget.{part} = "
                    f"{getattr(self, part)}"
                )
        if self.samples // self.batch_size < self.rounds:
            raise ValueError(
                f"budget.rounds = {self.rounds}: more than the {self.samples // self.batch_size} optimizer steps"
            )


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of methods from one supervised model.

    Attributes:
      model: the base model: a Hugging Face folder, a run folder or a hub id; unused where `sft` is given.
      sft: folder of a supervised model to start from; empty trains one on data.demonstrations, for all methods and
        seeds.
      methods: what to compare: sft (the start itself), feedback, ppo, dpo, kto, grpo, rloo, best_of_n, tfpo; empty
        compares all whose data are there. See docs/howto/compare.md.
      seeds: seeds of each method; sft is measured with each.
      data: the files.
      proxy: the reward that methods optimize; empty trains a reward model on data.pairs.
      gold: a reward that no method sees, by which they are judged; empty judges by the judge, or else by the proxy.
      judge: a model that compares each answer with the supervised model's; empty for none.
      budget: what every method may use.
      sampling: how answers are sampled when methods are measured; its length also holds for training.
      tasks: files of benchmarks for every cell, as of `jaxalign evaluate`.
      shots: for tasks that take solved problems, the file that they are from.
      limit: questions of each benchmark to ask; 0 asks all.
      prompts: held-out prompts to ask, from the beginning of the file; 0 asks all.
      lora: train adapters instead of all weights.
      settings: keys of a method's own command by their dotted names, as in '{dpo: {loss.beta: 0.2}}'; of `all` they
        hold for every method that has them, of `sft` and `reward` for what all methods begin with.
      output: folder for the cells, results.json and report.html; cells that it holds are not run again.
      isolated: run every cell in a process of its own, which tells its peak memory; false runs all in this one.
      batch_size: questions at once when methods are measured.
      device: device to run on: cpu, gpu or tpu; auto uses JAX's default.
    """

    model: str = ""
    sft: str = ""
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    data: CompareData = field(default_factory=CompareData)
    proxy: RewardSource = field(default_factory=RewardSource)
    gold: RewardSource = field(default_factory=RewardSource)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    budget: CompareBudget = field(default_factory=CompareBudget)
    sampling: AnswerConfig = field(default_factory=lambda: AnswerConfig(max_new_tokens=128, temperature=1.0))
    tasks: Mapping[str, str] = field(default_factory=dict)
    shots: Mapping[str, str] = field(default_factory=dict)
    limit: int = 0
    prompts: int = 200
    lora: LoraConfig = field(default_factory=LoraConfig)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    output: str = "runs/compare"
    isolated: bool = True
    batch_size: int = 32
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"

    def __post_init__(self) -> None:
        as_tuples(self, "methods", "seeds")
        for name in ("limit", "prompts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        for name in ("methods", "seeds"):
            given = getattr(self, name)
            if twice := [each for each in given if given.count(each) > 1]:
                raise ValueError(f"{name}: {twice[0]} is named twice")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected at least one, 0 or more, got {list(self.seeds)}")
        if self.sampling.max_new_tokens < 1 or self.sampling.temperature == 0:
            raise ValueError(
                "sampling: expected max_new_tokens of 1 or more, and a temperature above 0, as KL is of samples"
            )
        if self.sampling.num_samples != 1:
            raise ValueError(
                "sampling.num_samples: every seed samples one answer to a prompt; set more seeds"
            )
