"""Configuration of online DPO."""

from dataclasses import dataclass, field

from jaxalign.losses import PREFERENCE_LOSSES
from jaxalign.rollout import SamplingConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.preference.config import DPOLossConfig
from jaxalign.training.rl.on_policy_config import OnPolicyConfig


@dataclass(frozen=True, kw_only=True)
class JudgeSource:
    """The judge that compares two completions of a prompt, in place of a reward.

    Attributes:
      function: a Python function, as package.module:function or file.py:function (see jaxalign.rewards.judge); empty
        uses the reward.
      reference_prompts: number of prompts per rollout (at most all of them) that the reference also completes, so
        that the judge can compare it with the policy; the policy's win rate is logged as objective/score. 0 disables
        this.
    """

    function: str = ""
    reference_prompts: int = 16

    def __post_init__(self) -> None:
        if self.reference_prompts < 0:
            raise ValueError(f"judge.reference_prompts must not be negative, got {self.reference_prompts}")


@dataclass(frozen=True, kw_only=True)
class OnlineDPOConfig(OnPolicyConfig):
    """Preference training on pairs of the policy's own samples, ranked as they are sampled.

    Attributes:
      reward: where rewards come from; the best and the worst completion of a prompt form its pair.
      judge: prefers one of two completions, in place of a reward.
      sampling: how completions are sampled, 2 or more per prompt (exactly 2 with a judge); log-probs are scored at
        the same temperature.
      loss: which pair loss, and its options.
    """

    judge: JudgeSource = field(default_factory=JudgeSource)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(num_samples=2))
    loss: DPOLossConfig = field(default_factory=DPOLossConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-6, schedule="linear", warmup_ratio=0.1)
    )

    def __post_init__(self) -> None:
        train, samples = self.train, self.sampling.num_samples
        if self.loss.spec.unpaired:
            raise ValueError(
                f"loss.name={self.loss.name} needs labeled completions, and online DPO makes pairs; "
                f"use one of {', '.join(name for name, spec in PREFERENCE_LOSSES.items() if not spec.unpaired)}"
            )
        if samples < 2:
            raise ValueError(f"sampling.num_samples must be 2 or more, to make a pair; got {samples}")
        if train.prompts % (train.minibatches * train.accumulation_steps):
            raise ValueError(
                f"train.prompts = {train.prompts} pairs must be divisible by train.minibatches x "
                f"train.accumulation_steps = {train.minibatches * train.accumulation_steps}"
            )
        if self.reward.whiten:
            raise ValueError("reward.whiten is for PPO; online DPO uses rewards only to rank completions")
        if self.judge.function:
            self.check_judged()
        super().__post_init__()

    @property
    def rows_per_prompt(self) -> int:
        """One pair."""
        return 1

    def check_judged(self) -> None:
        """Raises ValueError for keys that cannot be combined with a judge."""
        if self.sampling.num_samples != 2:
            raise ValueError(
                f"sampling.num_samples must be 2 with a judge, which compares two; got {self.sampling.num_samples}"
            )
        if self.reward != RewardSource():
            raise ValueError("judge and reward: choose one; a judge compares completions and scores none")
