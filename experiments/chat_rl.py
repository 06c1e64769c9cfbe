"""PPO, GRPO, RLOO and online DPO teach a real chat model what code can check, three seeds.

Question: how often does SmolLM2-135M-Instruct do what it was asked on prompts that it was not trained on, before and
  after; success of one answer, and of one of four (pass@4), with intervals over prompts.
Command: python experiments/chat_rl.py --model MODEL [--output runs/chat_rl] [--seeds 0 1 2] [--ways grpo rloo ...]
    [--task instructions]
  MODEL is made by `../shared/models/smollm2.py MODEL`. What is done is kept, run by run: the same command goes on.
  It writes table.md (also by instruction) and curves.png.
Tasks: `instructions` (`instruction_prompts.py`): 30 questions under 8 instructions, and 8 other questions under them
  held out; reward 1 if the instruction is followed, else 0. `sums`: reasoning-gym's chain_sum with two numbers of one
  digit, its own score as reward (1 for the sum alone, less for more words around it); success is a score of 1.
All ways sample 32 answers an update and have as many updates.
Hardware, time and figures: experiments/LOG.md.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
from instruction_prompts import columns, rows
from real_chat import (
    Stages,
    arguments,
    cost,
    drop_weights,
    over_seeds,
    sampled,
    with_interval,
)

import jaxalign as ja
from jaxalign import models
from jaxalign.evaluation.tables import format_table
from jaxalign.rewards.instructions import followed_instructions
from jaxalign.rewards.reasoning_gym import task_score, write_tasks
from jaxalign.training.rl.on_policy_config import RolloutTrainConfig
from jaxalign.training.rl.ppo_config import CriticConfig

NEW_TOKENS = 40
SAMPLES = 4
ANSWERS = 32


class Instructions:
    """Questions under instructions."""

    reward = "jaxalign.rewards.instructions:followed_instructions"

    def rows(self, part: str, folder: Path) -> list[dict[str, Any]]:
        """Of train or test; `prompt` is a conversation of one turn, `name` its kind."""
        del folder
        return rows(part)

    def right(self, texts: list[str], held_out: list[dict[str, Any]]) -> Any:
        """1 for each answer that is right; `SAMPLES` of each row, one after the other."""
        return followed_instructions(
            [""] * len(texts), texts, completion_ids=[], columns=columns(held_out, SAMPLES)
        )


class Sums:
    """reasoning-gym's chain_sum."""

    reward = "jaxalign.rewards.reasoning_gym:task_score"
    # Row i is drawn by seed + i.
    SIZES: ClassVar = {"train": (0, 100), "test": (1000, 100)}

    def rows(self, part: str, folder: Path) -> list[dict[str, Any]]:
        """See `Instructions`; what is held out is not among the trained."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name, (seed, count) in self.SIZES.items():
            file = folder / f"sums_{name}.jsonl"
            file.unlink(missing_ok=True)
            digits = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
            write_tasks("chain_sum", file, rows=count, seed=seed, instruction=ALONE, **digits)
            found[name] = [json.loads(line) for line in file.read_text().splitlines()]
        known = {row["prompt"] for row in found["train"]}
        held_out = [row for row in found["test"] if row["prompt"] not in known]
        return [
            row | {"prompt": [{"role": "user", "content": row["prompt"]}], "name": "chain_sum"}
            for row in (found["train"] if part == "train" else held_out)
        ]

    def right(self, texts: list[str], held_out: list[dict[str, Any]]) -> Any:
        """See `Instructions`."""
        rows = [row for row in held_out for _ in range(SAMPLES)]
        scores = task_score(
            [row["prompt"][0]["content"] for row in rows],
            texts,
            completion_ids=[],
            columns={key: [row[key] for row in rows] for key in ("answer", "metadata")},
        )
        return [float(score == 1) for score in scores]


ALONE = "Answer with the number alone."
TASKS = {"instructions": Instructions(), "sums": Sums()}


@dataclass(frozen=True)
class Experiment:
    """The runs.

    Attributes:
      task: what is learned.
      model: the chat model's folder.
      output: where everything is written.
      seeds: of each way.
      updates: of each run.
    """

    task: Any
    model: Path
    output: Path
    seeds: Sequence[int]
    updates: int

    @property
    def stages(self) -> Stages:
        return Stages(self.output)

    @cached_property
    def start(self) -> Any:
        return models.load_pretrained(self.model)

    @cached_property
    def tokenizer(self) -> Any:
        return models.load_tokenizer(self.model)

    @cached_property
    def train_file(self) -> str:
        self.output.mkdir(parents=True, exist_ok=True)
        file = self.output / "train.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in self.task.rows("train", self.output)))
        return str(file)

    @cached_property
    def held_out(self) -> list[dict[str, Any]]:
        return self.task.rows("test", self.output)

    def shared(self, run: ja.RunConfig) -> dict[str, Any]:
        return {
            "run": run,
            "model": ja.ModelSource(path=str(self.model)),
            "data": ja.DataConfig(train=(self.train_file,), validation_fraction=0.0, max_length=256),
            "reward": ja.RewardSource(functions=(self.task.reward,)),
            "lora": ja.LoraConfig(enabled=True, rank=16, alpha=32.0),
        }

    def train(self, way: str, run: ja.RunConfig) -> ja.TrainResult:
        def sampling(samples: int) -> ja.SamplingConfig:
            return ja.SamplingConfig(max_new_tokens=NEW_TOKENS, num_samples=samples)

        def optimizer(rate: float) -> ja.OptimizerConfig:
            return ja.OptimizerConfig(learning_rate=rate, schedule="constant", warmup_ratio=0.05)

        trains: dict[str, Callable[[], ja.TrainResult]] = {
            "grpo": lambda: ja.train_grpo(
                ja.GRPOConfig(
                    **self.shared(run),
                    sampling=sampling(8),
                    train=ja.GRPOTrainConfig(updates=self.updates, prompts=ANSWERS // 8, eval_prompts=0),
                    optimizer=optimizer(2e-4),
                )
            ),
            "rloo": lambda: ja.train_grpo(
                ja.GRPOConfig(
                    **self.shared(run),
                    sampling=sampling(8),
                    loss=ja.GRPOLossConfig(name="rloo"),
                    train=ja.GRPOTrainConfig(updates=self.updates, prompts=ANSWERS // 8, eval_prompts=0),
                    optimizer=optimizer(2e-4),
                )
            ),
            "ppo": lambda: ja.train_ppo(
                ja.PPOConfig(
                    **self.shared(run),
                    sampling=sampling(1),
                    train=ja.PPOTrainConfig(
                        updates=self.updates, prompts=ANSWERS, epochs=1, minibatches=1, eval_prompts=0
                    ),
                    critic=CriticConfig(optimizer=optimizer(2e-5), warmup_updates=self.updates // 10),
                    optimizer=optimizer(2e-4),
                )
            ),
            "online dpo": lambda: ja.train_online_dpo(
                ja.OnlineDPOConfig(
                    **self.shared(run),
                    sampling=sampling(2),
                    train=RolloutTrainConfig(updates=self.updates, prompts=ANSWERS // 2, eval_prompts=0),
                    optimizer=optimizer(2e-4),
                )
            ),
        }
        return trains[way]()

    def run(self, way: str, seed: int) -> dict[str, Any]:
        def make(run: ja.RunConfig) -> dict[str, Any]:
            self.train(way, run)
            curve = [
                json.loads(line) for line in (Path(run.output) / "metrics.jsonl").read_text().splitlines()
            ]
            found = self.answers(models.load_pretrained(Path(run.output) / "export"))
            drop_weights(run)
            score = "objective/score"
            return found | {"curve": [row[score] for row in curve if score in row]}

        return self.stages.once(f"{way.replace(' ', '-')}-{seed}", make, seed)

    def untrained(self) -> dict[str, Any]:
        return self.stages.once("start", lambda run: self.answers(self.start))

    def answers(self, model: Any) -> dict[str, Any]:
        """`right` [N, SAMPLES]: 1 where a held-out prompt's answer follows its instruction."""
        prompts = [row["prompt"][0]["content"] for row in self.held_out]
        found = sampled(
            model, self.start, self.tokenizer, prompts, seed=0, max_new_tokens=NEW_TOKENS, samples=SAMPLES
        )
        right = self.task.right(found["texts"], self.held_out)
        return found | {"right": np.reshape(right, (-1, SAMPLES)).tolist()}


def table(experiment: Experiment, ways: Sequence[str]) -> list[dict[str, str]]:
    found = []
    for way in ("start", *ways):
        runs = (
            [experiment.untrained()] if way == "start" else [experiment.run(way, s) for s in experiment.seeds]
        )
        right = np.asarray([run["right"] for run in runs])
        row = {
            "way": way,
            "success": with_interval(right.mean(2), ".2f"),
            "seeds": over_seeds(list(right.mean((1, 2))), ".2f"),
            f"pass@{SAMPLES}": with_interval(right.max(2), ".2f"),
            "KL (nats)": over_seeds([float(np.mean(run["kl"])) for run in runs], ".1f"),
            "tokens": over_seeds([float(np.mean(run["tokens"])) for run in runs], ".0f"),
            "distinct-2": over_seeds([run["distinct_2"] for run in runs], ".2f"),
        }
        found.append(row | ({} if way == "start" else cost(runs)))
    columns = list(dict.fromkeys(name for row in found for name in row))
    return [{name: row.get(name, "") for name in columns} for row in found]


def kinds(experiment: Experiment, ways: Sequence[str]) -> list[dict[str, str]]:
    """Success by kind of prompt."""
    names = [row["name"] for row in experiment.held_out]
    found = []
    for way in ("start", *ways):
        runs = (
            [experiment.untrained()] if way == "start" else [experiment.run(way, s) for s in experiment.seeds]
        )
        right = np.mean([run["right"] for run in runs], axis=(0, 2))
        means = {kind: right[[name == kind for name in names]].mean() for kind in dict.fromkeys(names)}
        found.append({"way": way} | {kind: f"{mean:.2f}" for kind, mean in means.items()})
    return found


def draw(experiment: Experiment, ways: Sequence[str], file: Path) -> None:
    """Reward while training, a line a way: five updates at a time, mean and range of the seeds."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for way in ways:
        curves = np.asarray([experiment.run(way, seed)["curve"] for seed in experiment.seeds])
        smooth = np.stack([np.convolve(curve, np.ones(5) / 5, "valid") for curve in curves])
        steps = np.arange(smooth.shape[1]) + 5
        axes.plot(steps, smooth.mean(0), label=way)
        axes.fill_between(steps, smooth.min(0), smooth.max(0), alpha=0.2)
    axes.set(xlabel="update", ylabel="reward", ylim=(0, 1))
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    ways = ("grpo", "rloo", "ppo", "online dpo")
    parser = arguments(__doc__, "runs/chat_rl", shared=False)
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--task", choices=[*TASKS], default="instructions")
    parser.add_argument("--updates", type=int, default=30)
    given = parser.parse_args()
    experiment = Experiment(TASKS[given.task], given.model, given.output, given.seeds, given.updates)
    text = "\n\n".join(format_table(make(experiment, given.ways)) for make in (table, kinds))
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "table.md").write_text(text + "\n")
    draw(experiment, given.ways, given.output / "curves.png")


if __name__ == "__main__":
    main()
