"""jaxalign: align language models with human preferences in JAX and Flax.

Importing this package is cheap: names are loaded on first use, and subpackages when imported, for example `from
jaxalign import losses`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxalign.data import DataConfig
    from jaxalign.evaluation.evaluate import evaluate
    from jaxalign.evaluation.evaluate_config import EvaluateConfig
    from jaxalign.llmdoctor.tfpo import TFPOConfig, train_tfpo
    from jaxalign.mesh import MeshConfig
    from jaxalign.models.lora import LoraConfig
    from jaxalign.rollout import SamplingConfig
    from jaxalign.runs import Callback, EarlyStopping, RunConfig
    from jaxalign.training.core.eval_config import EvalConfig, GenerateEvalConfig
    from jaxalign.training.core.loop import TrainConfig
    from jaxalign.training.core.optimizer import OptimizerConfig
    from jaxalign.training.core.reward_source import RewardSource
    from jaxalign.training.core.setup import ModelSource, TrainResult
    from jaxalign.training.distill.trainer import DistillConfig, DistillLossConfig, train_distill
    from jaxalign.training.preference.dpo import DPOConfig, DPOLossConfig, train_dpo
    from jaxalign.training.reward_model.trainer import RewardConfig, train_reward
    from jaxalign.training.rl.grpo import GRPOConfig, train_grpo
    from jaxalign.training.rl.grpo_config import GRPOLossConfig, GRPOTrainConfig
    from jaxalign.training.rl.online_dpo import OnlineDPOConfig, train_online_dpo
    from jaxalign.training.rl.ppo import PPOConfig, train_ppo
    from jaxalign.training.rl.ppo_config import PPOTrainConfig
    from jaxalign.training.sft import SFTConfig, train_sft

# Name -> module.
_LAZY = {
    "Callback": "runs",
    "DPOConfig": "training.preference.dpo",
    "DPOLossConfig": "training.preference.dpo",
    "DataConfig": "data",
    "DistillConfig": "training.distill.trainer",
    "DistillLossConfig": "training.distill.trainer",
    "EarlyStopping": "runs",
    "EvaluateConfig": "evaluation.evaluate_config",
    "EvalConfig": "training.core.eval_config",
    "GRPOConfig": "training.rl.grpo",
    "GRPOLossConfig": "training.rl.grpo_config",
    "GRPOTrainConfig": "training.rl.grpo_config",
    "GenerateEvalConfig": "training.core.eval_config",
    "LoraConfig": "models.lora",
    "MeshConfig": "mesh",
    "ModelSource": "training.core.setup",
    "OnlineDPOConfig": "training.rl.online_dpo",
    "OptimizerConfig": "training.core.optimizer",
    "PPOConfig": "training.rl.ppo",
    "PPOTrainConfig": "training.rl.ppo_config",
    "RewardConfig": "training.reward_model.trainer",
    "RewardSource": "training.core.reward_source",
    "RunConfig": "runs",
    "SFTConfig": "training.sft",
    "SamplingConfig": "rollout",
    "TFPOConfig": "llmdoctor.tfpo",
    "TrainConfig": "training.core.loop",
    "TrainResult": "training.core.setup",
    "evaluate": "evaluation.evaluate",
    "train_distill": "training.distill.trainer",
    "train_dpo": "training.preference.dpo",
    "train_grpo": "training.rl.grpo",
    "train_online_dpo": "training.rl.online_dpo",
    "train_ppo": "training.rl.ppo",
    "train_reward": "training.reward_model.trainer",
    "train_sft": "training.sft",
    "train_tfpo": "llmdoctor.tfpo",
}
_PARTS = {"data", "evaluation", "losses", "models", "rewards", "rollout", "runs", "training"}

__all__ = [
    "Callback",
    "DPOConfig",
    "DPOLossConfig",
    "DataConfig",
    "DistillConfig",
    "DistillLossConfig",
    "EarlyStopping",
    "EvalConfig",
    "EvaluateConfig",
    "GRPOConfig",
    "GRPOLossConfig",
    "GRPOTrainConfig",
    "GenerateEvalConfig",
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
    "evaluate",
    "train_distill",
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
