"""What a run of online DPO is told."""

from dataclasses import dataclass, field

from jaxalign.losses import PREFERENCE_LOSSES
from jaxalign.rollout import SamplingConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.preference.config import DPOLossConfig
from jaxalign.training.rl.on_policy_config import OnPolicyConfig
from jaxalign.training.rl.reward_source import RewardSource


@dataclass(frozen=True, kw_only=True)
class JudgeSource:
    """Who compares the two completions of a prompt, in place of a reward.

    Attributes:
      function: a Python function, as package.module:function or file.py:function (see jaxalign.rewards.judge);
        empty for none.
      reference_prompts: the first so many prompts of each rollout (all, where there are fewer) are also answered
        by the reference, and the judge compares; how often the policy wins is objective/score. 0 leaves it out.
    """

    function: str = ""
    reference_prompts: int = 16

    def __post_init__(self) -> None:
        if self.reference_prompts < 0:
            raise ValueError(f"judge.reference_prompts must not be negative, got {self.reference_prompts}")


@dataclass(frozen=True, kw_only=True)
class OnlineDPOConfig(OnPolicyConfig):
    """Preference training on pairs of the policy's own samples, ranked as they are drawn.

    Attributes:
      reward: where rewards come from; of a prompt's completions the best and the worst make the pair.
      judge: who prefers one of two completions, in place of a reward.
      sampling: how completions are drawn, 2 or more a prompt (with a judge 2); its temperature is the one
        log-probs are scored at.
      loss: which loss of pairs, and its numbers.
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
                f"loss.name={self.loss.name} learns from single completions with labels, and here there are pairs; "
                f"use one of {', '.join(name for name, spec in PREFERENCE_LOSSES.items() if not spec.unpaired)}"
            )
        if samples < 2:
            raise ValueError(f"sampling.num_samples must be 2 or more, to make a pair; got {samples}")
        if train.prompts % (train.minibatches * train.accumulation_steps):
            raise ValueError(
                f"train.prompts = {train.prompts} pairs do not divide by train.minibatches x "
                f"train.accumulation_steps = {train.minibatches * train.accumulation_steps}"
            )
        if self.reward.whiten:
            raise ValueError("reward.whiten is for PPO; here rewards only rank the completions of a prompt")
        if self.judge.function:
            self.check_judged()
        super().__post_init__()

    def check_judged(self) -> None:
        """Raises ValueError for what does not go with a judge."""
        if self.sampling.num_samples != 2:
            raise ValueError(
                f"sampling.num_samples must be 2 with a judge, which compares two; got {self.sampling.num_samples}"
            )
        if self.reward != RewardSource():
            raise ValueError("judge and reward: choose one; a judge compares, and nothing is scored")
