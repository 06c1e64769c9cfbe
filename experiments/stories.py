"""Stories on a real checkpoint: SFT, a sentiment reward model, PPO against two rewards, DPO, online DPO.

Claim: the pipeline moves a real, trained model (stories260K, 260,032 parameters) at a small distance.
Command: python experiments/stories.py STAGE --shared ../shared --output runs/stories [--seed 0]
  STAGE  sft         held-out loss on TinyStories before and after
         reward      a reward model of sentiment, from pairs of positive and negative sentences
         ppo-python  PPO against a plain Python function that counts happy words
         ppo-model   PPO against the reward model (of seed 0; run `reward` first)
         dpo         DPO on samples of the base model, ranked by the same reward model
        online-dpo  online DPO on pairs of the policy's own samples, ranked by the happy words
         summary     all measurements so far, over seeds
Needs: stories260K, tinystories.jsonl.gz and sentence_polarity.jsonl.gz under SHARED/data.
Time: 2 to 6 minutes a stage on two CPU cores. Figures: experiments/LOG.md.
"""

import argparse
import gzip
import json
import random
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxalign import models
from jaxalign.data import DataConfig, collate_demonstrations, eval_batches, load_dataset
from jaxalign.evaluation.tables import format_table
from jaxalign.pipelines.compare import Comparison, comparison_rows
from jaxalign.rewards import ModelReward, RewardRequest, evaluate_reward
from jaxalign.rollout import Sampler, SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.preference.dpo import DPOConfig, DPOLossConfig, train_dpo
from jaxalign.training.reward_model.trainer import RewardConfig, train_reward
from jaxalign.training.rl.kl_controller import KLConfig
from jaxalign.training.rl.on_policy_config import RolloutTrainConfig
from jaxalign.training.rl.online_dpo import OnlineDPOConfig, train_online_dpo
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import CriticConfig, PPOConfig, PPOTrainConfig
from jaxalign.training.sft import SFTConfig, train_sft

HAPPY = ("happy", "love", "fun", "smile", "laugh", "good", "nice", "play")
SAMPLING = SamplingConfig(max_new_tokens=48)
# Completions are cut at 48 tokens, mostly before the story ends: no end token is put behind them.
CUT = {"template": "plain", "end_token": "none"}


def happy_words(prompts, completions, *, completion_ids, columns):
    """A plain Python reward: words of joy, each counted once, per completion."""
    del prompts, completion_ids, columns
    return [float(sum(word in text for word in HAPPY)) for text in completions]


@dataclass(frozen=True)
class Stories:
    """Where things are, and the settings that the stages share."""

    shared: Path
    output: Path
    seed: int

    @property
    def base(self) -> ModelSource:
        return ModelSource(path=str(self.shared / "data/models/stories260K"))

    @property
    def stories(self) -> str:
        return str(self.shared / "data/stories/tinystories.jsonl.gz")

    @property
    def prompts(self) -> DataConfig:
        """The first 16 tokens of each story; a quarter of the different ones is held out."""
        return DataConfig(
            train=(self.stories,),
            prompt_tokens=16,
            validation_fraction=0.25,
            truncation="cut_completion",
            **CUT,
        )

    def run(self, stage: str, **changes: Any) -> RunConfig:
        return RunConfig(output=str(self.output / f"{stage}-{self.seed}"), seed=self.seed, **changes)

    # --- stages -----------------------------------------------------------------------------

    def sft(self):
        return train_sft(
            SFTConfig(
                run=self.run("sft", eval_every=40),
                model=self.base,
                data=DataConfig(
                    train=(self.stories,),
                    template="plain",
                    end_token="<s>",
                    max_length=512,
                    truncation="cut_completion",
                ),
                train=TrainConfig(batch_size=8, steps=160),
                optimizer=OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.1),
            )
        )

    def reward(self):
        train, held_out = self._sentiment_pairs()
        return train_reward(
            RewardConfig(
                run=self.run("reward", eval_every=80),
                model=self.base,
                data=DataConfig(
                    train=(str(train),),
                    validation=(str(held_out),),
                    max_length=96,
                    truncation="cut_completion",
                    **CUT,
                ),
                train=TrainConfig(batch_size=16, steps=480, eval_batch_size=64),
                optimizer=OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.1, weight_decay=0.01),
            )
        )

    def ppo_python(self):
        reward = RewardSource(functions=(f"{__file__}:happy_words",))
        return self._measure(self._ppo("ppo-python", reward), happy_words)

    def ppo_model(self):
        reward = RewardSource(model=str(self.output / "reward-0"))
        return self._measure(self._ppo("ppo-model", reward), self._scorer())

    def dpo(self):
        train, held_out = self._ranked_pairs()
        result = train_dpo(
            DPOConfig(
                run=self.run("dpo", eval_every=60),
                model=self.base,
                data=DataConfig(
                    train=(str(train),),
                    validation=(str(held_out),),
                    max_length=128,
                    truncation="filter",
                    **CUT,
                ),
                loss=DPOLossConfig(beta=0.1),
                train=TrainConfig(batch_size=16, steps=120, eval_batch_size=64),
                optimizer=OptimizerConfig(learning_rate=1e-4, schedule="linear", warmup_ratio=0.1),
            )
        )
        return self._measure(result, self._scorer())

    def online_dpo(self):
        """As many updates and completions as PPO: two each of half as many prompts; one optimizer step an update."""
        result = train_online_dpo(
            OnlineDPOConfig(
                run=self.run("online-dpo", log_every=1, sample_every=20),
                model=self.base,
                reward=RewardSource(functions=(f"{__file__}:happy_words",)),
                data=self.prompts,
                sampling=replace(SAMPLING, num_samples=2),
                loss=DPOLossConfig(beta=0.1),
                train=RolloutTrainConfig(updates=30, prompts=32, epochs=1, minibatches=1),
                optimizer=OptimizerConfig(learning_rate=3e-4, schedule="linear"),
            )
        )
        return self._measure(result, happy_words)

    def _ppo(self, stage: str, reward: RewardSource):
        return train_ppo(
            PPOConfig(
                run=self.run(stage, log_every=1, sample_every=20),
                model=self.base,
                reward=reward,
                data=self.prompts,
                sampling=SAMPLING,
                kl=KLConfig(coefficient=0.1),
                train=PPOTrainConfig(updates=30, prompts=64, epochs=2, minibatches=4),
                optimizer=OptimizerConfig(learning_rate=3e-4, schedule="linear", epsilon=1e-5),
                critic=CriticConfig(
                    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", epsilon=1e-5)
                ),
            )
        )

    # --- data that stages make --------------------------------------------------------------

    def _sentiment_pairs(self) -> tuple[Path, Path]:
        """Pairs of a positive (chosen) and a negative sentence; the last 400 of each kind are held out."""
        with gzip.open(self.shared / "data/sentiment/sentence_polarity.jsonl.gz", "rt") as lines:
            rows = [json.loads(line) for line in lines]
        sides = {}
        for label in ("pos", "neg"):
            sides[label] = [row["text"] for row in rows if row["label"] == label]
            random.Random(0).shuffle(sides[label])
        pairs = [
            [
                {"prompt": "", "chosen": p, "rejected": n}
                for p, n in zip(sides["pos"][part], sides["neg"][part], strict=False)
            ]
            for part in (slice(None, -400), slice(-400, None))
        ]
        return self._write("sentiment_train", pairs[0]), self._write("sentiment_held_out", pairs[1])

    def _ranked_pairs(self) -> tuple[Path, Path]:
        """Per prompt four samples of the base model, by the reward model: first against last, second against third."""
        model, tokenizer = self._load(self.base.path)
        data = load_dataset(self.prompts, "prompt", tokenizer, seed=0)
        sampler, scorer = Sampler(model), self._scorer()
        files = []
        for name, examples in (("train", data.train), ("held_out", data.validation)):
            prompts = [list(e.prompt_tokens) for e in examples]
            done = sampler.generate(
                prompts, key=jax.random.key(self.seed), **SAMPLING.arguments(num_samples=4)
            )
            texts, repeated = done.texts(tokenizer), [p for p in prompts for _ in range(4)]
            request = RewardRequest(
                prompts=[e.prompt_text for e in examples for _ in range(4)],
                completions=texts,
                prompt_ids=repeated,
                completion_ids=done.token_lists(),
                columns={},
                width=done.tokens.shape[1],
            )
            scores = evaluate_reward(scorer, request).scores
            rows = []
            for index, example in enumerate(examples):
                four = sorted(range(4 * index, 4 * index + 4), key=lambda i: -scores[i])
                rows += [
                    {"prompt": example.prompt_text, "chosen": texts[better], "rejected": texts[worse]}
                    for better, worse in ((four[0], four[3]), (four[1], four[2]))
                ]
            files.append(self._write(f"ranked_{name}_{self.seed}", rows))
        return files[0], files[1]

    def _write(self, name: str, rows: list[dict[str, str]]) -> Path:
        path = self.output / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    # --- before and after -------------------------------------------------------------------

    def _scorer(self) -> ModelReward:
        return ModelReward(models.load_reward_model(self.output / "reward-0" / "export"), batch_size=64)

    def _load(self, folder: str | Path) -> tuple[Any, Any]:
        return models.load_pretrained(folder), models.load_tokenizer(folder)

    def _measure(self, result: Any, reward: Any):
        """One sample per held-out prompt of the base model and of the trained one; prints and keeps the figures."""
        base, tokenizer = self._load(self.base.path)
        asked = load_dataset(self.prompts, "prompt", tokenizer, seed=0).validation
        told = load_dataset(
            DataConfig(train=(self.stories,), max_length=256, truncation="cut_completion", **CUT),
            "demonstration",
            tokenizer,
            seed=0,
        ).validation
        comparison = Comparison(
            base,
            reward=reward,
            tokenizer=tokenizer,
            prompts=[list(e.prompt_tokens) for e in asked],
            prompt_texts=[e.prompt_text for e in asked],
            sampling=SAMPLING,
            held_out=list(eval_batches(told, 32, collate_demonstrations)),
            true_reward=None,
            seed=self.seed,
        )
        answers = {name: comparison.answers(one) for name, one in (("base", base), ("trained", result.model))}
        before, after = (comparison.result(name, base if name == "base" else result.model, given)
                         for name, given in answers.items())  # fmt: skip
        print(format_table(comparison_rows([before, after])))
        for index in range(3):
            print(f"\n{comparison.prompt_texts[index]} ...")
            for name, given in answers.items():
                print(f"  {name:8} [{given.proxy[index]:.2f}] {given.completions[index]!r}")
        figures = {
            "before": before.proxy.mean,
            "before_sd": before.proxy.standard_deviation,
            "after": after.proxy.mean,
            "after_se": after.proxy.standard_error,
            "kl": after.kl.mean,
            "rise_in_sd": (after.proxy.mean - before.proxy.mean) / before.proxy.standard_deviation,
            "perplexity_before": before.perplexity.value,
            "perplexity_after": after.perplexity.value,
        }
        (result.folder / "measured.json").write_text(json.dumps(figures, indent=1))
        return result

    def summary(self) -> None:
        """Mean rise over seeds, its standard error, and the largest KL."""
        for stage in ("ppo-python", "ppo-model", "dpo", "online-dpo"):
            files = sorted(self.output.glob(f"{stage}-*/measured.json"))
            found = [json.loads(path.read_text()) for path in files]
            if len(found) < 2:
                print(f"{stage}: {len(found)} seeds; two or more make a standard error")
                continue
            rises = [one["after"] - one["before"] for one in found]
            error = statistics.stdev(rises) / len(rises) ** 0.5
            spread = statistics.fmean(one["before_sd"] for one in found)
            print(
                f"{stage}, {len(rises)} seeds: rise {statistics.fmean(rises):.3f} "
                f"(each {[round(r, 3) for r in rises]}), "
                f"{statistics.fmean(rises) / error:.1f} standard errors, {statistics.fmean(rises) / spread:.2f} SD of "
                f"the base's reward; KL {[round(one['kl'], 2) for one in found]} nats"
            )


def main() -> None:
    stages = ("sft", "reward", "ppo-python", "ppo-model", "dpo", "online-dpo", "summary")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("runs/stories"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    task = Stories(arguments.shared, arguments.output, arguments.seed)
    result = getattr(task, arguments.stage.replace("-", "_"))()
    if result is not None:
        print(json.dumps({name: round(value, 4) for name, value in result.metrics.items()}, indent=1))


if __name__ == "__main__":
    main()
