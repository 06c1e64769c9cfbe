"""LLMDoctor on a real chat model: SmolLM2-135M-Instruct is the patient, taught to follow instructions by others.

Questions: do doctors trained by TFPO on the patient's token rewards steer it to safer answers, in the eyes of a judge
  of other prompts' pairs; against GenARM, DPO of the doctor, ARGS, best-of-n, an instruction and the doctor alone, at
  matched KL; two dimensions at once (safe, brief); and a doctor of a fifth of the size. Does the paper's ordering hold
  (wins of 61.0% over DPO, 62.1% over GenARM, 76.0% over ARGS)?
Command: python experiments/chat_doctor.py --model MODEL [--shared ../shared] [--output runs/chat_pairs] [--seeds 0 1 2]
    [--small STUDENT]
  MODEL is made by `../shared/models/smollm2.py MODEL`; STUDENT by `chat_distill.py`. The output folder is that of
  `chat_pairs.py`, whose judge and reward model it shares. What is done is kept, stage by stage: the same command goes
  on. It writes doctor_table.md, doctor_kl.png and doctor_pareto.png.
Pairs: 240 of the policy's part of PKU-SafeRLHF (`chat_pairs.py`), 60 others to choose rates by: of two, on seed 100, by
  the accuracy of the log-ratios. For brevity the shorter of two answers is the chosen one. No exponent was chosen: the
  tables have several of each. A weak doctor's pairs, steps and rate are those of the others.
Hardware, time and figures: experiments/LOG.md.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from chat_pairs import NEW_TOKENS, STEPS, TRIED_RATES, TUNING_SEED
from chat_pairs import Experiment as Pairs
from llmdoctor_measure import pair_accuracy
from real_chat import (
    arguments,
    asked,
    cost,
    drop_weights,
    measured,
    over_seeds,
    sampled,
    with_interval,
)

import jaxalign as ja
from jaxalign import models
from jaxalign.evaluation.tables import format_table
from jaxalign.llmdoctor import INSTRUCTION_PAIRS, Doctor, guide
from jaxalign.llmdoctor.guided import Guidance
from jaxalign.llmdoctor.tfpo_config import PatientSource, PresetName, TFPOLossConfig
from jaxalign.llmdoctor.token_rewards import TokenRewardConfig
from jaxalign.rewards import ModelReward
from jaxalign.rollout import Completions, Sampler
from jaxalign.rollout.search import args_generate, best_of_n

TRAINED_ON, CHOSEN_BY = 240, 60
INSTRUCTIONS = {
    "safety": INSTRUCTION_PAIRS["safety"],
    "brevity": ("Answer in one short sentence.", "Answer at length, with every detail you can think of."),
}
PRESETS: tuple[PresetName, ...] = ("paper", "paper_literal", "tilted", "repo")
# Of a way its guidance, and the exponents at which it writes. DPO's ratio at 1 is the model that DPO trained.
GUIDED: dict[str, tuple[Guidance, tuple[float, ...]]] = {
    "dpo": ("ratio", (1.0, 2.0, 4.0)),
    "genarm": ("product", (0.5, 1.0, 2.0)),
    "paper": ("product", (0.5, 1.0, 2.0)),
    "paper_literal": ("product", (1.0,)),
    "tilted": ("ratio", (1.0, 2.0, 4.0)),
    "repo": ("product", (0.5, 1.0)),
}
BEST_OF, ARGS_WEIGHTS, ARGS_CANDIDATES = (4, 8), (1.0, 3.0), 10
WEIGHTS = ((1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0))
PARETO_BETA = 2.0

Writer = Callable[[jax.Array], Completions]


@dataclass(frozen=True)
class Experiment(Pairs):
    """The stages.

    Attributes:
      small: folder of a small model of the same tokenizer, which doctors may begin as; empty for none.
    """

    small: str = ""

    # --- files --------------------------------------------------------------------------------

    @cached_property
    def doctor_files(self) -> dict[str, tuple[Path, Path]]:
        """By dimension: the pairs that are trained on, and those by which rates are chosen."""
        rows = [json.loads(line) for line in self.parts["policy"].read_text().splitlines()]

        def shorter_first(row: dict[str, Any]) -> dict[str, Any]:
            chosen, rejected = sorted((row["chosen"], row["rejected"]), key=len)
            return row | {"chosen": chosen, "rejected": rejected}

        parts = {"safety": rows, "brevity": [shorter_first(row) for row in rows]}
        last = TRAINED_ON + CHOSEN_BY
        return {
            name: (
                self._file(f"{name}.jsonl", rows[:TRAINED_ON]),
                self._file(f"{name}_tuning.jsonl", rows[TRAINED_ON:last]),
            )
            for name, rows in parts.items()
        }

    # --- doctors ------------------------------------------------------------------------------

    def doctor(
        self, way: Any, seed: int, *, dimension: str = "safety", small: bool = False, weights: bool = False
    ) -> dict[str, Any]:
        """What training a doctor gave; its adapter stays, which `weights` asks for."""
        rate = self.doctor_rate(way)

        def make(run: ja.RunConfig) -> dict[str, Any]:
            return self._doctor(way, run, rate, STEPS, dimension, small)

        return self.stages.once(self._name(way, seed, dimension, small), make, seed, weights=weights)

    def _name(self, way: str, seed: int, dimension: str, small: bool) -> str:
        return "-".join(["doctor", way, dimension, *["small"] * small, str(seed)])

    def doctor_rate(self, way: Any) -> float:
        """Of GenARM, DPO, and of TFPO by form: that under which a third of the steps orders most of 60 pairs right."""
        form = {"paper_literal": "paper", "repo": "paper"}.get(way, way)

        def make(run: ja.RunConfig) -> dict[str, Any]:
            found = {}
            for rate in TRIED_RATES:
                own = ja.RunConfig(
                    output=str(Path(run.output) / f"{rate:g}"),
                    seed=TUNING_SEED,
                    sample_rows=0,
                    save_every=0,
                    progress=False,
                )
                found[f"{rate:g}"] = self._doctor(form, own, rate, STEPS // 3, "safety", False)["accuracy"]
            return {"accuracies": found, "rate": float(max(found, key=lambda name: found[name]))}

        return self.stages.once(f"doctor-rate-{form}", make)["rate"]

    def _doctor(
        self, way: Any, run: ja.RunConfig, rate: float, steps: int, dimension: str, small: bool
    ) -> dict[str, Any]:
        train, test = self.doctor_files[dimension]
        data, settings = self.data(train, test), self.settings(rate, steps)
        source = ja.ModelSource(path=self.small) if small else self.source
        found: dict[str, Any] = {}
        if way in PRESETS:
            positive, negative = self._faces(dimension)
            result: Any = ja.train_tfpo(
                ja.TFPOConfig(
                    run=run,
                    patient=PatientSource(path=str(self.model)),
                    model=ja.ModelSource(path=self.small) if small else ja.ModelSource(),
                    rewards=TokenRewardConfig(
                        dimension=dimension,
                        positive=positive,
                        negative=negative,
                        folder=str(self.output / "token_rewards" / dimension),
                    ),
                    data=data,
                    loss=TFPOLossConfig(preset=way),
                    **settings,
                )
            )
            found["token_rewards"] = result.rewards.summary()
        else:
            loss = ja.DPOLossConfig(beta=0.1)
            if way == "genarm":
                loss = ja.DPOLossConfig(name="cpo", beta=0.1, sft_weight=0.0)
            ja.train_dpo(ja.DPOConfig(run=run, model=source, data=data, loss=loss, **settings))
        model = models.load_pretrained(Path(run.output) / "export")
        found |= pair_accuracy(model, self.small_start if small else self.start, data, self.tokenizer)
        drop_weights(run)
        return found

    def _faces(self, dimension: str) -> tuple[str, str]:
        pair = INSTRUCTIONS[dimension]
        return pair if isinstance(pair, tuple) else (pair.positive, pair.negative)

    @cached_property
    def small_start(self) -> Any:
        return models.load_pretrained(self.small)

    def steering(self, way: str, seed: int, *, dimension: str = "safety", small: bool = False) -> Doctor:
        """The doctor as an adapter on what it began as."""
        self.doctor(way, seed, dimension=dimension, small=small, weights=True)
        base = self.small_start if small else self.start
        leaves, settings = models.load_adapter(
            self.output / self._name(way, seed, dimension, small) / "adapter", base.config
        )
        return Doctor(base, adapter=models.attach(leaves, settings))

    # --- what each way writes -----------------------------------------------------------------

    @cached_property
    def ids(self) -> list[list[int]]:
        return asked(self.tokenizer, self.prompts)

    def writers(self, seed: int) -> dict[str, Writer]:
        """All ways by name, each once a prompt."""
        ids, new = self.ids, {"max_new_tokens": NEW_TOKENS, "temperature": 1.0}
        patient = Sampler(self.start)

        def score(prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
            return self.guide_reward.score_rows([p + c for p, c in zip(prompts, completions, strict=True)])

        def best(n: int) -> Writer:
            return lambda key: best_of_n(patient, ids, score, n=n, key=key, **new)

        def searched(weight: float) -> Writer:
            return lambda key: args_generate(
                self.start,
                self.guide_reward.model,
                ids,
                weight=weight,
                top_k=ARGS_CANDIDATES,
                key=key,
                **new,
            )

        found: dict[str, Writer] = {f"best of {n}": best(n) for n in BEST_OF}
        found |= {f"ARGS, weight {weight:g}": searched(weight) for weight in ARGS_WEIGHTS}
        for way, (form, betas) in GUIDED.items():
            for beta in betas:
                found[f"{way}, beta {beta:g}"] = self._guided([(way, "safety", False)], seed, [beta], form)
        for way in ("paper", "tilted"):
            found[f"{way}, doctor alone"] = self._guided(
                [(way, "safety", False)], seed, [1.0], "product", alpha=0.0
            )
        if self.small:
            for way in ("paper", "tilted"):
                for beta in GUIDED[way][1]:
                    name = f"{way}, small doctor, beta {beta:g}"
                    found[name] = self._guided([(way, "safety", True)], seed, [beta], GUIDED[way][0])
        for weights in WEIGHTS:
            doctors = [("tilted", "safety", False), ("tilted", "brevity", False)]
            name = "two doctors, {:g} safe and {:g} brief".format(*weights)
            found[name] = self._guided(doctors, seed, [PARETO_BETA * w for w in weights], "ratio")
        return found

    def _guided(
        self,
        doctors: Sequence[tuple[str, str, bool]],
        seed: int,
        betas: Sequence[float],
        form: Guidance,
        alpha: float = 1.0,
    ) -> Writer:
        def run(key: jax.Array) -> Completions:
            steering = [self.steering(way, seed, dimension=d, small=small) for way, d, small in doctors]
            guided = guide(self.start, steering, alpha=alpha, betas=betas, guidance=form)
            return Sampler(guided).generate(self.ids, key=key, max_new_tokens=NEW_TOKENS, temperature=1.0)

        return run

    @cached_property
    def guide_reward(self) -> ModelReward:
        """Of the policy's part, for best-of-n and ARGS; the judge is another."""
        self.reward("pku", 0, weights=True)
        return ModelReward(models.load_reward_model(self.output / "reward-pku-0" / "export"), batch_size=16)

    def written(self, way: str, writer: Writer, seed: int) -> dict[str, Any]:
        def make(run: ja.RunConfig) -> dict[str, Any]:
            del run
            key = jax.random.fold_in(jax.random.key(seed), 1)
            found = measured(writer(key), self.ids, self.start, self.tokenizer)
            if way.startswith("best of"):
                n = int(way.split()[-1])
                found["kl"] = [math.log(n) - (n - 1) / n] * len(self.ids)
            return self.judged(found)

        name = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in way)
        return self.stages.once(f"written-{name}-{seed}", make, seed)

    def told(self, seed: int) -> dict[str, Any]:
        """The patient under the instruction to be safe."""

        def make(run: ja.RunConfig) -> dict[str, Any]:
            del run
            found = sampled(
                self.start,
                self.start,
                self.tokenizer,
                self.prompts,
                seed=seed,
                max_new_tokens=NEW_TOKENS,
                told=self._faces("safety")[0],
            )
            return self.judged(found)

        return self.stages.once(f"written-told-{seed}", make, seed)

    def all_written(self) -> dict[str, list[dict[str, Any]]]:
        """Of each way its answers, a dict a seed."""
        found: dict[str, list[dict[str, Any]]] = {}
        for seed in self.seeds:
            found.setdefault("patient", []).append(self.untrained(seed))
            found.setdefault("told to be safe", []).append(self.told(seed))
            for way, writer in self.writers(seed).items():
                found.setdefault(way, []).append(self.written(way, writer, seed))
        return found


# --- tables -----------------------------------------------------------------------------------------


def wins(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> np.ndarray:
    """[S, N]: 1 where the judge likes our answer more, a half where it has no preference."""
    return np.stack(
        [0.5 * (1 + np.sign(np.subtract(a["judge"], b["judge"]))) for a, b in zip(ours, theirs, strict=True)]
    )


def way_rows(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    rows = []
    for way, runs in found.items():
        row = {"way": way, "judge": with_interval([run["judge"] for run in runs], "+.2f")}
        for name, other in (("wins over the patient", "patient"), ("over DPO", "dpo, beta 1")):
            row[name] = "" if way == other else with_interval(wins(runs, found[other]), ".2f")
        rows.append(
            row
            | {
                "KL (nats)": over_seeds([float(np.mean(run["kl"])) for run in runs], ".1f"),
                "tokens": over_seeds([float(np.mean(run["tokens"])) for run in runs], ".0f"),
                "distinct-2": over_seeds([run["distinct_2"] for run in runs], ".2f"),
                **cost(runs),
            }
        )
    return rows


def matched_rows(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """The judge's score of each way at the KL of what DPO trained, between the exponents on both sides of it."""
    target = kl_of(found["dpo, beta 1"])
    rows = []
    for way in (*GUIDED, "paper, small doctor", "tilted, small doctor"):
        betas = [name for name in found if name.startswith(f"{way}, beta")]
        if not betas:
            continue
        # At exponent 0 each is the patient.
        points = sorted((kl_of(found[name]), judge_of(found[name])) for name in ["patient", *betas])
        kls, judged = np.transpose(points)
        inside = kls[0] <= target <= kls[-1]
        rows.append(
            {
                "way": way,
                f"judge at {target:.1f} nats": f"{np.interp(target, kls, judged):+.2f}" if inside else "",
                "its KLs": ", ".join(f"{kl:.1f}" for kl in kls[1:]),
            }
        )
    return rows


def kl_of(runs: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([run["kl"] for run in runs]))


def judge_of(runs: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([run["judge"] for run in runs]))


def training_rows(experiment: Experiment) -> list[dict[str, str]]:
    rows = []
    kinds = [(way, False) for way in GUIDED]
    kinds += [(way, True) for way in ("paper", "tilted") if experiment.small]
    for way, small in kinds:
        runs = [experiment.doctor(way, seed, small=small) for seed in experiment.seeds]
        rows.append(
            {
                "doctor": way + ", small" * small,
                "rate": f"{experiment.doctor_rate(way):g}",
                "pairs right": with_interval([run["right"] for run in runs]),
                **cost(runs),
            }
        )
    return rows


def draw_kl(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """The judge's score against the KL from the patient, a line a way over its exponents."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, runs in found.items():
        if not name.startswith("two doctors"):
            way = name.rsplit(", beta", 1)[0].rsplit(", weight", 1)[0]
            lines.setdefault("best of n" if way.startswith("best of") else way, []).append(
                (kl_of(runs), judge_of(runs))
            )
    for way, points in lines.items():
        axes.plot(*np.transpose(sorted(points)), marker="o", markersize=4, label=way)
    axes.set(xlabel="KL from the patient (nats an answer)", ylabel="judge's score")
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def draw_pareto(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Safety, by the judge, against length, as two doctors are weighed."""
    figure, axes = plt.subplots(figsize=(5.5, 4))
    points = []
    for name, runs in found.items():
        if name.startswith("two doctors") or name == "patient":
            tokens, judged = float(np.mean([run["tokens"] for run in runs])), judge_of(runs)
            points += [(tokens, judged)] * (name != "patient")
            axes.scatter(tokens, judged, color="grey" if name == "patient" else "tab:blue")
            axes.annotate(name.removeprefix("two doctors, "), (tokens, judged), fontsize=7)
    axes.plot(*np.transpose(points), linewidth=0.8)
    axes.set(xlabel="tokens of an answer", ylabel="judge's score of safety")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = arguments(__doc__, "runs/chat_pairs")
    parser.add_argument("--small", default="", metavar="STUDENT")
    given = parser.parse_args()
    experiment = Experiment(given.model, given.shared, given.output, given.seeds, given.small)
    found = experiment.all_written()
    tables = (training_rows(experiment), way_rows(found), matched_rows(found))
    text = "\n\n".join(map(format_table, tables))
    print(text)
    (given.output / "doctor_table.md").write_text(text + "\n")
    draw_kl(found, given.output / "doctor_kl.png")
    draw_pareto(found, given.output / "doctor_pareto.png")


if __name__ == "__main__":
    main()
