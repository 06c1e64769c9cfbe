"""The models of `llmdoctor.py`: all from one patient and one set of pairs, each trained once and kept in its folder."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
from llmdoctor_plots import write_json
from llmdoctor_task import DIMENSIONS, build_tokenizer, data_config, shape, write_files

from jaxalign import models
from jaxalign.llmdoctor import Doctor
from jaxalign.llmdoctor.tfpo import TFPOConfig, train_tfpo
from jaxalign.llmdoctor.tfpo_config import PresetName, TFPOLossConfig
from jaxalign.llmdoctor.token_rewards import TokenRewardConfig
from jaxalign.models import LoraConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.preference.dpo import DPOConfig, DPOLossConfig, train_dpo
from jaxalign.training.reward_model.trainer import RewardConfig, RewardLossConfig, train_reward
from jaxalign.training.sft import SFTConfig, train_sft

LORA = LoraConfig(enabled=True, rank=8, targets=("all",))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much of everything: rows of data, held-out prompts, answers to each, optimizer steps."""

    stories: int = 6000
    pairs: int = 2000
    prompts: int = 60
    samples: int = 4
    base: int = 220
    sft: int = 380
    preference: int = 125
    read: int = 200


QUICK = Settings(stories=2000, pairs=600, prompts=30, samples=2, base=100, sft=140, preference=40, read=60)


@dataclass(frozen=True)
class Choice:
    """How one way is trained and used.

    Attributes:
      rate: learning rate.
      strength: TFPO: the reward scale, a number or auto; GenARM and DPO: their beta; the reward model: the smoothing of
        its labels.
      beta: exponent at decoding, where there is one.
      cut: plausibility at decoding.
    """

    rate: float
    strength: float | Literal["auto"]
    beta: float = 1.0
    cut: float = 0.0


class Trained:
    """The files of a seed, and what is trained on them as `chosen` says."""

    def __init__(self, output: Path, seed: int, settings: Settings, chosen: dict[str, Choice]) -> None:
        self.folder, self.seed, self.settings = output / f"seed-{seed}", seed, settings
        self.chosen = chosen
        self.tokenizer = build_tokenizer()
        self.files = write_files(
            self.folder / "data",
            seed=seed,
            under=lambda told, prompt: f"{told} {prompt}",
            stories=settings.stories,
            pairs=settings.pairs,
            prompts=settings.prompts,
        )

    def trained(self, name: str, train: Callable[[RunConfig], TrainResult]) -> Path:
        """The run folder of a model, trained where that was not done before."""
        folder = self.folder / name
        done = folder / "trained.json"
        if not done.exists():
            run = RunConfig(
                output=str(folder), seed=self.seed, resume=True, progress=False, keep_last=1, sample_rows=0
            )
            started = time.perf_counter()
            metrics = dict(train(run).metrics)
            write_json(done, metrics | {"seconds": time.perf_counter() - started})
        return folder

    def metrics(self, name: str) -> dict[str, float]:
        return json.loads((self.folder / name / "trained.json").read_text())

    # --- models -----------------------------------------------------------------------------------

    def patient(self, size: str = "same") -> Any:
        """Reads loose sentences first (copying a word of the prompt is learned late), then stories under all faces."""

        def sft(run: RunConfig, model: Any, data: Any, steps: int) -> TrainResult:
            config = SFTConfig(
                run=run,
                data=data,
                train=TrainConfig(batch_size=32, steps=steps, eval_batch_size=64),
                optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
            )
            return train_sft(config, model=model, tokenizer=self.tokenizer)

        files, settings = self.files, self.settings
        blank = models.create(shape(self.tokenizer, size), key=jax.random.key(self.seed))
        base = self.trained(
            f"base-{size}", lambda run: sft(run, blank, data_config(files.loose), settings.base)
        )
        data = data_config(files.stories, files.held_out_stories)
        folder = self.trained(f"patient-{size}", lambda run: sft(run, exported(base), data, settings.sft))
        return exported(folder)

    def tfpo(
        self,
        preset: PresetName,
        *,
        dimension: str = "kindness",
        full: bool = False,
        patient: Any = None,
        doctor: Any = None,
        name: str = "",
        choice: Choice | None = None,
        loss: dict[str, Any] | None = None,
        rewards: dict[str, Any] | None = None,
    ) -> Path:
        """A doctor trained by TFPO, by LoRA on a copy of the patient or of all its weights.

        `loss` and `rewards` change fields of these sections; such a doctor has a `name`.
        """
        face, settings, choice = DIMENSIONS[dimension], self.settings, choice or self.chosen[preset]
        patient = self.patient() if patient is None else patient

        def train(run: RunConfig) -> TrainResult:
            config = TFPOConfig(
                run=replace(run, eval_every=settings.preference),
                rewards=TokenRewardConfig(
                    dimension=dimension,
                    positive=face.positive,
                    negative=face.negative,
                    batch_size=64,
                    folder=str(self.folder / f"rewards-{'weak' if doctor is not None else dimension}"),
                    **rewards or {},
                ),
                data=data_config(self.files.pairs[dimension], self.files.held_out_pairs[dimension]),
                loss=TFPOLossConfig(preset=preset, reward_scale=choice.strength, **loss or {}),
                train=self.schedule,
                # An adapter takes about three times the rate of all weights.
                optimizer=OptimizerConfig(
                    learning_rate=choice.rate / 3 if full else choice.rate, warmup_steps=10
                ),
                lora=LoraConfig() if full else LORA,
            )
            return train_tfpo(config, patient=patient, doctor=doctor, tokenizer=self.tokenizer)

        return self.trained(name or f"tfpo-{preset}-{dimension}{'-full' if full else ''}", train)

    def preference_model(self, name: str, loss: DPOLossConfig, lora: LoraConfig, rate: float) -> Path:
        """A model trained on the same pairs with a loss of `dpo`: DPO of the patient, or GenARM's reward model."""

        def train(run: RunConfig) -> TrainResult:
            config = DPOConfig(
                run=run,
                data=data_config(self.files.pairs["kindness"], self.files.held_out_pairs["kindness"]),
                loss=loss,
                train=self.schedule,
                optimizer=OptimizerConfig(learning_rate=rate, warmup_steps=10),
                lora=lora,
            )
            return train_dpo(config, policy=self.patient(), tokenizer=self.tokenizer)

        return self.trained(name, train)

    def genarm(self, choice: Choice | None = None, name: str = "genarm") -> Path:
        """arXiv:2410.08193: a logistic loss on beta * (log p(chosen) - log p(rejected)), without a reference."""
        choice = choice or self.chosen["genarm"]
        loss = DPOLossConfig(name="cpo", beta=float(choice.strength), sft_weight=0.0)
        return self.preference_model(name, loss, LORA, choice.rate)

    def dpo(self, choice: Choice | None = None, name: str = "dpo") -> Path:
        choice = choice or self.chosen["dpo"]
        loss = DPOLossConfig(beta=float(choice.strength), label_smoothing=0.05)
        return self.preference_model(name, loss, LoraConfig(), choice.rate)

    def reward_model(self, choice: Choice | None = None, name: str = "reward") -> Any:
        choice = choice or self.chosen["reward"]

        def train(run: RunConfig) -> TrainResult:
            config = RewardConfig(
                run=run,
                data=data_config(self.files.pairs["kindness"], self.files.held_out_pairs["kindness"]),
                loss=RewardLossConfig(label_smoothing=float(choice.strength)),
                train=self.schedule,
                optimizer=OptimizerConfig(learning_rate=choice.rate, warmup_steps=10, weight_decay=0.01),
            )
            return train_reward(config, model=self.patient(), tokenizer=self.tokenizer)

        return models.load_reward_model(self.trained(name, train) / "export")

    @property
    def schedule(self) -> TrainConfig:
        return TrainConfig(batch_size=16, steps=self.settings.preference, eval_batch_size=64)

    def doctor(self, folder: Path) -> Doctor:
        """A doctor by LoRA: its adapter on the live base, which doctors share."""
        adapter, lora = models.load_adapter(folder / "adapter", self.patient().config)
        return Doctor(self.patient(), adapter=models.attach(adapter, lora))


_LOADED: dict[Path, Any] = {}


def exported(folder: Path) -> Any:
    """The model of a run, the same object for every call."""
    if folder not in _LOADED:
        _LOADED[folder] = models.load_pretrained(folder / "export")
    return _LOADED[folder]
