"""DPO, then GRPO, of a model folder, called from Python: rows, reward, optimizer and callback are live objects.

Run: python examples/train_from_python.py MODEL_FOLDER OUTPUT_FOLDER
"""

import sys

import datasets
import optax

import jaxalign as ja

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "mnop"]
PAIRS = datasets.Dataset.from_list(
    [{"prompt": f"{w}: ", "chosen": "aaaa", "rejected": "zzzz"} for w in WORDS]
)


class Curve(ja.Callback):
    """Keeps a number of every step, and ends the run when it is good enough."""

    def __init__(self, metric, enough):
        self.metric, self.enough, self.values = metric, enough, []

    def on_step(self, event):
        self.values.append(event.metrics[self.metric])
        if self.values[-1] >= self.enough:
            event.stop(f"{self.metric} reached {self.enough}")


def share_of(letter):
    """A reward: the share of a completion's letters that are this one."""
    return lambda prompts, completions, **columns: [c.count(letter) / max(len(c), 1) for c in completions]


def train(model, output, rate=1e-5, updates=60):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    common = {"model": ja.ModelSource(path=model), "data": ja.DataConfig(template="plain", end_token="none")}
    margins = Curve("train/margin", enough=2.0)
    dpo = ja.DPOConfig(run=ja.RunConfig(output=f"{output}/dpo", progress=False), **common)
    first = ja.train_dpo(dpo, train_dataset=PAIRS, optimizer=optimizer, callbacks=[margins])
    scores = Curve("objective/score", enough=0.95)
    grpo = ja.GRPOConfig(
        run=ja.RunConfig(output=f"{output}/grpo", progress=False),
        train=ja.GRPOTrainConfig(updates=updates, prompts=4),
        sampling=ja.SamplingConfig(max_new_tokens=8, num_samples=8),
        **(common | {"model": ja.ModelSource(path=str(first.folder))}),
    )
    prompts = PAIRS.select_columns(["prompt"])
    ja.train_grpo(grpo, train_dataset=prompts, reward=share_of("a"), optimizer=optimizer, callbacks=[scores])
    return margins.values, scores.values


if __name__ == "__main__":
    for curve in train(*sys.argv[1:]):
        print(f"{curve[0]:.3f} -> {curve[-1]:.3f} in {len(curve)} steps")
