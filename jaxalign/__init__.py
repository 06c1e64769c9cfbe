"""jaxalign: align language models with human preferences in JAX and Flax.

Importing this package loads nothing heavy: what is named here is loaded when it is first asked for, and a part by
importing it, for example `from jaxalign import losses`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxalign.data import DataConfig
    from jaxalign.mesh import MeshConfig
    from jaxalign.models.lora import LoraConfig
    from jaxalign.rollout import SamplingConfig
    from jaxalign.runs import Callback, EarlyStopping, RunConfig
    from jaxalign.training.grpo import GRPOConfig, train_grpo
    from jaxalign.training.grpo_config import GRPOLossConfig, GRPOTrainConfig
    from jaxalign.training.loop import TrainConfig
    from jaxalign.training.online_dpo import OnlineDPOConfig, train_online_dpo
    from jaxalign.training.optimizer import OptimizerConfig
    from jaxalign.training.ppo import PPOConfig, train_ppo
    from jaxalign.training.ppo_config import PPOTrainConfig
    from jaxalign.training.preference import DPOConfig, DPOLossConfig, train_dpo
    from jaxalign.training.reward import RewardConfig, train_reward
    from jaxalign.training.reward_source import RewardSource
    from jaxalign.training.setup import ModelSource, TrainResult
    from jaxalign.training.sft import SFTConfig, train_sft
    from jaxalign.training.tfpo import TFPOConfig, train_tfpo

# Name -> module.
_LAZY = {
    "Callback": "runs",
    "DPOConfig": "training.preference",
    "DPOLossConfig": "training.preference",
    "DataConfig": "data",
    "EarlyStopping": "runs",
    "GRPOConfig": "training.grpo",
    "GRPOLossConfig": "training.grpo_config",
    "GRPOTrainConfig": "training.grpo_config",
    "LoraConfig": "models.lora",
    "MeshConfig": "mesh",
    "ModelSource": "training.setup",
    "OnlineDPOConfig": "training.online_dpo",
    "OptimizerConfig": "training.optimizer",
    "PPOConfig": "training.ppo",
    "PPOTrainConfig": "training.ppo_config",
    "RewardConfig": "training.reward",
    "RewardSource": "training.reward_source",
    "RunConfig": "runs",
    "SFTConfig": "training.sft",
    "SamplingConfig": "rollout",
    "TFPOConfig": "training.tfpo",
    "TrainConfig": "training.loop",
    "TrainResult": "training.setup",
    "train_dpo": "training.preference",
    "train_grpo": "training.grpo",
    "train_online_dpo": "training.online_dpo",
    "train_ppo": "training.ppo",
    "train_reward": "training.reward",
    "train_sft": "training.sft",
    "train_tfpo": "training.tfpo",
}
_PARTS = {"data", "losses", "models", "rewards", "rollout", "runs", "training"}

__all__ = [
    "Callback",
    "DPOConfig",
    "DPOLossConfig",
    "DataConfig",
    "EarlyStopping",
    "GRPOConfig",
    "GRPOLossConfig",
    "GRPOTrainConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelSource",
    "OnlineDPOConfig",
    "OptimizerConfig",
    "PPOConfig",
    "PPOTrainConfig",
    "RewardConfig",
    "RewardSource",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "TFPOConfig",
    "TrainConfig",
    "TrainResult",
    "train_dpo",
    "train_grpo",
    "train_online_dpo",
    "train_ppo",
    "train_reward",
    "train_sft",
    "train_tfpo",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"jaxalign.{_LAZY[name]}"), name)
    if name in _PARTS:
        return importlib.import_module(f"jaxalign.{name}")
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_PARTS})
