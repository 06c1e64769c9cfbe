"""SmolLM2-135M-Instruct, distilled into a student of a fifth of its size, three seeds; and how to go on from there.

Questions: how far does the KL of held-out answers fall, from a student cut out of the teacher and from a random one;
  and what do forward KL, reverse KL and JSD, on demonstrations and on the student's own answers, make of that student?
Command: python experiments/chat_distill.py --model MODEL [--shared ../shared] [--output runs/chat_distill]
    [--seeds 0 1 2]
  MODEL is made by `../shared/models/smollm2.py MODEL`. What is done is kept, stage by stage: the same command goes on.
  It writes table.md, curves.png and student-0/export, the student for `chat_doctor.py --small`.
Student: every third layer of the teacher, its residual stream projected onto the 320 directions that hold most of what
  embeddings and layers write into it, and a third of each layer's hidden units, those of the largest weights: 25.6
  million weights with the teacher's tokenizer, of which 15.7 are embeddings.
Data: Alpaca's demonstrations, a twentieth held out; rows of up to 160 tokens.
Hardware, time and figures: experiments/LOG.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from real_chat import Stages, arguments, cost, drop_weights, held_out, over_seeds, sampled
from safetensors.numpy import load_file, save_file

import jaxalign as ja
from jaxalign import models
from jaxalign.evaluation.tables import format_table
from jaxalign.runs import records
from jaxalign.training.distill.config import DistillLossConfig, DivergenceName

WIDTH, EVERY, UNITS = 320, 3, 512
STEPS, SHORT, ROWS, LONGEST = 200, 50, 8, 160
RATE = 1e-3
# What goes on from the student: the divergence, and the part of steps on the student's own answers.
WAYS: tuple[tuple[DivergenceName, float], ...] = (
    ("forward_kl", 0.0),
    ("forward_kl", 0.5),
    ("jsd", 0.0),
    ("jsd", 0.5),
    ("reverse_kl", 0.0),
    ("reverse_kl", 0.5),
)
QUESTIONS = ("Name three fruits.", "What is the capital of France?", "Why should I drink water?")


def cut_out(teacher: Path, folder: Path) -> Path:
    """A smaller Llama out of a larger one with tied embeddings, without data; a student's beginning."""
    config = json.loads((teacher / "config.json").read_text())
    weights = {
        name: np.asarray(x, np.float32) for name, x in load_file(teacher / "model.safetensors").items()
    }
    kept = range(0, config["num_hidden_layers"], EVERY)
    embeddings = weights["model.embed_tokens.weight"]
    # What is written into the residual stream: by the embeddings, and by two products of each layer.
    written = [embeddings.T @ embeddings / len(embeddings)]
    for layer in range(config["num_hidden_layers"]):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            x = weights[f"model.layers.{layer}.{name}.weight"]
            written.append(x @ x.T)
    directions = np.linalg.eigh(sum(x / np.trace(x) for x in written))[1][:, ::-1][:, :WIDTH]
    found = {"model.embed_tokens.weight": embeddings @ directions}
    # A norm divides by the root mean square over fewer directions, which hold most of the sum of squares.
    ones = np.full(WIDTH, np.sqrt(WIDTH / len(directions)), np.float32)
    found["model.norm.weight"] = ones * weights["model.norm.weight"].mean()
    for number, layer in enumerate(kept):
        old, new = f"model.layers.{layer}", f"model.layers.{number}"
        gate, up, down = (weights[f"{old}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        sizes = np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
        units = np.sort(np.argsort(sizes)[::-1][:UNITS])
        for norm, reads in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            found[f"{new}.{norm}.weight"] = ones
            for name in reads:
                x = weights[f"{old}.{name}.weight"]
                x = x[units] if name.startswith("mlp") else x
                found[f"{new}.{name}.weight"] = (x * weights[f"{old}.{norm}.weight"]) @ directions
        found[f"{new}.self_attn.o_proj.weight"] = directions.T @ weights[f"{old}.self_attn.o_proj.weight"]
        found[f"{new}.mlp.down_proj.weight"] = directions.T @ down[:, units]
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": WIDTH, "intermediate_size": UNITS, "num_hidden_layers": len(kept)}
    (folder / "config.json").write_text(json.dumps(config | sizes))
    save_file({name: np.ascontiguousarray(x) for name, x in found.items()}, folder / "model.safetensors")
    models.load_tokenizer(teacher).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Experiment:
    """The stages.

    Attributes:
      model: the teacher's folder.
      shared: the folder of the real data.
      output: where everything is written.
      seeds: of the student.
    """

    model: Path
    shared: Path
    output: Path
    seeds: Sequence[int]

    @property
    def stages(self) -> Stages:
        return Stages(self.output)

    @cached_property
    def beginning(self) -> Path:
        return cut_out(self.model, self.output / "beginning")

    def student(self, seed: int, *, random: bool = False, weights: bool = False) -> dict[str, Any]:
        """`STEPS` of supervised distillation; `random`: `SHORT` steps from random weights."""
        source = ja.ModelSource(path=str(self.beginning), random_init=random, tokenizer=str(self.model))
        steps = SHORT if random else STEPS
        name = f"random-{seed}" if random else f"student-{seed}"
        way: tuple[DivergenceName, float] = ("forward_kl", 0.0)
        return self._distilled(
            name, seed, source, way, steps, RATE, keep=name == "student-0", weights=weights
        )

    def further(self, way: tuple[DivergenceName, float]) -> dict[str, Any]:
        """`SHORT` more steps from the first student."""
        name = f"{way[0]}-{way[1]:g}"
        if not self.stages.done(name):
            self.student(0, weights=True)
        source = ja.ModelSource(path=str(self.output / "student-0" / "export"))
        return self._distilled(name, 0, source, way, SHORT, RATE / 5)

    def _distilled(
        self,
        name: str,
        seed: int,
        source: ja.ModelSource,
        way: tuple[DivergenceName, float],
        steps: int,
        rate: float,
        keep: bool = False,
        weights: bool = False,
    ) -> dict[str, Any]:
        def make(run: ja.RunConfig) -> dict[str, Any]:
            result = ja.train_distill(
                ja.DistillConfig(
                    run=run,
                    model=source,
                    teacher=ja.ModelSource(path=str(self.model)),
                    data=ja.DataConfig(
                        train=(str(self.shared / "data/sft/alpaca_en_demo.jsonl"),),
                        validation_fraction=0.05,
                        max_length=LONGEST,
                        truncation="cut_completion",
                    ),
                    on_policy=way[1],
                    loss=DistillLossConfig(name=way[0]),
                    sampling=ja.SamplingConfig(max_new_tokens=48),
                    train=ja.TrainConfig(batch_size=ROWS, steps=steps),
                    optimizer=ja.OptimizerConfig(learning_rate=rate, schedule="cosine", warmup_ratio=0.1),
                )
            )
            rows = list(records.read(Path(run.output) / "metrics.jsonl"))
            evaluated = {row["step"]: row["eval/kl"] for row in rows if "eval/kl" in row}
            curve = [(row["step"], row["train/kl"]) for row in rows if "train/kl" in row]
            model, teacher = models.load_pretrained(Path(run.output) / "export"), self.teacher
            tokenizer = models.load_tokenizer(self.model)
            own = sampled(model, teacher, tokenizer, QUESTIONS, seed=seed, max_new_tokens=48, samples=8)
            found = held_out(result) | {"before": evaluated[min(evaluated)], "curve": curve, **own}
            if not keep:
                drop_weights(run)
            return found

        return self.stages.once(name, make, seed, weights=weights)

    @cached_property
    def teacher(self) -> Any:
        return models.load_pretrained(self.model)


def row(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Held-out figures are means over completion tokens; the last column is of the student's own answers."""
    own = [np.sum(run["kl"]) / np.sum(run["tokens"]) for run in runs]
    return {
        "student": name,
        "steps": str(runs[0]["curve"][-1][0]),
        "KL before": over_seeds([run["before"] for run in runs], ".2f"),
        "KL after (nats a token)": over_seeds([run["eval/kl"] for run in runs], ".2f"),
        "same first choice": over_seeds([run["eval/agreement"] for run in runs], ".2f"),
        "own answers, KL (nats a token)": over_seeds(own, ".2f"),
        **cost(runs),
    }


def draw(lines: dict[str, Sequence[dict[str, Any]]], file: Path) -> None:
    """KL of the training rows, smoothed over ten steps."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, runs in lines.items():
        for number, run in enumerate(runs):
            steps, kl = np.transpose(run["curve"])
            smooth = np.convolve(kl, np.ones(10) / 10, "valid")
            colour = "tab:blue" if name.startswith("cut") else "tab:orange"
            axes.plot(steps[9:], smooth, label=name if not number else None, color=colour, alpha=0.7)
    axes.set(xlabel="step", ylabel="KL(teacher || student), nats a token", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    given = arguments(__doc__, "runs/chat_distill").parse_args()
    experiment = Experiment(given.model, given.shared, given.output, given.seeds)
    lines = {
        "cut out of the teacher": [experiment.student(seed) for seed in experiment.seeds],
        "random": [experiment.student(seed, random=True) for seed in experiment.seeds],
    }
    rows = [row(name, runs) for name, runs in lines.items()]
    rows += [
        row(f"first student, then {way[0]}, own answers {way[1]:g}", [experiment.further(way)])
        for way in WAYS
    ]
    text = format_table(rows)
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "table.md").write_text(text + "\n")
    draw(lines, given.output / "curves.png")


if __name__ == "__main__":
    main()
