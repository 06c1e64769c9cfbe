"""How the models of `doctor_text.py` are trained and loaded."""

from pathlib import Path
from typing import Any

from jaxalign import models
from jaxalign.data import DataConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource, TrainResult
from jaxalign.training.preference.dpo import DPOConfig, DPOLossConfig, train_dpo

# Of what is not chosen by trials.
RATES = {"sft": 3e-3, "faces": 1e-3, "reward": 1e-3}


def steps(count: int, rows: int = 8) -> TrainConfig:
    return TrainConfig(batch_size=rows, steps=count, eval_batch_size=64, packing=True)


def rate(name: str | float) -> OptimizerConfig:
    value = RATES[name] if isinstance(name, str) else name
    return OptimizerConfig(learning_rate=value, warmup_ratio=0.1, weight_decay=0.01)


def trained_on_pairs(
    run: RunConfig, start: Path, pairs: DataConfig, loss: DPOLossConfig, count: int, name: str | float
) -> dict[str, Any]:
    """Trains the model of a stage on pairs; the held-out figures."""
    return held_out(
        train_dpo(
            DPOConfig(
                run=run,
                model=ModelSource(path=str(start)),
                data=pairs,
                loss=loss,
                train=steps(count),
                optimizer=rate(name),
            )
        )
    )


def held_out(result: TrainResult) -> dict[str, Any]:
    """The final figures on held-out rows."""
    return {
        name: round(float(value), 4) for name, value in result.metrics.items() if name.startswith("eval/")
    }


def load(folder: Path) -> Any:
    return models.load_pretrained(folder / "export")


def load_reward(folder: Path) -> Any:
    return models.load_reward_model(folder / "export")
