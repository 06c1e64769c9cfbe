"""Stories on a real checkpoint: SFT, a sentiment reward model, and PPO.

Claim: the pipeline moves a real, trained model (stories260K, 260,032 parameters).
Command: python experiments/stories.py STAGE --shared ../shared --output runs/stories [--seed 0]
  STAGE is sft, reward, ppo-python or ppo-model; ppo-model reads the folder of reward with seed 0.
Needs: the stories260K folder, tinystories.jsonl.gz and sentence_polarity.jsonl.gz under SHARED/data.
Time: 1 to 5 minutes a stage on two CPU cores. Figures: experiments/LOG.md.
"""

import argparse
import gzip
import json
import random
from pathlib import Path

from jaxalign.data import DataConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.kl_controller import KLConfig
from jaxalign.training.loop import TrainConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.ppo import train_ppo
from jaxalign.training.ppo_config import CriticConfig, PPOConfig, PPOTrainConfig, RewardSource
from jaxalign.training.reward import RewardConfig, train_reward
from jaxalign.training.setup import ModelSource
from jaxalign.training.sft import SFTConfig, train_sft

HAPPY = ("happy", "love", "fun", "smile", "laugh", "good", "nice", "play")


def happy_words(prompts, completions, *, completion_ids, columns):
    """A plain Python reward: words of joy, each counted once, per completion."""
    del prompts, completion_ids, columns
    return [float(sum(word in text for word in HAPPY)) for text in completions]


def sentiment_pairs(source: Path, folder: Path) -> tuple[Path, Path]:
    """Pairs of a positive (chosen) and a negative snippet; the last tenth of each is held out."""
    with gzip.open(source, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    files = []
    for name, part in (("train", slice(None, -400)), ("held_out", slice(-400, None))):
        sides = {}
        for label in ("pos", "neg"):
            texts = [row["text"] for row in rows if row["label"] == label]
            random.Random(0).shuffle(texts)
            sides[label] = texts[part]
        path = folder / f"sentiment_{name}.jsonl"
        pairs = zip(sides["pos"], sides["neg"], strict=False)
        path.write_text(
            "".join(json.dumps({"prompt": "", "chosen": p, "rejected": n}) + "\n" for p, n in pairs)
        )
        files.append(path)
    return files[0], files[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["sft", "reward", "ppo-python", "ppo-model"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("runs/stories"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data, output = arguments.shared / "data", arguments.output
    output.mkdir(parents=True, exist_ok=True)
    base = ModelSource(path=str(data / "models" / "stories260K"))
    stories = str(data / "stories" / "tinystories.jsonl.gz")
    plain = {"template": "plain", "end_token": "<s>", "truncation": "cut_completion"}
    run = RunConfig(
        output=str(output / f"{arguments.stage}-{arguments.seed}"), seed=arguments.seed, eval_every=40
    )
    if arguments.stage == "sft":
        result = train_sft(
            SFTConfig(
                run=run,
                model=base,
                data=DataConfig(train=(stories,), max_length=512, **plain),
                train=TrainConfig(batch_size=8, steps=160),
                optimizer=OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.1),
            )
        )
    elif arguments.stage == "reward":
        train, held_out = sentiment_pairs(data / "sentiment" / "sentence_polarity.jsonl.gz", output)
        result = train_reward(
            RewardConfig(
                run=run,
                model=base,
                data=DataConfig(train=(str(train),), validation=(str(held_out),), max_length=128, **plain),
                train=TrainConfig(batch_size=16, steps=480, eval_batch_size=64),
                optimizer=OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.1),
            )
        )
    else:
        source = RewardSource(functions=(f"{__file__}:happy_words",))
        if arguments.stage == "ppo-model":
            source = RewardSource(model=str(output / "reward-0"))
        result = train_ppo(
            PPOConfig(
                run=RunConfig(output=run.output, seed=arguments.seed, log_every=1, sample_every=20),
                model=base,
                reward=source,
                data=DataConfig(train=(stories,), prompt_tokens=12, **plain),
                sampling=SamplingConfig(max_new_tokens=48),
                kl=KLConfig(coefficient=0.05),
                train=PPOTrainConfig(updates=30, prompts=64, epochs=2, minibatches=4),
                optimizer=OptimizerConfig(learning_rate=3e-4, schedule="linear", epsilon=1e-5),
                critic=CriticConfig(
                    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", epsilon=1e-5)
                ),
            )
        )
    print(json.dumps({name: round(value, 4) for name, value in result.metrics.items()}, indent=1))


if __name__ == "__main__":
    main()
