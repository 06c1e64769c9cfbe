"""Reward ensembles on real pairs: what several reward models add to one, and what they cost.

Claim: four reward models of stories260K on HH-harmless pairs train together as they do alone; the question is whether
  their mean is better than a member, and whether they disagree where they are wrong. The log says how it came out.
Command: python experiments/ensemble.py STAGE --shared ../shared --output runs/ensemble [--seed 0]
  STAGE  models  four whole models, 100 steps of 8 pairs
         heads   four heads on the trunk as it is, 100 steps of 8 pairs
         time    seconds a step of one model, of four together (models, heads) and of four one after another,
                 in turns in one process
Needs: models/stories260K and preferences/hh_harmless_base_test.jsonl.gz under SHARED/data.
Time: 3 to 15 minutes a stage on two CPU cores. Figures: experiments/LOG.md.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.data import BatchIterator, DataConfig, collate_comparisons, load_dataset
from jaxalign.mesh import shard_batch
from jaxalign.rewards import EnsembleReward
from jaxalign.runs import RunConfig
from jaxalign.training.core import setup
from jaxalign.training.core.batch import pair_axis, valid_count
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from jaxalign.training.reward_model.ensemble import (
    EnsembleConfig,
    MemberBatches,
    create_member_states,
    create_members,
    over_members,
    seeds,
)
from jaxalign.training.reward_model.trainer import PairBatch, RewardConfig, make_reward_loss, train_reward

SIZE = 4
# A head alone needs larger steps than a model.
RATES = {"models": 1e-3, "heads": 3e-3}


def configuration(kind: str, shared: Path, output: Path, seed: int) -> RewardConfig:
    return RewardConfig(
        run=RunConfig(output=str(output / f"{kind}-{seed}"), seed=seed, eval_every=100),
        model=ModelSource(path=str(shared / "data/models/stories260K")),
        data=DataConfig(
            train=(str(shared / "data/preferences/hh_harmless_base_test.jsonl.gz"),),
            validation_fraction=0.25,
            max_length=256,
            truncation="cut_prompt_start",
            template="markers",
        ),
        train=TrainConfig(batch_size=8, steps=100, eval_batch_size=16),
        optimizer=OptimizerConfig(learning_rate=RATES[kind], warmup_ratio=0.1, weight_decay=0.01),
        ensemble=EnsembleConfig(size=SIZE, members=kind),
    )


# --- what members say -------------------------------------------------------------------------


def disagreement(config: RewardConfig, members: list[Any], tokenizer: Any) -> dict[str, Any]:
    """Whether members disagree where their mean is wrong, over the held-out pairs.

    Disagreement of a pair is the standard deviation over members of chosen less rejected, after normalisation.
    """
    held_out = load_dataset(config.data, "comparison", tokenizer, seed=config.run.seed).validation
    reward = EnsembleReward(members, batch_size=16)
    chosen, rejected = (reward.score_members([e.rows[side] for e in held_out]) for side in (0, 1))
    margins = chosen - rejected
    spread, margin = margins.std(axis=0), margins.mean(axis=0)
    wrong = margin <= 0
    return {
        "pairs": len(wrong),
        "wrong": int(wrong.sum()),
        "disagreement on right pairs": float(spread[~wrong].mean()),
        "disagreement on wrong pairs": float(spread[wrong].mean()),
        "AUC of disagreement for wrong": area(spread, wrong),
        "AUC of a small margin for wrong": area(-np.abs(margin), wrong),
        "AUC of disagreement over margin for wrong": area(spread / np.abs(margin), wrong),
        "pairs on which a member differs from the mean's choice": float(
            ((margins <= 0) != wrong).any(axis=0).mean()
        ),
    }


def area(score: np.ndarray, wrong: np.ndarray, resamples: int = 2000) -> list[float]:
    """[area under the receiver operating characteristic, low, high]: 95% by bootstrap over pairs."""

    def once(pick: np.ndarray) -> float:
        high, low = score[pick][wrong[pick]], score[pick][~wrong[pick]]
        above = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
        return float(above)

    rng = np.random.default_rng(0)
    count = len(score)
    drawn = [once(rng.integers(0, count, count)) for _ in range(resamples)]
    return [once(np.arange(count)), *(float(x) for x in np.quantile(drawn, [0.025, 0.975]))]


def train(config: RewardConfig) -> None:
    started = time.perf_counter()
    result = train_reward(config)
    seconds = time.perf_counter() - started
    found = {k: v for k, v in result.metrics.items() if k.startswith("eval/")} | {"seconds": seconds}
    found |= disagreement(config, list(result.model), result.tokenizer)
    (result.folder / "measured.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


# --- what they cost ---------------------------------------------------------------------------


def measure_time(shared: Path, output: Path, *, rounds: int = 5, steps: int = 4) -> None:
    """Medians of seconds a step over rounds, the ways taking turns; the first round (compiling) is left out."""
    config = configuration("models", shared, output, 0)
    mesh = setup.start(config.run, config.mesh)
    model, tokenizer = setup.load_model(config.model, mesh, seed=0)
    data = load_dataset(config.data, "comparison", tokenizer, seed=0).train
    ways = {"one model": single(config, model, mesh, data)}
    for kind in RATES:
        ensemble = EnsembleConfig(size=SIZE, members=kind)
        ways[f"{SIZE} {kind} together"] = together(replace(config, ensemble=ensemble), model, mesh, data)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, step in ways.items():
            started = time.perf_counter()
            for _ in range(steps):
                jax.block_until_ready(step())
            if number:
                seconds[name].append((time.perf_counter() - started) / steps)
    one = statistics.median(seconds["one model"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(
            f"{name}: {middle:.3f} s a step [{min(times):.3f}, {max(times):.3f}]; "
            f"{middle / (SIZE * one):.2f} of {SIZE} trainings one after another"
        )


def collate(examples, numbers):
    """Every batch as wide as the longest, so that all ways do the same work."""
    batch = pair_axis(collate_comparisons(examples, numbers))
    missing = 256 - batch["tokens"].shape[-1]
    wide = {name: np.pad(batch[name], ((0, 0), (0, 0), (0, missing))) for name in ("tokens", "mask")}
    return batch | wide


def single(config: RewardConfig, model: Any, mesh: Any, data: list[Any]):
    key = jax.random.key(0)
    scalar = models.create_scalar_model(model, config.head, key=key)
    policy, trained, frozen = setup.scalar_of(scalar, config.lora, mesh, key=key)
    optimizer, _ = make_optimizer(config.optimizer, 100)
    update = make_update(make_reward_loss(policy, config.loss), valid_count, optimizer)
    batches = BatchIterator(data, batch_size=config.train.batch_size, seed=0, collate=collate)
    state = create_state(trained, optimizer)

    def step():
        nonlocal state
        state, metrics = update(state, frozen, shard_batch(PairBatch.of(batches.next()), mesh), key)
        return metrics

    return step


def together(config: RewardConfig, model: Any, mesh: Any, data: list[Any]):
    policy, trained, frozen = create_members(config, model, mesh)
    optimizer, _ = make_optimizer(config.optimizer, 100)
    update = make_update(make_reward_loss(policy, config.loss), valid_count, optimizer, lift=over_members)
    batches = MemberBatches(
        [
            BatchIterator(data, batch_size=config.train.batch_size, seed=seed, collate=collate)
            for seed in seeds(config)
        ]
    )
    state = create_member_states(trained, optimizer, SIZE)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds(config)])

    def step():
        nonlocal state
        state, metrics = update(state, frozen, shard_batch(PairBatch.of(batches.next()), mesh, axis=1), keys)
        return metrics

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*RATES, "time"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("runs/ensemble"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.stage == "time":
        measure_time(arguments.shared, arguments.output)
    else:
        train(configuration(arguments.stage, arguments.shared, arguments.output, arguments.seed))


if __name__ == "__main__":
    main()
