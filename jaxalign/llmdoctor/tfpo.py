"""Token-level flow-guided preference optimization: a small doctor learns from token rewards (LLMDoctor, stage 2).

Source: arXiv:2601.10416. Where it is silent the choices are ours; `tfpo_config` names them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.llmdoctor.doctor import DoctorCard, load_doctor_card, save_doctor
from jaxalign.llmdoctor.doctor_exports import DoctorParts, write_doctors
from jaxalign.llmdoctor.reward_scale import BATCHES, make_reward_gradients, reward_scale
from jaxalign.llmdoctor.tfpo_config import TFPOConfig, TFPONumbers
from jaxalign.llmdoctor.tfpo_dimension import Dimension, begin_all, load_dimensions
from jaxalign.llmdoctor.tfpo_parts import START, DoctorPatientPair, optimizers
from jaxalign.llmdoctor.tfpo_step import make_tfpo_loss, tfpo_counts
from jaxalign.llmdoctor.tfpo_together import Alone, Together, common_steps
from jaxalign.llmdoctor.token_rewards import TokenRewardTable
from jaxalign.models.flops import Pass
from jaxalign.models.lora import attach
from jaxalign.runs import Given, Live, Run
from jaxalign.training.core import exports, setup
from jaxalign.training.core.generate_setup import generate_evaluation, logged
from jaxalign.training.core.generator import Generator, samples_of
from jaxalign.training.core.held_out import evaluation
from jaxalign.training.core.offline import OfflineRun, Task, fit
from jaxalign.training.core.own_loss import check_own_loss
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.step import LossFunction, make_evaluation
from jaxalign.training.core.stops import with_stops
from jaxalign.training.core.update_rules import refuse_schedule_free

__all__ = ["TFPOConfig", "TFPOResult", "TrainedDoctor", "train_tfpo"]


@dataclass(frozen=True)
class TrainedDoctor:
    """A doctor of one dimension.

    Attributes:
      card: as its export has it.
      value_head: leaves of its head of log-values, see `log_values_before`.
      adapter: attached LoRA leaves, for a `Doctor` on the model that it began as; None without LoRA.
      rewards: the token rewards that it learned from.
    """

    card: DoctorCard
    value_head: Mapping[str, Any]
    adapter: Any
    rewards: TokenRewardTable


@dataclass(frozen=True)
class TFPOResult(TrainResult):
    """What `train_tfpo` returns beside `model`.

    That is the doctor, its adapter merged; of several dimensions (`config.dimensions`) the base that all doctors share,
    as it was: `Doctor(result.model, adapter=result.doctors[name].adapter)` is one of them. The doctor of a
    single dimension has its parts here too: `card`, `value_head`, `adapter`, `rewards`.

    Attributes:
      doctors: by dimension.
    """

    doctors: Mapping[str, TrainedDoctor]

    @property
    def card(self) -> DoctorCard:
        """The only doctor's."""
        return self._only("card").card

    @property
    def value_head(self) -> Mapping[str, Any]:
        """The only doctor's."""
        return self._only("value_head").value_head

    @property
    def adapter(self) -> Any:
        """The only doctor's."""
        return self._only("adapter").adapter

    @property
    def rewards(self) -> TokenRewardTable:
        """The only doctor's."""
        return self._only("rewards").rewards

    def _only(self, name: str) -> TrainedDoctor:
        if len(self.doctors) > 1:
            raise AttributeError(f"{name}: the run has several doctors; use doctors[dimension]")
        return next(iter(self.doctors.values()))


def train_tfpo(
    config: TFPOConfig,
    *,
    patient: Any = None,
    doctor: Any = None,
    tokenizer: Any = None,
    loss: Any = None,
    **live: Unpack[Live],
) -> TFPOResult:
    """Trains a doctor per preference dimension, on comparisons with token rewards from a frozen patient (TFPO).

    Args:
      config: see `TFPOConfig`; set `dimensions` to train several doctors.
      patient: a live model to use in place of `config.patient`; needs `tokenizer`.
      doctor: a live initial model for the doctor, in place of `config.model`; needs `tokenizer`.
      tokenizer: the tokenizer that the live models share.
      loss: function to use in place of sub-trajectory balance: loss(logps[B, T], rewards[B, T], log_values[B, T+1],
        mask[B, T], terminated=terminated[B]) -> [B].
      live: train_dataset, eval_dataset, eval_reward, optimizer, callbacks and trackers; see `jaxalign.runs.Given`.
        `optimizer` is used for both policy and value head, each with its own state.

    Returns:
      The run folder, final metrics (`eval/balance`, `eval/accuracy` and others over held-out pairs; with
        several dimensions, `eval/NAME/balance` and so on), the doctor, and the other fields of `TFPOResult`.

    Raises:
      UserError: an invalid configuration, file or row; the message is one line.
    """
    for model, name in ((patient, "patient"), (doctor, "doctor")):
        if model is not None:
            setup.check_live(model, tokenizer, name)
    tokens = ("B", "T")
    arrays = {"logps": tokens, "rewards": tokens, "log_values": ("B", "T+1"), "mask": tokens}
    unread = ("reward_scale", "reference_weight", "decay", "window", "pin_terminal", "reduction")
    ended = {"terminated": ("B",)}
    check_own_loss(loss, arrays, ("B",), config=config.loss, unread=unread, keywords=ended)
    others = {"patient": patient, "doctor": doctor, "tokenizer": tokenizer}
    given = Given.of(train_tfpo, live, loss=loss, others=others)

    def begin(run: OfflineRun) -> Task[TFPOResult]:
        doctor_patient = DoctorPatientPair.open(
            config, run.mesh, run.run, patient=patient, doctor=doctor, tokenizer=tokenizer
        )
        dimensions = load_dimensions(config, doctor_patient, run.mesh, run.run)
        return _Training(config, run.run, run.mesh, doctor_patient, dimensions).task(run)

    return fit("tfpo", config, given, begin)


@dataclass(frozen=True)
class _Training:
    """A run whose patient has scored, and whose doctors are not loaded yet.

    Attributes:
      config, run, mesh, doctor_patient: of the run.
      dimensions: one, or several.
    """

    config: TFPOConfig
    run: Run
    mesh: Mesh
    doctor_patient: DoctorPatientPair
    dimensions: Sequence[Dimension]

    def task(self, run: OfflineRun) -> Task[TFPOResult]:
        """What is trained; the patient is let go."""
        config = self.config
        doctor = with_stops(self.doctor_patient.load_doctor(), config.data, self.doctor_patient.tokenizer)
        begin_all(self.dimensions, doctor, self.mesh, key=run.fold(4))
        doctors = Together(self.dimensions) if config.dimensions else Alone(self.dimensions)
        scorer, leaves, base = setup.policy_of(doctor, config.lora, self.mesh, key=run.fold(1))
        # The update donates its own copy of the parameters, so the start can serve as reference.
        start = base if config.lora.enabled else leaves
        numbers = config.loss.resolved()
        shared = {"base": base, "reference": start if numbers.reference_weight else {}}
        params = [{"policy": leaves, "value": one.begun.value} for one in self.dimensions]
        frozen = [shared | {"horizon": one.begun.horizon} for one in self.dimensions]
        scaled = self._scaled(numbers, common_steps(self.dimensions), scorer, params, frozen)
        for one, its, own in zip(self.dimensions, frozen, scaled, strict=True):
            its["reward_scale"] = jax.device_put(np.float32(own.reward_scale), one.begun.horizon.sharding)
            one.run.add_metadata(loss=asdict(own))
        cards = [
            self.doctor_patient.card(one.config, own)
            for one, own in zip(self.dimensions, scaled, strict=True)
        ]
        begun = doctor if cards[0].reference == START else None
        loss = self._loss(scorer, numbers)
        passes = [scorer.training_pass]
        if numbers.reference_weight:
            passes.append(Pass(config=doctor.config, learns="nothing"))

        def finish(state: TrainState, metrics: dict[str, float]) -> TFPOResult:
            parts = []
            for index, one in enumerate(self.dimensions):
                trained = doctors.of(state.params, index)
                head = {**trained["value"], "horizon": one.begun.horizon}
                parts.append(DoctorParts(card=cards[index], head=head, adapter=trained["policy"]))
            return self._exported(scorer, base, parts, begun, metrics)

        def states(trained: Any, rule: optax.GradientTransformation) -> TrainState:
            state = doctors.state(trained, rule)
            refuse_schedule_free(
                state.opt_state, "tfpo, which has one for the policy and one for the value head"
            )
            return state

        return Task(
            trained=params,
            frozen=doctors.frozen(frozen),
            feed=doctors,
            loss=loss,
            counts=tfpo_counts(numbers),
            passes=passes,
            lift=doctors.lift,
            optimizer=lambda total: optimizers(config, total, self.run.given.optimizer),
            create_state=states,
            evaluate=self._evaluation(doctors, loss, frozen),
            generate=self._generated(run, doctors, scorer, base, start if numbers.reference_weight else None),
            sample=self._sample(doctors, scorer, base, run.fold(2)),
            finish=finish,
        )

    def _loss(self, scorer: CausalPolicy, numbers: TFPONumbers) -> LossFunction:
        """That of all dimensions, which differ in their reward scale alone; it is read with what is frozen."""

        def loss(params, frozen, batch, key, counts):
            at = replace(numbers, reward_scale=frozen["reward_scale"])
            function = make_tfpo_loss(scorer, self.config.head, at, self.run.given.loss)
            return function(params, frozen, batch, key, counts)

        return loss

    def _scaled(
        self,
        numbers: TFPONumbers,
        total: int,
        scorer: CausalPolicy,
        params: Sequence[Mapping[str, Any]],
        frozen: Sequence[Mapping[str, Any]],
    ) -> list[TFPONumbers]:
        """For each dimension the run's reward scale: as set, or read off the first batches."""
        if self.run.given.loss is not None:  # it has a scale of its own
            return [numbers for _ in self.dimensions]
        measure = make_reward_gradients(
            lambda eta: make_tfpo_loss(scorer, self.config.head, replace(numbers, reward_scale=eta)),
            tfpo_counts(numbers),
            accumulation_steps=self.config.train.accumulation_steps,
        )
        found = []
        for one, own, its in zip(self.dimensions, params, frozen, strict=True):
            first = one.ordered()
            batches = (one.placed(first.next(), training=True) for _ in range(min(BATCHES, total)))
            asked = self.config.loss.reward_scale
            value = reward_scale(one.run, asked, lambda o=own, f=its, b=batches: measure(o, f, b))
            found.append(replace(numbers, reward_scale=value))
        return found

    def _evaluation(
        self, doctors: Alone | Together, loss: LossFunction, frozen: Sequence[Mapping[str, Any]]
    ) -> Any:
        """Every doctor on the held-out pairs of its dimension; None where there are none."""
        if not any(one.data.validation for one in self.dimensions):
            return None
        evaluate_batch = make_evaluation(loss, tfpo_counts(self.config.loss.resolved()))
        limit = self.config.train.eval_batches
        each = [
            evaluation(evaluate_batch, one.held_out, its, one.placed, limit)
            for one, its in zip(self.dimensions, frozen, strict=True)
        ]

        def evaluate(state: TrainState) -> dict[str, float]:
            found = {}
            for index, its in enumerate(each):
                own = replace(state, params=doctors.of(state.params, index))
                found |= doctors.named(index, its(own))
            return found

        return evaluate

    def _generated(
        self, run: OfflineRun, doctors: Alone | Together, scorer: CausalPolicy, base: Any, start: Any
    ) -> Any:
        """What every doctor writes by itself, measured; None where nothing is asked for.

        The KL is from what they began as: `start`, where it is kept, or the base of their adapters.
        """
        if not self.config.eval.generate.every:
            return None
        first = generate_evaluation(
            run,
            scorer,
            base,
            self.doctor_patient.tokenizer,
            self.dimensions[0].data.validation,
            updates=common_steps(self.dimensions),
            reference=(scorer.definition, start) if start is not None else None,
        )
        each = [replace(first, tag=doctors.sampled(index, {})) for index in range(len(self.dimensions))]

        def evaluate(state: TrainState, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
            found: dict[str, float] = {}
            rows: list[dict[str, Any]] = []
            for index, its_evaluation in enumerate(each):
                measures, its = its_evaluation(doctors.of(state.params["policy"], index), step)
                found |= doctors.named(index, measures)
                rows += its
            return found, rows

        return logged(run.run, evaluate)

    def _sample(self, doctors: Alone | Together, scorer: CausalPolicy, base: Any, key: jax.Array) -> Any:
        """What every doctor writes by itself, to the same prompts."""
        rows = self.dimensions[0].data.first(self.config.run.sample_rows)
        sampling, prompts = samples_of(
            self.config.sampling, rows, scorer.definition.config.max_positions, self.run
        )
        generator = Generator(scorer, base, sampling, self.doctor_patient.tokenizer, key)

        def sample(state: TrainState) -> list[dict[str, Any]]:
            step = int(np.max(state.step))
            return [
                doctors.sampled(index, row)
                for index in range(len(self.dimensions))
                for row in generator.samples(doctors.of(state.params["policy"], index), prompts, step)
            ]

        return sample

    def _exported(
        self,
        scorer: CausalPolicy,
        base: Any,
        parts: Sequence[DoctorParts],
        begun: Any,
        metrics: dict[str, float],
    ) -> TFPOResult:
        """Writes `export/`; `begun` is what the doctors began as, where no folder has it and a card names it."""
        config, run, tokenizer = self.config, self.run, self.doctor_patient.tokenizer
        if config.dimensions:
            model, homes = models.merge(scorer.definition, base), []
            named = {one.name: its for one, its in zip(self.dimensions, parts, strict=True)}
            write_doctors(exports.origin_of(run), named, model, config.lora, run.folder / "export", tokenizer)
            homes = [run.folder / "export" / name for name in named]
        else:
            model = setup.export_policy(run, scorer, parts[0].adapter, base, tokenizer, config.lora)
            if begun is not None:
                dtype = exports.origin_of(run).weights_dtype(begun.params)
                models.save_pretrained(begun, run.folder / "start", tokenizer=tokenizer, dtype=dtype)
            homes = [save_doctor(run.folder / "export", parts[0].card, parts[0].head)]
        doctors = {
            one.name: TrainedDoctor(
                load_doctor_card(home),
                its.head,
                attach(its.adapter, config.lora) if config.lora.enabled else None,
                one.table,
            )
            for one, its, home in zip(self.dimensions, parts, homes, strict=True)
        }
        return TFPOResult(run.folder, metrics, model, tokenizer, doctors)
