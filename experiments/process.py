"""A process reward model of arithmetic chains, and GRPO with its step rewards against GRPO with the outcome alone.

Claims: the process reward model tells right steps from wrong ones better than the majority does; whether process
  advantages help at an equal number of completions is what the log says.
Command: python experiments/process.py --output runs/process [--seeds 0 1 2] [--updates 40] [--arms outcome process]
  Further arms: "lowest step" (GRPO on the lowest probability of a step) and "process and outcome" (their sum).
Task: "3 1 4 0 2 >" is answered by the running sums, "4 ; 8 ; 8 ; 10 ;". A step is right where it is the sum of the
  step before it, as it was written, and the next digit; an answer is right where its last sum is.
Model: a Llama of two layers and width 64 (random weights, made here), fine-tuned on right chains until at least 15% of
  its answers are sound, right in every step. Step labels: of its own samples, by the rule. The process reward model
  starts from its trunk.
Evaluation: 500 held-out prompts, sampled at temperature 1. Hardware, time and figures: experiments/LOG.md.
"""

import argparse
import itertools
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from sorting import SHAPE, tokenizer

from jaxalign import models
from jaxalign.data import DataConfig
from jaxalign.rollout import Sampler, SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.reward_model.trainer import RewardConfig, RewardLossConfig, train_reward
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.sft import SFTConfig, train_sft

DIGITS, TERMS = "01234", 5
NUMBERS = [str(n) for n in range(4 * TERMS + 1)]
WORDS = [*NUMBERS, ">", ";", "<s>", "</s>", "<pad>"]
SHAPE = replace(
    SHAPE,
    vocab_size=len(WORDS),
    bos_id=WORDS.index("<s>"),
    eos_ids=(WORDS.index("</s>"),),
    pad_id=WORDS.index("<pad>"),
)
SAMPLING = SamplingConfig(max_new_tokens=10, num_samples=8)


def sums(prompt: str) -> list[str]:
    """The right steps."""
    digits = [int(d) for d in prompt.split()[:TERMS]]
    return [str(sum(digits[: i + 2])) for i in range(TERMS - 1)]


def answer(steps: list[str]) -> str:
    return " " + " ; ".join(steps) + " ;"


def step_labels(prompt: str, steps: list[str]) -> list[bool]:
    """Whether each step follows from the one before it; further steps than there are digits do not."""
    digits = [int(d) for d in prompt.split()[:TERMS]]
    before, labels = str(digits[0]), []
    for number, step in enumerate(steps, 1):
        fits = number < TERMS and before in NUMBERS
        labels.append(fits and step.strip() == str(int(before) + digits[number]))
        before = step.strip()
    return labels


def split(completion: str) -> list[str]:
    return [step for step in completion.split(";") if step.strip()]


def exact(prompts, completions, *, completion_ids, columns):
    """1 where there are as many steps as sums, and the last one is right: the outcome alone."""
    del completion_ids, columns
    return [
        float(len(steps := split(text)) == TERMS - 1 and steps[-1].strip() == sums(prompt)[-1])
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def sampled(model, prompts: list[str], words, seed: int) -> list[str]:
    """An answer to each prompt, at temperature 1."""
    ids = [words.encode(prompt) for prompt in prompts]
    done = Sampler(model).generate(ids, max_new_tokens=SAMPLING.max_new_tokens, key=jax.random.key(seed))
    return done.texts(words)


def measures(model, prompts: list[str], words, seed: int) -> dict[str, float]:
    """Part of the answers whose last sum is right, and whose steps all are."""
    texts = sampled(model, prompts, words, seed)
    hits = np.asarray(exact(prompts, texts, completion_ids=[], columns={}))
    sound = np.asarray([all(step_labels(p, split(t))) for p, t in zip(prompts, texts, strict=True)])
    return {"success": float(hits.mean()), "sound": float((hits * sound).mean())}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def data(*files: str, **more) -> DataConfig:
    return DataConfig(train=files, template="plain", **({"validation_fraction": 0.0} | more))


def run_config(folder: Path, seed: int) -> RunConfig:
    return RunConfig(output=str(folder), seed=seed, progress=False, log_every=10, save_every=0)


def start(folder: Path, seed: int, solved: list[str], held_out: list[str], words):
    """A model with at least 15% sound answers to held-out prompts: fine-tuned in pieces of 50 steps until it has."""
    model = models.create(SHAPE, key=jax.random.key(seed))
    file = write(folder / "solved.jsonl", [{"prompt": p, "completion": answer(sums(p))} for p in solved])
    for part in range(30):
        result = train_sft(
            SFTConfig(
                run=run_config(folder / f"sft-{part}", seed + part),
                data=data(file),
                train=TrainConfig(batch_size=64, steps=50),
                optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant"),
                sampling=replace(SAMPLING, num_samples=1),
            ),
            model=model,
            tokenizer=words,
        )
        model, rate = result.model, measures(result.model, held_out, words, seed)["sound"]
        if rate >= 0.15:
            print(f"seed {seed}: {50 * (part + 1)} supervised steps, {rate:.3f} sound", flush=True)
            return model, result.folder
    raise SystemExit(f"seed {seed}: the supervised model has not 15% sound answers")


def process_model(folder: Path, seed: int, model, prompts: list[str], words):
    """The process reward model, trained on labelled samples of the supervised model."""
    rows = []
    prompts = prompts * 4
    for prompt, text in zip(prompts, sampled(model, prompts, words, seed + 7), strict=True):
        if steps := split(text):
            rows.append(
                {
                    "prompt": prompt,
                    "completions": [s.rstrip() for s in steps],
                    "labels": step_labels(prompt, steps),
                }
            )
    labels = [label for row in rows for label in row["labels"]]
    result = train_reward(
        RewardConfig(
            run=run_config(folder / "judge", seed),
            data=data(write(folder / "steps.jsonl", rows), separator=" ;", validation_fraction=0.1),
            loss=RewardLossConfig(labels="steps"),
            train=TrainConfig(batch_size=64, steps=1000, eval_batch_size=256),
            optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear"),
        ),
        model=model,
        tokenizer=words,
    )
    return result, {"steps": len(labels), "majority": max(np.mean(labels), 1 - np.mean(labels))}


def run(seed: int, output: Path, updates: int, names: list[str]) -> None:
    words, folder = tokenizer(WORDS), output / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    every = [" ".join(digits) + " >" for digits in itertools.product(DIGITS, repeat=TERMS)]  # 3,125
    draw.shuffle(every)
    held_out, solved, labelled, unsolved = every[:500], every[500:1250], every[1250:2250], every[2250:]
    began = time.perf_counter()
    model, path = start(folder, seed, solved, held_out, words)
    judge, labels = process_model(folder, seed, model, labelled, words)
    found = {k.removeprefix("eval/"): round(v, 4) for k, v in judge.metrics.items() if k.startswith("eval/")}
    print(json.dumps({"seed": seed, **labels, **found, "seconds": time.perf_counter() - began}), flush=True)
    print(
        json.dumps({"seed": seed, "arm": "before", **measures(model, held_out, words, seed + 1)}), flush=True
    )
    file = write(folder / "unsolved.jsonl", [{"prompt": p} for p in unsolved])
    outcome = (f"{__file__}:exact",)
    arms = {
        "outcome": (GRPOLossConfig(), RewardSource(functions=outcome)),
        "process": (GRPOLossConfig(advantages="process"), RewardSource(model=str(judge.folder))),
        "lowest step": (GRPOLossConfig(), RewardSource(model=str(judge.folder))),
        "process and outcome": (
            GRPOLossConfig(advantages="process"),
            RewardSource(model=str(judge.folder), functions=outcome),
        ),
    }
    for name in names:
        loss, reward = arms[name]
        began = time.perf_counter()
        result = train_grpo(
            GRPOConfig(
                run=run_config(folder / name.replace(" ", "-"), seed),
                model=ModelSource(path=str(path)),
                data=data(file),
                sampling=SAMPLING,
                loss=loss,
                reward=reward,
                train=GRPOTrainConfig(updates=updates, prompts=32, minibatches=2, score_batch_size=256),
                optimizer=OptimizerConfig(learning_rate=3e-4, schedule="linear"),
            )
        )
        row = {"seed": seed, "arm": name, **measures(result.model, held_out, words, seed + 1)}
        row |= {"steps": result.metrics.get("reward/model/steps"), "seconds": time.perf_counter() - began}
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/process"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", default=["outcome", "process"])
    parser.add_argument("--updates", type=int, default=40)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        run(seed, arguments.output, arguments.updates, arguments.arms)


if __name__ == "__main__":
    main()
