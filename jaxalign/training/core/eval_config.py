"""Configuration of the evaluations of a run: the section `eval`."""

from dataclasses import dataclass, field

from jaxalign.config_values import as_tuples
from jaxalign.rollout import SamplingConfig
from jaxalign.training.core.answer_measures import MEASURES, OF_SEVERAL
from jaxalign.training.core.reward_source import RewardSource

# Keys of a reward that shape what is learnt from it: an evaluation reports rewards as they are.
SHAPING = ("missing_stop_penalty", "missing_stop_score", "clip", "normalize", "whiten")


@dataclass(frozen=True, kw_only=True)
class GenerateEvalConfig:
    """Answers to held-out prompts, sampled and scored during training.

    Attributes:
      every: optimizer steps (updates for RL) between evaluations, which then also take place before the first step and
        at the end; 0 disables them.
      prompts: file of prompts, in any layout that needs no data.columns; its other columns reach the reward functions.
        Empty uses the prompts of the held-out rows.
      count: maximum number of prompts, spread evenly over all of them.
      metrics: which to log, as eval/generate/NAME: length (tokens), stop_rate, distinct_1, distinct_2, repetition,
        refusal_rate, reward (also of each part of a mix, as reward/PART), pass_at_k and mean_at_k (of rewards that are
        all 0 or 1), kl (nats per answer, from the reference, or with LoRA the base model) and win_rate; empty logs all
        that this run can measure.
      judge: Python function that compares each answer with the one of the first evaluation, as
        package.module:function or file.py:function (see jaxalign.rewards.judge); logged as win_rate.
      sampling: how the answers are sampled, with the same random numbers at every evaluation; num_samples above 1 also
        measures pass_at_k and mean_at_k.
      reward: where rewards come from; RL uses its own reward where this names none.
    """

    every: int = 0
    prompts: str = ""
    count: int = 64
    metrics: tuple[str, ...] = ()
    judge: str = ""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardSource = field(default_factory=RewardSource)

    def __post_init__(self) -> None:
        as_tuples(self, "metrics")
        if self.every < 0:
            raise ValueError(f"eval.generate.every must not be negative, got {self.every}")
        if self.count < 1:
            raise ValueError(f"eval.generate.count must be 1 or more, got {self.count}")
        for name in self.metrics:
            if name not in MEASURES:
                raise ValueError(
                    f"eval.generate.metrics: no metric {name!r}; expected some of {', '.join(MEASURES)}"
                )
            if name in OF_SEVERAL and self.sampling.num_samples < 2:
                raise ValueError(
                    f"eval.generate.metrics: {name} needs eval.generate.sampling.num_samples of 2 or more, got "
                    f"{self.sampling.num_samples}"
                )
            if name == "kl" and not self.own_distribution:
                raise ValueError(
                    "eval.generate.metrics: kl needs eval.generate.sampling.temperature above 0, and top_k, top_p and "
                    "min_p off: else the answers are not the model's own distribution"
                )
        plain = RewardSource()
        for name in SHAPING:
            if getattr(self.reward, name) != getattr(plain, name):
                raise ValueError(
                    f"eval.generate.reward.{name} shapes rewards for learning; evaluations report them as they are"
                )

    @property
    def own_distribution(self) -> bool:
        """Whether answers are sampled from the model's own distribution, untruncated."""
        whole = self.sampling.top_k == 0 and self.sampling.top_p == 1 and self.sampling.min_p == 0
        return whole and self.sampling.temperature > 0

    @property
    def rewarded(self) -> bool:
        """Whether it names a reward."""
        return bool(self.reward.model or self.reward.models or self.reward.functions)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluations of a run, beside those of its loss at run.eval_every.

    Attributes:
      generate: answers to held-out prompts, sampled and scored.
    """

    generate: GenerateEvalConfig = field(default_factory=GenerateEvalConfig)
