"""The judge of `doctor_text.py`, and the rows of its tables."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from llmdoctor_measure import distinct

from jaxalign.data.chat import ChatFormat
from jaxalign.evaluation import bootstrap_interval
from jaxalign.models import ScalarModel
from jaxalign.rewards import ModelReward
from jaxalign.rewards.judge import evaluate_judge

# Standard deviations of the judge's scores: closer ones are a tie.
TIE = 0.1


class TextJudge:
    """The judge: reads two texts, says which is better.

    It scores each by itself, so that the side on which a text stands cannot sway it; sides are drawn all the same, as
    they are for every judge.
    """

    def __init__(self, chat: ChatFormat, model: ScalarModel) -> None:
        self.chat, self.reward = chat, ModelReward(model, batch_size=64)

    def scores(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float32 [N], in standard deviations of held-out sentences."""
        return self.reward.score_rows(
            [self.chat.example(p, t)[0] for p, t in zip(prompts, texts, strict=True)]
        )

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], *, columns: Any
    ) -> list[bool | None]:
        del columns
        gaps = self.scores(prompts, first) - self.scores(prompts, second)
        return [None if abs(gap) < TIE else bool(gap > 0) for gap in gaps]

    def points(self, prompts: list[str], ours: list[dict], theirs: list[dict]) -> np.ndarray:
        """[N]: of each prompt the mean over seeds of 1 for a win and a half for a tie."""
        found = [
            evaluate_judge(
                self, prompts, a["texts"], b["texts"], columns={}, key=jax.random.key(number)
            ).preference
            for number, (a, b) in enumerate(zip(ours, theirs, strict=True))
        ]
        return np.mean(found, axis=0)


def row_of(name: str, prompts: list[str], draws: dict[str, list[dict]], judge: TextJudge) -> dict[str, Any]:
    """The figures of one way. Intervals are of prompts drawn again, whose points are means over seeds."""
    parts = draws[name]
    row: dict[str, Any] = {
        "way": name,
        "judge": [float(judge.scores(prompts, part["texts"]).mean()) for part in parts],
    }
    for label, opponent in (("vs patient", "patient, again"), ("vs DPO", "DPO of the patient")):
        if name != opponent:
            points = judge.points(prompts, parts, draws[opponent])
            row[label] = [float(points.mean()), *bootstrap_interval(points, seed=0)]
    # Of a way that draws from a distribution: the mean log-ratio of its own samples estimates the KL.
    if name.startswith("best of"):
        n = int(name.split()[-1])
        row["KL"] = math.log(n) - (n - 1) / n
    elif "greedy" not in name:
        row["KL"] = float(np.mean([np.subtract(part["writer"], part["patient"]) for part in parts]))
    tokens = np.sum([part["tokens"] for part in parts])
    row["nats a token"] = -float(np.sum([part["patient"] for part in parts]) / tokens)
    row["tokens"] = float(np.mean([part["tokens"] for part in parts]))
    for n in (1, 2, 4):
        groups = [[text.split() for text in part["texts"]] for part in parts]
        row[f"distinct-{n}"] = distinct(groups, n)
    return row


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row as text."""

    def wins(label: str) -> str:
        if label not in row:
            return "-"
        return "{:.0%} [{:.0%}, {:.0%}]".format(*row[label])

    kl = row.get("KL")
    bound = "<= " if row["way"].startswith("best of") else ""
    return {
        "way": row["way"],
        "judge": f"{np.mean(row['judge']):+.2f}",
        "vs patient": wins("vs patient"),
        "vs DPO": wins("vs DPO"),
        "KL": "-" if kl is None else f"{bound}{kl:.1f}",
        "nats a token": f"{row['nats a token']:.2f}",
        "distinct-1/2/4": "/".join(f"{row[f'distinct-{n}']:.2f}" for n in (1, 2, 4)),
        "tokens": f"{row['tokens']:.0f}",
    }


def trial_cells(trials: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """What was tried of each way, and what was chosen."""
    rows = []
    for way, found in trials.items():
        best = max(found, key=lambda one: one["accuracy"])
        for one in found:
            strength = one["strength"] if isinstance(one["strength"], str) else f"{one['strength']:.3g}"
            row = {"way": way, "rate": f"{one['rate']:g}", "strength": strength}
            rows.append(row | {"accuracy": f"{one['accuracy']:.3f}", "": "chosen" if one is best else ""})
    return rows


def accuracy_cells(seeds: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Accuracy on held-out pairs, and against the method's own rewards, with intervals over pairs.

    The points of a pair are means over seeds.
    """
    rows = []
    for name in seeds[0]:
        right = np.mean([one[name]["right"] for one in seeds], axis=0)
        low, high = bootstrap_interval(right, seed=0)
        row = {
            "way": name,
            "seeds": ", ".join(f"{one[name]['accuracy']:.3f}" for one in seeds),
            "mean": f"{right.mean():.3f} [{low:.3f}, {high:.3f}]",
            "against as it is": "",
        }
        base = name.partition(",")[0] + ", as it is"
        if "," in name and name != base:
            gap = right - np.mean([one[base]["right"] for one in seeds], axis=0)
            low, high = bootstrap_interval(gap, seed=0)
            row["against as it is"] = f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append(row)
    return rows
