"""SFT, reward models and five losses on pairs, on a real chat model (SmolLM2-135M-Instruct), three seeds.

Questions: does SFT lower the held-out loss of a model that was taught to chat by others; how often does a reward model
  on it agree with people; and what do DPO, IPO, KTO, SimPO and ORPO make of the same pairs on the same budget, in the
  eyes of a judge that learned from other prompts' pairs.
Command: python experiments/chat_pairs.py --model MODEL [--shared ../shared] [--output runs/chat_pairs] [--seeds 0 1 2]
    [--parts sft reward pairs]
  MODEL is made by `../shared/models/smollm2.py MODEL`. What is done is kept, stage by stage: the same command goes on.
  It writes table.md and judge_kl.png.
Data: prompts of PKU-SafeRLHF are parted by a hash: six tenths train policies, three the judge, one is held out of all.
Rates were chosen on seed 100, by the held-out accuracy of the loss's own margin (pairs), on a third of the steps.
Hardware, time and figures: experiments/LOG.md.
"""

import gzip
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from llmdoctor_measure import pair_accuracy
from real_chat import (
    Stages,
    arguments,
    cost,
    drop_weights,
    held_out,
    over_seeds,
    sampled,
    with_interval,
)

import jaxalign as ja
from jaxalign import models
from jaxalign.data import collate_demonstrations, eval_batches, load_dataset
from jaxalign.evaluation.policy import make_scorer
from jaxalign.evaluation.tables import format_table
from jaxalign.rewards import ModelReward

# Of each loss, what its paper or the field takes, and the rates that are tried.
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "kto": {"beta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "orpo": {"beta": 0.1},
}
TRIED_RATES = (1e-4, 3e-4)
TUNING_SEED = 100
# Reward models that others read: the judge, and what guides `chat_doctor.py`'s best-of-n and ARGS.
KEPT = (("judge", 0), ("pku", 0))
# Of reward models and of SFT, from the loss of a trial each.
RATES = {"reward": 2e-4, "sft": 2e-4}
STEPS, ROWS = 24, 6
LONGEST = 192
PROMPTS, NEW_TOKENS = 32, 48
HELD_OUT = 64
LOSS_ROWS = 48


@dataclass(frozen=True)
class Experiment:
    """The stages.

    Attributes:
      model: the chat model's folder.
      shared: the folder of the real data.
      output: where everything is written.
      seeds: of each run.
    """

    model: Path
    shared: Path
    output: Path
    seeds: Sequence[int]

    @property
    def stages(self) -> Stages:
        return Stages(self.output)

    @property
    def source(self) -> ja.ModelSource:
        return ja.ModelSource(path=str(self.model))

    @cached_property
    def start(self) -> Any:
        return models.load_pretrained(self.model)

    @cached_property
    def tokenizer(self) -> Any:
        return models.load_tokenizer(self.model)

    # --- files --------------------------------------------------------------------------------

    def _rows(self, name: str) -> list[dict[str, Any]]:
        with gzip.open(self.shared / "data" / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def _file(self, name: str, rows: Sequence[dict[str, Any]]) -> Path:
        path = self.output / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    @cached_property
    def parts(self) -> dict[str, Path]:
        """Files of pairs: policy, judge, test; those that fit a row whole."""
        found: dict[str, list[dict[str, Any]]] = {"policy": [], "judge": [], "test": []}
        for row in self._rows("preferences/pku_saferlhf_5k.jsonl.gz"):
            longest = max(
                len(self.tokenizer(row["prompt"] + row[side])["input_ids"]) for side in ("chosen", "rejected")
            )
            if longest <= LONGEST - 40:
                tenth = hashlib.blake2b(row["prompt"].encode()).digest()[0] % 10
                found["policy" if tenth < 6 else "judge" if tenth < 9 else "test"].append(row)
        found["test"] = found["test"][:HELD_OUT]
        return {name: self._file(f"{name}.jsonl", rows) for name, rows in found.items()}

    @cached_property
    def prompts(self) -> list[str]:
        """What answers are sampled to: held-out prompts, each once."""
        rows = [json.loads(line) for line in self.parts["test"].read_text().splitlines()]
        return list(dict.fromkeys(row["prompt"] for row in rows))[:PROMPTS]

    def data(self, train: Path, test: Path | None = None, **options: Any) -> ja.DataConfig:
        return ja.DataConfig(
            train=(str(train),), validation=(str(test),) if test else (), max_length=LONGEST, **options
        )

    def settings(self, rate: float, steps: int = STEPS, rows: int = ROWS) -> dict[str, Any]:
        return {
            "lora": ja.LoraConfig(enabled=True, rank=16, alpha=32.0),
            "train": ja.TrainConfig(batch_size=rows, steps=steps, eval_batch_size=16, packing=True),
            "optimizer": ja.OptimizerConfig(learning_rate=rate, schedule="cosine", warmup_ratio=0.1),
        }

    # --- SFT ----------------------------------------------------------------------------------

    def sft(self, name: str, seed: int) -> dict[str, Any]:
        files = {"lima": "sft/lima.jsonl.gz", "alpaca": "sft/alpaca_en_demo.jsonl"}

        def make(run: ja.RunConfig) -> dict[str, Any]:
            data = ja.DataConfig(
                train=(str(self.shared / "data" / files[name]),),
                validation_fraction=0.1,
                max_length=256,
                truncation="cut_completion",
            )
            result = ja.train_sft(
                ja.SFTConfig(run=run, model=self.source, data=data, **self.settings(RATES["sft"], 30, 4))
            )
            rows = load_dataset(data, "demonstration", self.tokenizer, seed=0).validation[:LOSS_ROWS]
            after = models.load_pretrained(Path(run.output) / "export")
            found = {
                "before": row_losses(self.start, rows),
                "after": row_losses(after, rows),
                **held_out(result),
                **sampled(
                    after, self.start, self.tokenizer, QUESTIONS, seed=0, max_new_tokens=80, temperature=0.0
                ),
            }
            drop_weights(run)
            return found

        return self.stages.once(f"sft-{name}-{seed}", make, seed)

    # --- reward models ------------------------------------------------------------------------

    def reward(self, name: str, seed: int, *, weights: bool = False) -> dict[str, Any]:
        """Of people's choices in PKU-SafeRLHF (`pku`) or in HH-RLHF's harmless part (`hh`); `judge`: of the judge's."""

        def make(run: ja.RunConfig) -> dict[str, Any]:
            if name == "hh":
                file = self.shared / "data/preferences/hh_harmless_base_test.jsonl.gz"
                data = self.data(file, truncation="cut_prompt_start", validation_fraction=0.1)
            else:
                data = self.data(self.parts["judge" if name == "judge" else "policy"], self.parts["test"])
            result = ja.train_reward(
                ja.RewardConfig(
                    run=run, model=self.source, data=data, **self.settings(RATES["reward"], 60, 8)
                )
            )
            model = models.load_reward_model(Path(run.output) / "export")
            rows = load_dataset(data, "comparison", self.tokenizer, seed=0).validation
            reward = ModelReward(model, batch_size=16)
            scores = np.stack([reward.score_rows([pair.rows[side] for pair in rows]) for side in (0, 1)], 1)
            if (name, seed) not in KEPT:
                drop_weights(run)
            lengths = np.asarray([[len(side) for side in pair.rows] for pair in rows])
            uneven = lengths[:, 0] != lengths[:, 1]
            longer = (lengths[:, 0] > lengths[:, 1])[uneven]
            bias = [float(np.mean((scores[:, 0] > scores[:, 1])[uneven] == longer)), float(longer.mean())]
            return {"scores": scores.tolist(), "longer": bias, **held_out(result)}

        return self.stages.once(f"reward-{name}-{seed}", make, seed, weights=weights)

    @cached_property
    def judge(self) -> ModelReward:
        self.reward("judge", 0, weights=True)
        return ModelReward(models.load_reward_model(self.output / "reward-judge-0" / "export"), batch_size=16)

    # --- losses on pairs ----------------------------------------------------------------------

    def rate(self, loss: str) -> float:
        """The rate under which a third of the steps orders most of the held-out pairs of the policy's part right."""

        def trial(rate: float, run: ja.RunConfig) -> float:
            data = self.data(self.parts["policy"], validation_fraction=0.03)
            folder = str(Path(run.output) / f"{rate:g}")
            result = self._trained(
                loss,
                ja.RunConfig(output=folder, seed=TUNING_SEED, sample_rows=0, save_every=0, progress=False),
                data,
                rate,
                STEPS // 3,
            )
            shutil.rmtree(folder)
            return float(result.metrics["eval/accuracy"])

        def make(run: ja.RunConfig) -> dict[str, Any]:
            found = {f"{rate:g}": trial(rate, run) for rate in TRIED_RATES}
            return {"accuracies": found, "rate": float(max(found, key=lambda name: found[name]))}

        return self.stages.once(f"rate-{loss}", make)["rate"]

    def _trained(
        self, loss: str, run: ja.RunConfig, data: ja.DataConfig, rate: float, steps: int
    ) -> ja.TrainResult:
        return ja.train_dpo(
            ja.DPOConfig(
                run=run,
                model=self.source,
                data=data,
                loss=ja.DPOLossConfig(name=loss, **LOSSES[loss]),  # type: ignore[arg-type]
                **self.settings(rate, steps),
            )
        )

    def pairs(self, loss: str, seed: int) -> dict[str, Any]:
        rate = self.rate(loss)

        def make(run: ja.RunConfig) -> dict[str, Any]:
            data = self.data(self.parts["policy"], self.parts["test"])
            result = self._trained(loss, run, data, rate, STEPS)
            model = models.load_pretrained(Path(run.output) / "export")
            found = held_out(result) | {"pairs": pair_accuracy(model, self.start, data, self.tokenizer)}
            found |= self.answers(model, seed)
            drop_weights(run)
            return found

        return self.stages.once(f"pairs-{loss}-{seed}", make, seed)

    def untrained(self, seed: int) -> dict[str, Any]:
        return self.stages.once(f"pairs-start-{seed}", lambda run: self.answers(self.start, seed))

    def answers(self, model: Any, seed: int) -> dict[str, Any]:
        found = sampled(model, self.start, self.tokenizer, self.prompts, seed=seed, max_new_tokens=NEW_TOKENS)
        return self.judged(found)

    def judged(self, found: dict[str, Any]) -> dict[str, Any]:
        """Answers to `prompts` with the judge's score of each."""
        ids = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}],
                return_dict=False,
            )
            for prompt, text in zip(self.prompts, found["texts"], strict=True)
        ]
        return found | {"judge": self.judge.score_rows(ids).tolist()}


QUESTIONS = (
    "Why do we yawn?",
    "Describe a quiet morning by the sea.",
    "How do I clean a keyboard?",
    "Write a short poem about rain.",
    "What should I think of before I adopt a dog?",
    "Explain what a volcano is to a child.",
)


def row_losses(model: Any, rows: Sequence[Any]) -> list[list[float]]:
    """Of each demonstration, the negative log-likelihood of its answer (nats) and its tokens."""
    definition, params = models.split(model)
    score = make_scorer(definition)
    found = []
    for batch in eval_batches(rows, 16, collate_demonstrations):
        logps = np.asarray(score(params, batch), np.float64)
        mask = np.asarray(batch["mask"], bool)
        found += [
            [-float(row[counts].sum()), int(counts.sum())]
            for row, counts, valid in zip(logps, mask, batch["valid"], strict=True)
            if valid
        ]
    return found


# --- tables -----------------------------------------------------------------------------------------


def sft_rows(experiment: Experiment) -> list[dict[str, str]]:
    rows = []
    for name in ("lima", "alpaca"):
        runs = [experiment.sft(name, seed) for seed in experiment.seeds]
        before, after = ([nats_a_token(run[side]) for run in runs] for side in ("before", "after"))
        gaps = [np.subtract(means(run["after"]), means(run["before"])) for run in runs]
        rows.append(
            {
                "data": name,
                "nats a token before": f"{np.mean(before):.3f}",
                "after": over_seeds(after),
                "change of an answer's mean": with_interval(gaps, "+.3f"),
                **cost(runs),
            }
        )
    return rows


def nats_a_token(rows: Sequence[Sequence[float]]) -> float:
    losses, tokens = np.sum(rows, axis=0)
    return float(losses / tokens)


def means(rows: Sequence[Sequence[float]]) -> np.ndarray:
    losses, tokens = np.asarray(rows, np.float64).T
    return losses / tokens


def reward_rows(experiment: Experiment) -> list[dict[str, str]]:
    """Accuracy, calibration (expected against seen, over ten bins of probability) and length bias."""
    rows = []
    for name in ("pku", "hh"):
        runs = [experiment.reward(name, seed) for seed in experiment.seeds]
        right = []
        for run in runs:
            chosen, rejected = np.asarray(run["scores"]).T
            right.append(0.5 * (1 + np.sign(chosen - rejected)))
        rows.append(
            {
                "data": name,
                "pairs": str(len(right[0])),
                "accuracy": with_interval(right),
                "seeds": over_seeds([float(np.mean(r)) for r in right]),
                "calibration error": over_seeds([calibration(np.asarray(run["scores"])) for run in runs]),
                "longer is chosen by the model": over_seeds([run["longer"][0] for run in runs], ".2f"),
                "by people": over_seeds([run["longer"][1] for run in runs], ".2f"),
                **cost(runs),
            }
        )
    return rows


def calibration(scores: np.ndarray) -> float:
    """Mean distance of the probability of a choice from how often it is right, over bins of probability."""
    gaps = scores[:, 0] - scores[:, 1]
    said, right = 1 / (1 + np.exp(-np.abs(gaps))), gaps > 0
    bins = np.minimum((said * 20 - 10).astype(int), 9)
    parts = [(bins == b) for b in range(10)]
    return float(
        sum(part.mean() * abs(said[part].mean() - right[part].mean()) for part in parts if part.any())
    )


def pair_rows(experiment: Experiment) -> list[dict[str, str]]:
    base = [experiment.untrained(seed) for seed in experiment.seeds]
    rows = []
    for name in ("start", *LOSSES):
        runs = base if name == "start" else [experiment.pairs(name, seed) for seed in experiment.seeds]
        gains = [np.subtract(run["judge"], start["judge"]) for run, start in zip(runs, base, strict=True)]
        rows.append(
            {
                "loss": name,
                "rate": "" if name == "start" else f"{experiment.rate(name):g}",
                "held-out pairs right": ""
                if name == "start"
                else with_interval([run["pairs"]["right"] for run in runs]),
                "judge": with_interval([run["judge"] for run in runs], "+.2f"),
                "gain": "" if name == "start" else with_interval(gains, "+.2f"),
                "KL (nats)": over_seeds([float(np.mean(run["kl"])) for run in runs], ".1f"),
                "tokens": over_seeds([float(np.mean(run["tokens"])) for run in runs], ".1f"),
                "distinct-2": over_seeds([run["distinct_2"] for run in runs], ".2f"),
                **({} if name == "start" else cost(runs)),
            }
        )
    return rows


def draw(experiment: Experiment, file: Path) -> None:
    """The judge's score against the KL from the start, a point a seed."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for name in ("start", *LOSSES):
        runs = [
            experiment.untrained(s) if name == "start" else experiment.pairs(name, s)
            for s in experiment.seeds
        ]
        axes.scatter(
            [np.mean(run["kl"]) for run in runs], [np.mean(run["judge"]) for run in runs], label=name
        )
    axes.set(xlabel="KL from the start (nats a sequence)", ylabel="judge's score")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = arguments(__doc__, "runs/chat_pairs")
    parser.add_argument(
        "--parts", nargs="+", choices=["sft", "reward", "pairs"], default=["sft", "reward", "pairs"]
    )
    given = parser.parse_args()
    experiment = Experiment(given.model, given.shared, given.output, given.seeds)
    tables = {"sft": sft_rows, "reward": reward_rows, "pairs": pair_rows}
    text = "\n\n".join(format_table(tables[part](experiment)) for part in given.parts)
    print(text)
    (given.output / "table.md").write_text(text + "\n")
    if "pairs" in given.parts:
        draw(experiment, given.output / "judge_kl.png")


if __name__ == "__main__":
    main()
