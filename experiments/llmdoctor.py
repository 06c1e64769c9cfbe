"""LLMDoctor where the truth is known: token rewards, TFPO, guided decoding, and what else the same pairs can do.

Claims to be looked at, none taken for granted: rewarded tokens are those that matter; a doctor trained by TFPO raises
  the true reward of a patient that it never fine-tunes, at what distance from it and loss of variety; against sampling,
  greedy, best-of-n, ARGS, GenARM, DPO and a plain instruction. Where it loses stands in the table.
Command: python experiments/llmdoctor.py --output runs/llmdoctor [--seeds 0 1 2] [--quick]
  It makes table.md, results.json, frontier.png, pareto.png, token_rewards.png and token_rewards.html. What is done is
  kept, stage by stage: the same command goes on.
Task: `llmdoctor_task.py`. The patient (0.1 million weights) learns stories under four instructions and under none;
  the pairs are two stories without an instruction, ranked by the truth, of which one label in twenty is wrong.
Settings: rate and strength of every way, TFPO's reward scale too, are chosen on seed 100, which is not reported, nine
  trials each (stage `tune`). All ways get the same patient, pairs, batch and steps.
Hardware, time and figures: experiments/LOG.md.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import llmdoctor_measure
import llmdoctor_plots
import numpy as np
from llmdoctor_models import QUICK, Choice, Settings, Trained, exported
from llmdoctor_task import (
    DIMENSIONS,
    MAX_NEW_TOKENS,
    data_config,
    instruction,
    matters,
)

from jaxalign import models
from jaxalign.evaluation.sampler_gap import sampler_gap
from jaxalign.llmdoctor import Doctor, guide
from jaxalign.llmdoctor.tfpo_config import PresetName
from jaxalign.llmdoctor.token_rewards import (
    PreferenceExample,
    TokenRewardConfig,
    process_preference_dataset,
)
from jaxalign.rewards import ModelReward
from jaxalign.rollout import Sampler
from jaxalign.rollout.search import args_generate, best_of_n
from jaxalign.runs import records

PRESETS: tuple[tuple[PresetName, bool], ...] = (("paper", False), ("tilted", True))
# The seed whose figures choose, and which is not reported; what is tried there, nine trials a way.
TUNING = 100
RATES = {
    "paper": (1e-3, 3e-3, 1e-2),
    "tilted": (1e-3, 3e-3, 1e-2),
    "genarm": (1e-3, 3e-3, 1e-2),
    "dpo": (1e-4, 3e-4, 1e-3),
    "reward": (3e-4, 1e-3, 3e-3),
}
# Multiples of the reward scale that auto takes; beta of the loss; smoothing of the labels.
STRENGTHS = {
    "paper": (0.5, 1.0, 3.0),
    "tilted": (0.5, 1.0, 3.0),
    "genarm": (0.05, 0.2, 1.0),
    "dpo": (0.03, 0.1, 0.3),
    "reward": (0.0, 0.05, 0.1),
}
CHOSEN = ("rate", "strength", "beta", "cut")
BETAS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# As contrastive decoding has it.
PLAUSIBILITY = 0.1
ARGS_WEIGHTS = (0.25, 0.5, 1.0)
WEIGHTS = ((1.0, 0.0), (0.8, 0.2), (0.5, 0.5), (0.2, 0.8), (0.0, 1.0))


# Exponents at which variants are compared: below and at the best of both presets.
VARIANT_BETAS = (1.0, 2.0, 4.0)
# What may be changed of the loss and of the rewards, each with the scale that is right for it (auto).
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "shuffled": ({}, {"placement": "shuffled"}),
    "even": ({}, {"placement": "even"}),
    "labels alone": ({}, {"placement": "labels"}),
    "signed": ({}, {"signed": True}),
    "decay 0.5": ({"decay": 0.5}, {}),
    "no value discrimination": ({"value_weight": 0.0}, {}),
    "free end": ({"pin_terminal": False}, {}),
    "reward scale 1": ({"reward_scale": 1.0}, {}),
}


class Lab(Trained):
    """The stages of one seed, each a dict of plain figures."""

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a stage: of an earlier call where it finished, else made now."""
        path = self.folder / "results" / f"{name}.json"
        if not path.exists():
            started = time.perf_counter()
            figures = work()
            figures["seconds"] = round(time.perf_counter() - started, 1)
            llmdoctor_plots.write_json(path, figures)
            print(f"seed {self.seed}: {name} {figures['seconds']} s", flush=True)
        return json.loads(path.read_text())

    # --- stages -----------------------------------------------------------------------------------

    def faces(self) -> dict[str, Any]:
        """Whether the patient follows its instructions: what it writes under each, and under none."""
        patient, measure = self.patient(), self.measure()
        found = {}
        for face in ("", "kind", "mean", "short", "long"):
            told = [f"{instruction(face)} {p}" if face else p for p in self.files.prompts]
            found[face or "none"] = measure.sampled(Sampler(patient), told=told)
        return {"faces": found, "held_out_loss": self.metrics("patient-same")["eval/loss"]}

    def tokens(self) -> dict[str, Any]:
        """Precision, recall and F1 of the rewarded tokens, by threshold and by share kept."""
        face = DIMENSIONS["kindness"]
        with self.files.held_out_pairs["kindness"].open() as lines:
            rows = [json.loads(line) for line in lines][: self.settings.read]
        examples = [PreferenceExample(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
        found = process_preference_dataset(
            examples,
            self.patient(),
            self.tokenizer,
            config=TokenRewardConfig(positive=face.positive, negative=face.negative, threshold=0.0),
            data=data_config(Path()),
        )
        truth, importance = [], []
        for row, rewards in zip(rows, found, strict=True):
            for text, response in (
                (row["chosen"], rewards.preferred),
                (row["rejected"], rewards.non_preferred),
            ):
                truth += matters(row["prompt"], text)
                importance += list(response.importances)
        return llmdoctor_plots.retrieval(np.asarray(truth), np.asarray(importance))

    def learning(self) -> dict[str, Any]:
        """What training reported before its first step and after its last, and what token rewards cost."""
        found = {}
        for name, folder in {
            "paper": self.tfpo("paper"),
            "tilted": self.tfpo("tilted"),
        }.items():
            rows = [r for r in records.read(folder / "metrics.jsonl") if "eval/balance" in r]
            keys = [key for key in rows[-1] if key.startswith("eval/")]
            metadata = json.loads((folder / "metadata.json").read_text())
            found[name] = {
                "before": {key: rows[0].get(key) for key in keys},
                "after": {key: rows[-1][key] for key in keys},
                "token_rewards": metadata.get("token_rewards", {}),
                "seconds": self.metrics(folder.name)["seconds"],
            }
        self.reward_model()
        doctors = {"paper": self.tfpo("paper"), "tilted": self.tfpo("tilted")}
        doctors |= {"genarm": self.genarm(), "dpo": self.dpo()}
        found["accuracy"] = {name: self.accuracy(folder)["accuracy"] for name, folder in doctors.items()}
        found["accuracy"]["reward"] = self.metrics("reward")["eval/accuracy"]
        return found

    def accuracy(self, folder: Path) -> dict[str, Any]:
        """How often the log-ratios of a run's model to the patient order held-out pairs right."""
        data = data_config(self.files.pairs["kindness"], self.files.held_out_pairs["kindness"])
        return llmdoctor_measure.pair_accuracy(exported(folder), self.patient(), data, self.tokenizer)

    def comparison(self) -> dict[str, Any]:
        """Every method on the same held-out prompts."""
        patient, measure, key = self.patient(), self.measure(), jax.random.key(self.seed + 1)
        sampler, reward = Sampler(patient), self.reward_model()
        found = {
            "sampling": measure.sampled(sampler),
            "greedy": measure.sampled(sampler, temperature=0.0),
            "told to be kind": measure.sampled(
                sampler, told=[f"{instruction('kind')} {p}" for p in self.files.prompts]
            ),
        }
        scorer = ModelReward(reward)

        def score(prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
            return scorer.score_rows([p + c for p, c in zip(prompts, completions, strict=True)])

        new = {"max_new_tokens": MAX_NEW_TOKENS}
        for n in (4, 16):
            done = best_of_n(sampler, measure.repeated, score, n=n, key=key, **new)
            found[f"best of {n}"] = measure.figures(done, kl_bound=float(np.log(n) - (n - 1) / n))
        for weight in ARGS_WEIGHTS:
            done = args_generate(patient, reward, measure.repeated, weight=weight, top_k=10, key=key, **new)
            found[f"ARGS {weight:g}"] = measure.figures(done, certain=True)
        found["DPO"] = measure.sampled(Sampler(exported(self.dpo())))
        for name, folder in {"paper": self.tfpo("paper"), "tilted": self.tfpo("tilted")}.items():
            found[f"TFPO {name}, doctor alone"] = measure.sampled(Sampler(exported(folder)))
            found |= self.sweep(f"TFPO {name}", self.doctor(folder), ratio=name == "tilted")
        found |= self.sweep("GenARM", self.doctor(self.genarm()), ratio=False)
        for name, way, folder in (
            ("TFPO paper", "paper", self.tfpo("paper")),
            ("TFPO tilted", "tilted", self.tfpo("tilted")),
            ("GenARM", "genarm", self.genarm()),
        ):
            choice = self.chosen[way]
            options = {"ratio": way == "tilted", "betas": (choice.beta,), "plausibility": choice.cut}
            found[f"{name}, as chosen"] = self.sweep("", self.doctor(folder), **options).popitem()[1]
        return found

    def ablations(self) -> dict[str, Any]:
        """What the parts of the method do: `VARIANTS` of both presets, at equal steps and rate, each with its scale."""
        found: dict[str, Any] = {}
        for preset, ratio in PRESETS:
            choice = replace(self.chosen[preset], strength="auto")
            for name, (loss, rewards) in VARIANTS.items():
                scale = loss.get("reward_scale", "auto")
                folder = self.tfpo(
                    preset,
                    name=f"ablation-{preset}-{name.replace(' ', '-')}",
                    choice=replace(choice, strength=scale),
                    loss={key: value for key, value in loss.items() if key != "reward_scale"},
                    rewards=rewards,
                )
                metadata = json.loads((folder / "metadata.json").read_text())
                options = {"ratio": ratio, "plausibility": self.chosen[preset].cut}
                swept = self.sweep("", self.doctor(folder), betas=VARIANT_BETAS, **options)
                row = {"pairs": self.accuracy(folder), "scale": metadata["reward_scale"]}
                row["betas"] = {
                    f"{beta:g}": one for beta, one in zip(VARIANT_BETAS, swept.values(), strict=True)
                }
                found[f"TFPO {preset}, {name}"] = row
        return found

    def full(self) -> dict[str, Any]:
        """A tilted doctor of which all weights are trained, beside the adapter."""
        whole = Doctor(exported(self.tfpo("tilted", full=True)), reference=self.patient())
        options = {"ratio": True, "betas": (self.chosen["tilted"].beta,)}
        return {
            **self.sweep("TFPO tilted", self.doctor(self.tfpo("tilted")), **options),
            **self.sweep("TFPO tilted, all weights", whole, **options),
        }

    def tune(self) -> dict[str, Any]:
        """Rate and strength of every way, nine trials each: by the true reward that it gives, at its best exponent.

        The reward model is judged by the accuracy on held-out pairs.
        """
        trials: dict[str, list[dict[str, Any]]] = {}
        for way in RATES:
            trials[way] = []
            for rate in RATES[way]:
                for number in STRENGTHS[way]:
                    trials[way].append(self.trial(way, rate, number))
        best = {way: max(rows, key=lambda row: row["score"]) for way, rows in trials.items()}
        chosen = {way: {name: row[name] for name in CHOSEN} for way, row in best.items()}
        return {"chosen": chosen, "trials": trials}

    def trial(self, way: str, rate: float, number: float) -> dict[str, Any]:
        name = f"trial-{way}-{rate:g}-{number:g}"
        if way not in dict(PRESETS):
            row: dict[str, Any] = {"rate": rate, "strength": number, "beta": 1.0, "cut": 0.0}
            choice = Choice(rate, number)
            if way == "reward":
                self.reward_model(choice, name)
                return row | {"score": self.metrics(name)["eval/accuracy"]}
            folder = getattr(self, way)(choice, name)
            if way == "dpo":
                return row | {"score": self.measure().sampled(Sampler(exported(folder)))["reward"]}
        else:
            # `number` is a multiple of the scale that is read off the gradients, which depends on no rate.
            first = self.tfpo(way, name=f"trial-{way}-{rate:g}-1", choice=Choice(rate, "auto"))
            auto = json.loads((first / "metadata.json").read_text())["reward_scale"]["auto"]
            strength = "auto" if number == 1 else number * auto
            row = {"rate": rate, "strength": strength}
            folder = self.tfpo(way, name=name, choice=Choice(rate, strength))
        found: list[dict[str, Any]] = []
        for cut in (0.0, PLAUSIBILITY):
            ratio, betas = way == "tilted", (1.0, 2.0, 4.0, 8.0)
            swept = self.sweep("", self.doctor(folder), ratio=ratio, betas=betas, plausibility=cut)
            for beta, one in zip(betas, swept.values(), strict=True):
                found.append(row | {"beta": beta, "cut": cut, "score": one["reward"], "kl": one["kl"]})
        return max(found, key=lambda one: one["score"])

    def plausible(self) -> dict[str, Any]:
        """Strong doctors that keep to what the patient finds plausible; at beta 0 what that alone does."""
        found = {}
        for name, folder, ratio in (
            ("TFPO paper", self.tfpo("paper"), False),
            ("TFPO tilted", self.tfpo("tilted"), True),
            ("GenARM", self.genarm(), False),
        ):
            betas = (0.0, 1.0, 2.0, 4.0, 8.0)
            found |= self.sweep(
                name, self.doctor(folder), ratio=ratio, betas=betas, plausibility=PLAUSIBILITY
            )
        return found

    def sweep(
        self,
        name: str,
        doctor: Doctor,
        *,
        ratio: bool,
        betas: tuple[float, ...] = BETAS,
        patient: Any = None,
        plausibility: float = 0.0,
    ) -> dict[str, Any]:
        """Guided decoding over beta; one program serves all."""
        measure = self.measure(patient)
        patient = self.patient() if patient is None else patient
        guidance = "ratio" if ratio else "product"
        guided = guide(patient, [doctor], betas=[1.0], guidance=guidance, plausibility=plausibility)
        sampler, found = Sampler(guided), {}
        for beta in betas:
            sampler.update(guided.with_weights(betas=[beta]).params)
            found[f"{name} {beta:g}"] = measure.sampled(sampler)
        return found

    def pareto(self) -> dict[str, Any]:
        """Two doctors on one base, evaluated together, under weights chosen when asked."""
        measure, found = self.measure(), {}
        doctors = [self.doctor(self.tfpo("tilted", dimension=name)) for name in DIMENSIONS]
        beta, cut = self.chosen["tilted"].beta, self.chosen["tilted"].cut
        guided = guide(self.patient(), doctors, betas=[1.0, 1.0], guidance="ratio", plausibility=cut)
        sampler = Sampler(guided)
        for weights in WEIGHTS:
            sampler.update(guided.with_weights(betas=[beta * weight for weight in weights]).params)
            found[f"{weights[0]:g}, {weights[1]:g}"] = measure.sampled(sampler)
        return found | {"patient": measure.sampled(Sampler(self.patient()))}

    def weak_to_strong(self) -> dict[str, Any]:
        """A small doctor for a large patient, which may have 8-bit weights."""
        strong, weak = self.patient("strong"), self.patient("weak")
        measure = self.measure(strong)
        sizes = {
            name: llmdoctor_measure.size(model) for name, model in (("patient", strong), ("doctor", weak))
        }
        found: dict[str, Any] = {"sizes": sizes, "rows": {}}
        found["rows"]["doctor's start alone"] = measure.sampled(Sampler(weak))
        swept: dict[PresetName, tuple[float, ...]] = {"paper": (0.0, 1.0, 2.0), "tilted": (1.0, 2.0)}
        doctors = {}
        for preset, betas in swept.items():
            folder = self.tfpo(preset, full=True, patient=strong, doctor=weak, name=f"weak-{preset}")
            doctors[preset] = Doctor(exported(folder), reference=weak)
            found["rows"] |= self.sweep(
                f"TFPO {preset}", doctors[preset], ratio=preset == "tilted", betas=betas, patient=strong
            )
        guided = guide(strong, [doctors["tilted"]], betas=[2.0], guidance="ratio")
        rounded = Sampler(guided, weights="int8")
        name = "TFPO tilted 2, 8-bit patient"
        found["rows"][name] = measure.sampled(rounded)
        gap = sampler_gap(
            Sampler(strong, weights="int8"),
            strong,
            measure.prompts,
            max_new_tokens=MAX_NEW_TOKENS,
            key=jax.random.key(self.seed),
        )
        found["int8"] = vars(gap) | llmdoctor_measure.size(models.quantize(strong))
        found["tokens_per_second"] = llmdoctor_measure.speeds(
            {
                "patient": Sampler(strong),
                "8-bit patient": Sampler(strong, weights="int8"),
                "doctor": Sampler(weak),
                "guided": Sampler(guided),
                "guided, 8-bit patient": rounded,
            },
            measure.prompts,
        )
        return found

    def cost(self) -> dict[str, Any]:
        """Seconds, the ways taking turns in one process."""
        patient, folder = self.patient(), self.tfpo("tilted")
        adapter = self.doctor(folder)
        samplers = {
            "patient": Sampler(patient),
            "doctor": Sampler(exported(folder)),
            "guided, product": Sampler(guide(patient, [Doctor(exported(folder))], betas=[1.0])),
            "guided, ratio": Sampler(guide(patient, [adapter], betas=[1.0], guidance="ratio")),
        }
        return {
            "tokens_per_second": llmdoctor_measure.speeds(samplers, self.measure().prompts),
            "steps": llmdoctor_measure.steps(
                patient, data_config(self.files.pairs["kindness"]), self.tokenizer
            ),
        }

    # --- help -------------------------------------------------------------------------------------

    def measure(self, patient: Any = None) -> llmdoctor_measure.Measure:
        """Answers to the held-out prompts, and how far they are from the patient's."""
        patient = self.patient() if patient is None else patient
        return llmdoctor_measure.Measure(
            patient, self.tokenizer, self.files.prompts, samples=self.settings.samples, seed=self.seed
        )


STAGES = ("faces", "tokens", "learning", "comparison", "plausible", "ablations", "pareto")
# Of the first seed alone.
ONCE = ("full", "weak_to_strong", "cost")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/llmdoctor"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="the first seed and a small part of everything")
    parser.add_argument("--stages", nargs="+", choices=[*STAGES, *ONCE], default=[*STAGES, *ONCE])
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    # Seeds run the same programs: what one has compiled the next ones read.
    jax.config.update("jax_compilation_cache_dir", str(arguments.output / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    settings = QUICK if arguments.quick else Settings()
    results: dict[str, dict[str, Any]] = {str(seed): {} for seed in seeds}
    tuning = Lab(arguments.output, TUNING, settings, {})
    found = tuning.stage("tune", tuning.tune)
    chosen = {way: Choice(**row) for way, row in found["chosen"].items()}
    for seed in seeds:
        lab = Lab(arguments.output, seed, settings, chosen)
        for name in arguments.stages:
            if name not in ONCE or seed == seeds[0]:
                results[str(seed)][name] = lab.stage(name, getattr(lab, name))
                llmdoctor_plots.write(arguments.output, results, found)
    html = arguments.output / f"seed-{seeds[0]}" / "rewards-kindness" / "token_rewards.html"
    if html.exists():
        shutil.copy(html, arguments.output / "token_rewards.html")
    print((arguments.output / "table.md").read_text())


if __name__ == "__main__":
    main()
