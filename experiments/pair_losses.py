"""Every preference loss on real HH-harmless pairs.

Target: each loss of `jaxalign dpo --loss.name=...` trains on real pairs and reports held-out accuracy and margin.
Command: python experiments/pair_losses.py --shared ../shared --output runs/pair_losses [--names dpo ipo ...]
Model: stories260K, which knows stories only: the table shows that every loss runs and moves, not that this model can
  tell a harmless answer from a harmful one.
Result: LOG.md, 2026-11-21.
"""

import argparse
import json
from pathlib import Path
from typing import get_args

from jaxalign.data import DataConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.preference.config import LossName
from jaxalign.training.preference.dpo import DPOConfig, DPOLossConfig, train_dpo

# What papers take where the common default has no sense for a loss.
SETTINGS = {
    "exo": {"label_smoothing": 1e-3},
    "robust": {"label_smoothing": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "alphapo": {"beta": 2.0, "gamma": 1.0, "alpha": 0.25},
}


def run(name: str, shared: Path, output: Path, steps: int) -> dict[str, object]:
    config = DPOConfig(
        run=RunConfig(
            output=str(output / name), eval_every=steps, save_every=0, sample_every=0, progress=False
        ),
        model=ModelSource(path=str(shared / "data/models/stories260K")),
        data=DataConfig(
            train=(str(shared / "data/preferences/hh_harmless_base_test.jsonl.gz"),),
            max_length=256,
            truncation="cut_prompt_start",
            template="markers",
            validation_fraction=0.1,
        ),
        loss=DPOLossConfig(name=name, **SETTINGS.get(name, {})),  # type: ignore[arg-type]
        train=TrainConfig(batch_size=8, steps=steps, eval_batch_size=16),
        optimizer=OptimizerConfig(learning_rate=3e-4, schedule="linear", warmup_ratio=0.1),
    )
    metrics = train_dpo(config).metrics
    return {"name": name} | {
        key: round(value, 4) for key, value in metrics.items() if key.startswith("eval/")
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("runs/pair_losses"))
    parser.add_argument("--names", nargs="+", choices=get_args(LossName), default=get_args(LossName))
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    for name in arguments.names:
        print(json.dumps(run(name, arguments.shared, arguments.output, arguments.steps)), flush=True)


if __name__ == "__main__":
    main()
