"""Guided decoding on real sentences about films: TFPO doctors against sampling, best-of-n, ARGS, GenARM and DPO.

Claims to be looked at, none taken for granted: a doctor that read token rewards off praising and panning sentences
  makes a patient that is never trained on them write better of films, in the eyes of a judge that it never met; and
  how far the other ways get on the same patient, pairs, batches and steps. Where TFPO loses stands in the table.
Command: python experiments/doctor_text.py --shared ../shared --output runs/doctor_text [--seeds 0 1 2]
  It makes table.md and table.json. What is done is kept, stage by stage: the same command goes on.
Text: `doctor_text_files.py`. Patient: stories260K, tuned on short sentences under the instruction of their own face and
  without any, and on stories, so that it writes mixed sentences by itself; then, as it hardly heeds instructions from
  that alone, by DPO to prefer under each instruction the sentence of its face. Judge: a reward model on stories260K of
  sentences, and of last lines of whole reviews, that no other model here learned from; it reads two texts and has no
  opinion where their scores are within a tenth of a standard deviation. Patient, judge and the reward model of
  best-of-n and ARGS serve all seeds; a seed is that of the doctors, of DPO and of the samples.
Stories have no labels: their openings show what the same doctors do to text that their pairs do not hold.
Rate and strength of every way that learns from the pairs (TFPO's reward scale, beta of GenARM and DPO) are chosen on
  seed 100, four trials each, by the log-ratio accuracy on pairs of the judge's sentences, which neither patient nor
  doctors have met. No exponent at decoding (beta, n, weight) was chosen: the tables have several of each.
Hardware, time and figures: experiments/LOG.md.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from doctor_text_files import FACES, Text, write
from doctor_text_table import TextJudge, accuracy_cells, cells, row_of, trial_cells
from doctor_text_training import held_out, load, load_reward, rate, steps, trained_on_pairs
from llmdoctor_measure import pair_accuracy

from jaxalign import models
from jaxalign.data import DataConfig, chat_of
from jaxalign.evaluation.policy import make_scorer, summed_logps
from jaxalign.evaluation.tables import format_table
from jaxalign.llmdoctor import ContrastiveFormat, Doctor, InstructionPair, guide
from jaxalign.llmdoctor.guided import Guidance
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.llmdoctor.tfpo_config import PatientSource, PresetName, TFPOConfig, TFPOLossConfig
from jaxalign.llmdoctor.token_rewards import TokenRewardConfig
from jaxalign.rewards import ModelReward
from jaxalign.rollout import Completions, Sampler, join_rows
from jaxalign.rollout.search import args_generate, best_of_n
from jaxalign.runs import RunConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.preference.dpo import DPOLossConfig
from jaxalign.training.reward_model.trainer import RewardConfig, train_reward
from jaxalign.training.sft import SFTConfig, train_sft

# What this small a patient writes at temperature 1 has too few words in it for anyone to judge.
SAMPLING = {"max_new_tokens": 40, "temperature": 0.7}
BETAS = {
    "GenARM": (0.5, 1.0, 2.0),
    "TFPO paper": (0.25, 0.5, 1.0, 2.0),
    "TFPO tilted": (2.0, 4.0, 8.0),
    "TFPO tilted, cut": (4.0, 8.0, 16.0),
}
PLAUSIBILITY = 0.1
BEST_OF = (4, 16)
ARGS_WEIGHTS, ARGS_CANDIDATES = (1.0, 2.0), 10
PAIR_STEPS = 150
# What is tried of every way: rates, and multiples of the reward scale that auto takes, or beta of the loss.
TUNING = 100
TRIED_RATES = (1e-4, 3e-4)
STRENGTHS = {"paper": (1.0, 3.0), "tilted": (1.0, 3.0), "genarm": (0.1, 0.5), "dpo": (0.1, 0.3)}
# What rewards may be in place of the method's, and the exponent at which each doctor writes.
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "shuffled": {"placement": "shuffled"},
    "even": {"placement": "even"},
    "labels alone": {"placement": "labels"},
    "signed": {"signed": True},
}
VARIANT_BETA: dict[PresetName, float] = {"paper": 1.0, "tilted": 4.0}

# (prompts, key) -> one completion a prompt.
Writer = Callable[[list[str], jax.Array], Completions]


@dataclass(frozen=True)
class Choice:
    """Learning rate; and the reward scale (a number, or auto) of TFPO, beta of the loss of the others."""

    rate: float
    strength: float | Literal["auto"]


@dataclass(frozen=True)
class Experiment:
    """The stages; what one leaves stands in a folder of its own.

    Attributes:
      shared: the folder of the real data.
      output: where everything is written.
    """

    shared: Path
    output: Path

    @cached_property
    def text(self) -> Text:
        return Text(self.shared, self.output)

    @property
    def base(self) -> ModelSource:
        return ModelSource(path=str(self.shared / "data/models/stories260K"))

    @cached_property
    def tokenizer(self) -> Any:
        return models.load_tokenizer(self.base.path)

    @cached_property
    def chat(self) -> Any:
        return chat_of(self.data(self.output), self.tokenizer)

    def data(self, train: Path, validation: Path | None = None, *, max_length: int = 80) -> DataConfig:
        return DataConfig(
            train=(str(train),),
            validation=(str(validation),) if validation else (),
            template="plain",
            end_token="</s>",
            max_length=max_length,
            truncation="cut_completion",
        )

    def under(self, instruction: str, prompt: str) -> str:
        """A prompt as the token rewards write it under an instruction."""
        faces = ContrastiveFormat(self.chat, InstructionPair(FACES["pos"], FACES["neg"]))
        return self.chat.prompt_text(faces.prompt(prompt, instruction))

    def once(self, name: str, make: Callable[[RunConfig], dict[str, Any]], seed: int = 0) -> Path:
        """The folder of a stage, which is made where it has not ended before; `stage.json` is its last file."""
        folder = self.output / name
        if not (folder / "stage.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            start = time.perf_counter()
            found = make(RunConfig(output=str(folder), seed=seed, sample_rows=0, progress=False))
            found["seconds"] = round(time.perf_counter() - start, 1)
            folder.mkdir(exist_ok=True)
            write(folder / "stage.json", [found])
            print(f"{name}: {found['seconds']} s", {k: v for k, v in found.items() if k.startswith("eval/")})
        return folder

    # --- models -------------------------------------------------------------------------------

    def tuned(self) -> Path:
        """What the patient begins as."""

        def make(run: RunConfig) -> dict[str, Any]:
            return held_out(
                train_sft(
                    SFTConfig(
                        run=run,
                        model=self.base,
                        data=self.data(
                            self.text.demonstrations("doctor", self.under),
                            self.text.demonstrations("test", self.under),
                        ),
                        train=steps(600, rows=32),
                        optimizer=rate("sft"),
                    )
                )
            )

        return self.once("tuned", make)

    def patient(self) -> Path:
        def make(run: RunConfig) -> dict[str, Any]:
            pairs = self.data(
                self.text.face_pairs("doctor", self.under), self.text.face_pairs("test", self.under)
            )
            # The weight keeps it fluent: without it its own sentences cost a nat a token more.
            loss = DPOLossConfig(beta=0.1, sft_weight=1.0)
            return trained_on_pairs(run, self.tuned(), pairs, loss, 600, "faces")

        return self.once("patient", make)

    def judge(self) -> Path:
        return self.once("judge", lambda run: self._reward(run, self.text.judge_pairs()))

    def reward(self) -> Path:
        """The reward model of best-of-n and ARGS."""
        return self.once("reward", lambda run: self._reward(run, self.text.pairs("doctor")))

    def _reward(self, run: RunConfig, pairs: Path) -> dict[str, Any]:
        return held_out(
            train_reward(
                RewardConfig(
                    run=run,
                    model=self.base,
                    data=self.data(pairs, self.text.pairs("test")),
                    train=steps(300),
                    optimizer=rate("reward"),
                )
            )
        )

    def tfpo(
        self,
        preset: PresetName,
        seed: int,
        *,
        name: str = "",
        choice: Choice | None = None,
        pairs: DataConfig | None = None,
        rewards: dict[str, Any] | None = None,
    ) -> Path:
        """A doctor; one of other settings than those chosen has a name."""

        def make(run: RunConfig) -> dict[str, Any]:
            chosen = choice or self.chosen[preset]
            found = train_tfpo(
                TFPOConfig(
                    run=run,
                    patient=PatientSource(path=str(self.patient())),
                    rewards=TokenRewardConfig(
                        dimension="praise",
                        positive=FACES["pos"],
                        negative=FACES["neg"],
                        folder=str(self.output / "token_rewards"),
                        **rewards or {},
                    ),
                    data=pairs or self._pairs,
                    loss=TFPOLossConfig(preset=preset, reward_scale=chosen.strength),
                    train=steps(PAIR_STEPS),
                    optimizer=rate(chosen.rate),
                )
            )
            scale = json.loads((found.folder / "metadata.json").read_text())["reward_scale"]
            return {**held_out(found), "token_rewards": found.rewards.summary(), "scale": scale}

        return self.once(name or f"tfpo-{preset}-{seed}", make, seed)

    def preferring(
        self, way: str, seed: int, *, name: str = "", choice: Choice | None = None, pairs: Any = None
    ) -> Path:
        """genarm, a doctor by the logistic loss without a reference; or dpo, the patient itself, trained."""

        def make(run: RunConfig) -> dict[str, Any]:
            chosen = choice or self.chosen[way]
            loss = DPOLossConfig(beta=float(chosen.strength))
            if way == "genarm":
                loss = DPOLossConfig(name="cpo", beta=float(chosen.strength), sft_weight=0.0)
            data = pairs or self._pairs
            return trained_on_pairs(run, self.patient(), data, loss, PAIR_STEPS, chosen.rate)

        return self.once(name or f"{way}-{seed}", make, seed)

    # --- what is chosen -----------------------------------------------------------------------

    @cached_property
    def chosen(self) -> dict[str, Choice]:
        """Settings of every way that learns from the pairs."""
        found = json.loads((self.tune() / "stage.json").read_text())["chosen"]
        return {way: Choice(**row) for way, row in found.items()}

    def tune(self) -> Path:
        def make(run: RunConfig) -> dict[str, Any]:
            del run
            trials: dict[str, list[dict[str, Any]]] = {
                way: [self._trial(way, rate, number) for rate in TRIED_RATES for number in numbers]
                for way, numbers in STRENGTHS.items()
            }
            best = {way: max(rows, key=lambda row: row["accuracy"]) for way, rows in trials.items()}
            chosen = {way: {name: row[name] for name in ("rate", "strength")} for way, row in best.items()}
            return {"chosen": chosen, "trials": trials}

        return self.once("tune", make, TUNING)

    def _trial(self, way: Any, rate: float, number: float) -> dict[str, Any]:
        pairs = self.data(self.text.pairs("doctor"), self.text.tuning_pairs())
        name = f"trial-{way}-{rate:g}-{number:g}"
        if way in ("genarm", "dpo"):
            choice = Choice(rate, number)
            folder = self.preferring(way, TUNING, name=name, choice=choice, pairs=pairs)
        else:
            # `number` is a multiple of the scale that is read off the gradients, which depends on no rate.
            first = f"trial-{way}-{rate:g}-1"
            auto = self.tfpo(way, TUNING, name=first, choice=Choice(rate, "auto"), pairs=pairs)
            scale = json.loads((auto / "stage.json").read_text())["scale"]["auto"]
            choice = Choice(rate, "auto" if number == 1 else number * scale)
            folder = self.tfpo(way, TUNING, name=name, choice=choice, pairs=pairs)
        found = pair_accuracy(load(folder), self.patient_model, pairs, self.tokenizer)
        return {"rate": rate, "strength": choice.strength, "accuracy": found["accuracy"]}

    def variant(self, preset: PresetName, name: str, seed: int) -> Path:
        """A doctor of rewards in place of the method's; each has the scale that auto takes."""
        if name == "as it is" and self.chosen[preset].strength == "auto":
            return self.tfpo(preset, seed)
        choice = Choice(self.chosen[preset].rate, "auto")
        folder = f"variant-{preset}-{name.replace(' ', '-')}-{seed}"
        return self.tfpo(preset, seed, name=folder, choice=choice, rewards=VARIANTS[name])

    def accuracies(self, seed: int) -> Path:
        """How often each way's log-ratios to the patient order the held-out pairs right."""

        def make(run: RunConfig) -> dict[str, Any]:
            del run
            folders = {"DPO": self.preferring("dpo", seed), "GenARM": self.preferring("genarm", seed)}
            for preset, _ in VARIANT_BETA.items():
                folders[f"TFPO {preset}"] = self.tfpo(preset, seed)
                for name in VARIANTS:
                    folders[f"TFPO {preset}, {name}"] = self.variant(preset, name, seed)
            found = {
                name: pair_accuracy(load(folder), self.patient_model, self._pairs, self.tokenizer)
                for name, folder in folders.items()
            }
            return {"accuracies": found}

        return self.once(f"accuracies-{seed}", make, seed)

    @property
    def _pairs(self) -> DataConfig:
        return self.data(self.text.pairs("doctor"), self.text.pairs("test"))

    # --- what each way writes -----------------------------------------------------------------

    @cached_property
    def patient_model(self) -> Any:
        return load(self.patient())

    @cached_property
    def score(self) -> Any:
        return make_scorer(models.split(self.patient_model)[0], temperature=SAMPLING["temperature"])

    def writers(self, seed: int) -> dict[str, Writer]:
        """All ways by name. "patient, again" is what the others play against: other draws of the patient."""
        patient = Sampler(self.patient_model)
        found = {
            "patient": self._sampled(patient),
            "patient, again": self._sampled(patient),
            "patient, greedy": self._sampled(patient, temperature=0.0),
            "told to praise": self._sampled(patient, told=FACES["pos"]),
            "told to pan": self._sampled(patient, told=FACES["neg"]),
            "DPO of the patient": self._sampled(Sampler(load(self.preferring("dpo", seed)))),
        }
        scalar = load_reward(self.reward())
        found |= {f"best of {n}": self._best(patient, scalar, n) for n in BEST_OF}
        found |= {f"ARGS, weight {w:g}": self._args(scalar, w) for w in ARGS_WEIGHTS}
        found["ARGS, greedy"] = self._args(scalar, ARGS_WEIGHTS[0], temperature=0.0)
        doctors: dict[str, tuple[Guidance, Path]] = {
            "GenARM": ("product", self.preferring("genarm", seed)),
            "TFPO paper": ("product", self.tfpo("paper", seed)),
            "TFPO tilted": ("ratio", self.tfpo("tilted", seed)),
            "TFPO tilted, cut": ("ratio", self.tfpo("tilted", seed)),
        }
        betas = dict(BETAS)
        for preset, beta in VARIANT_BETA.items():
            for name in VARIANTS:
                way = f"TFPO {preset}, {name}"
                doctors[way] = (
                    "ratio" if preset == "tilted" else "product",
                    self.variant(preset, name, seed),
                )
                betas[way] = (beta,)
        for name, (guidance, folder) in doctors.items():
            doctor = Doctor(load(folder), reference=self.patient_model)
            cut = PLAUSIBILITY if name.endswith("cut") else 0.0
            guided = guide(self.patient_model, [doctor], betas=[1.0], guidance=guidance, plausibility=cut)
            sampler = Sampler(guided)
            for beta in betas[name]:
                found[f"{name}, beta {beta:g}"] = self._guided(sampler, guided, beta)
        return found

    def _sampled(self, sampler: Sampler, told: str = "", **changes: Any) -> Writer:
        def run(prompts: list[str], key: jax.Array) -> Completions:
            asked = [self.under(told, prompt) if told else prompt for prompt in prompts]
            return sampler.generate(self._ids(asked), key=key, **(SAMPLING | changes))

        return run

    def _guided(self, sampler: Sampler, guided: Any, beta: float) -> Writer:
        def run(prompts: list[str], key: jax.Array) -> Completions:
            sampler.update(guided.with_weights(betas=[beta]).params)
            return sampler.generate(self._ids(prompts), key=key, **SAMPLING)

        return run

    def _best(self, sampler: Sampler, scalar: Any, n: int) -> Writer:
        reward = ModelReward(scalar, batch_size=64)

        def score(prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
            return reward.score_rows([[*p, *c] for p, c in zip(prompts, completions, strict=True)])

        return lambda prompts, key: best_of_n(sampler, self._ids(prompts), score, n=n, key=key, **SAMPLING)

    def _args(self, scalar: Any, weight: float, **changes: Any) -> Writer:
        return lambda prompts, key: args_generate(
            self.patient_model,
            scalar,
            self._ids(prompts),
            weight=weight,
            top_k=ARGS_CANDIDATES,
            key=key,
            **(SAMPLING | changes),
        )

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return [self.chat.prompt_ids(prompt) for prompt in prompts]

    def decode(self, seed: int) -> Path:
        """Every way after every prompt."""

        def make(run: RunConfig) -> dict[str, Any]:
            del run
            prompts, written = self.text.prompts(), {}
            for number, (name, way) in enumerate(self.writers(seed).items()):
                key = jax.random.fold_in(jax.random.key(seed), number)
                written[name] = {kind: self._kept(asked, way(asked, key)) for kind, asked in prompts.items()}
            return {"written": written}

        return self.once(f"decode-{seed}", make, seed)

    def _kept(self, prompts: list[str], done: Completions) -> dict[str, list[Any]]:
        """Texts and tokens, and log p of each completion under its writer and under the patient, nats."""
        rows = join_rows(self._ids(prompts), done)
        theirs = summed_logps(self.score, models.split(self.patient_model)[1], rows)
        ours = np.where(done.mask, done.logps, 0.0).astype(np.float64).sum(1)
        return {
            "texts": done.texts(self.tokenizer),
            "tokens": done.lengths.tolist(),
            "writer": ours.round(3).tolist(),
            "patient": theirs.round(3).tolist(),
        }

    # --- the tables ---------------------------------------------------------------------------

    def summary(self, seeds: Sequence[int]) -> None:
        """A table for each kind of prompt, over all seeds."""
        written = [json.loads((self.decode(seed) / "stage.json").read_text())["written"] for seed in seeds]
        judge = TextJudge(self.chat, load_reward(self.judge()))
        tables = {}
        for kind, prompts in self.text.prompts().items():
            draws = {name: [one[name][kind] for one in written] for name in written[0]}
            tables[kind] = [row_of(name, prompts, draws, judge) for name in draws]
        held_out = [
            json.loads((self.accuracies(seed) / "stage.json").read_text())["accuracies"] for seed in seeds
        ]
        write(self.output / "table.json", [{"judged": tables, "accuracies": held_out}])
        trials = json.loads((self.tune() / "stage.json").read_text())["trials"]
        lines = ["Chosen on another seed\n", format_table(trial_cells(trials))]
        lines += [f"\nheld-out pairs, seeds {list(seeds)}\n", format_table(accuracy_cells(held_out))]
        for kind, rows in tables.items():
            lines += [f"\n{kind}, seeds {list(seeds)}\n", format_table([cells(row) for row in rows])]
        text = "\n".join(lines) + "\n"
        temporary = self.output / ".table.md"
        temporary.write_text(text)
        os.replace(temporary, self.output / "table.md")
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("runs/doctor_text"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    # All doctors run the same programs: what one has compiled the next ones read.
    jax.config.update("jax_compilation_cache_dir", str(arguments.output / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    Experiment(arguments.shared, arguments.output).summary(arguments.seeds)


if __name__ == "__main__":
    main()
