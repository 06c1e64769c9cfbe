"""Rewards: a model, an ensemble, a process reward model, a Python function, or a weighted mix, behind one call."""

from jaxalign.rewards.base import Reward, Rewards, evaluate_reward
from jaxalign.rewards.calls import RewardRequest, TrainerState
from jaxalign.rewards.functions import load_function
from jaxalign.rewards.judge import PairwiseJudge, Verdicts, evaluate_judge
from jaxalign.rewards.mix import WeightedMix
from jaxalign.rewards.model import EnsembleReward, ModelReward
from jaxalign.rewards.process import ProcessReward
from jaxalign.rewards.user_code import UserCodeError

__all__ = [
    "EnsembleReward",
    "PairwiseJudge",
    "ModelReward",
    "ProcessReward",
    "Reward",
    "RewardRequest",
    "Rewards",
    "TrainerState",
    "UserCodeError",
    "Verdicts",
    "WeightedMix",
    "evaluate_judge",
    "evaluate_reward",
    "load_function",
]
