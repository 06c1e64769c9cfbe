"""Trains with every trainer in this process, which may be one of several; `test_processes` starts it.

Arguments: how to join (see `processes.join`), the mesh, model folder, file of pairs, output folder, trainers. The
environment names the folder of reward models and the teacher, and the address of a server.
"""

import os
import sys
from pathlib import Path

from jaxalign.cli.main import main

REWARDS = f"--reward.functions=[{Path(__file__).resolve()}:reward_vowels]"
PROMPTS = ["--train.prompts=4", "--sampling.num_samples=2", "--sampling.max_new_tokens=6", REWARDS]
MODELS, SERVER = (os.environ.get(name, "") for name in ("MODELS", "SERVER"))
OFFLINE = ["--train.steps=3", "--train.batch_size=4", "--run.eval_every=2"]
ANSWERS = [
    "--eval.generate.every=2",
    "--eval.generate.count=3",
    "--eval.generate.sampling.max_new_tokens=5",
    "--eval.generate.sampling.num_samples=2",
]
ANSWER_REWARDS = [
    f"--eval.generate.reward.functions=[{Path(__file__).resolve()}:reward_vowels]",
    f"--eval.generate.reward.model={MODELS}/linear",
    f"--eval.generate.judge={Path(__file__).resolve()}:prefer_longer",
]
TRAINERS = {
    "sft": [*OFFLINE, "--sampling.max_new_tokens=4", *ANSWERS, *ANSWER_REWARDS],
    "distill": [
        *OFFLINE,
        f"--teacher.path={MODELS}/teacher",
        "--sampling.max_new_tokens=6",
        "--run.sample_rows=0",
        "--on_policy=1",
    ],
    "reward": OFFLINE,
    "dpo": [*OFFLINE, "--reference_logps=precomputed", "--run.sample_rows=0"],
    "tfpo": [*OFFLINE, "--rewards.positive=be good", "--rewards.negative=be bad", "--run.sample_rows=0"],
    "ppo": [
        "--train.updates=3",
        "--train.minibatches=2",
        f"--reward.model={MODELS}/linear",
        "--critic.init=reward",
        *PROMPTS,
    ],
    # Members of one shape and trunk, which one program scores; then two that differ.
    "grpo": ["--train.updates=3", f"--reward.models=[{MODELS}/linear,{MODELS}/other]", *PROMPTS],
    "online-dpo": [
        "--train.updates=3",
        f"--reward.models=[{MODELS}/linear,{MODELS}/mlp]",
        "--reward.aggregate=worst",
        *ANSWERS,
        *PROMPTS,
    ],
    "grpo-server": [
        "--train.updates=3",
        "--rollout.engine.kind=vllm",
        f"--rollout.engine.url={SERVER}",
        "--rollout.engine.retries=0",
        f"--reward.model={MODELS}/steps",
        "--loss.advantages=process",
        *PROMPTS,
    ],
}


def reward_vowels(prompts, completions):
    """The share of vowels; only the first process may be asked."""
    import jax

    assert jax.process_index() == 0
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def prefer_longer(prompts, first, second, *, columns):
    """A judge; only the first process may be asked."""
    import jax

    assert jax.process_index() == 0
    return [None if len(a) == len(b) else len(a) > len(b) for a, b in zip(first, second, strict=True)]


def train(name: str, join: str, mesh: str, model: str, data: str, output: str, *more: str) -> int:
    """One run of `jaxalign NAME` (without `-server`); its exit status."""
    where = "patient.path" if name == "tfpo" else "model.path"
    flags = [
        f"--{where}={model}",
        f"--data={data}",
        f"--output={output}/{name}",
        f"--distributed={join}",
        mesh,
        f"--data.cache={output}/cache",
        "--data.template=plain",
        "--data.max_length=32",
        "--run.log_every=1",
        "--run.progress=false",
        *TRAINERS[name],
        *more,
    ]
    # Of two the later counts.
    return main([name.removesuffix("-server"), *{flag.partition("=")[0]: flag for flag in flags}.values()])


def count_written() -> list[str]:
    """The tokenized files that this process writes from now on, by the names that they have while it does."""
    from jaxalign.data import store

    written, write = [], store._write
    store._write = lambda file, *rest: written.append(file.name) or write(file, *rest)
    return written


def draw_nothing() -> None:
    """Curves would take half of this process's time; the tests of `runs` draw them."""
    from jaxalign.runs import plots

    plots.curve = lambda *_, **__: b""


if __name__ == "__main__":
    join, mesh, model, data, output, *names = sys.argv[1:]
    written = count_written()
    draw_nothing()
    more = [name for name in names if name.startswith("--")]
    for name in names:
        if name not in more and (status := train(name, join, mesh, model, data, output, *more)):
            sys.exit(f"{name}: status {status}")
    print("written:", len(written))
