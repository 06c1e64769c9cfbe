"""Token-level flow-guided preference optimization: a small doctor learns from token rewards (LLMDoctor, stage 2).

Source: arXiv:2601.10416. Where it is silent the choices are ours; `tfpo_config` names them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.data import Dataset, chat_of, collate_comparisons, eval_batches
from jaxalign.runs import Given, Run
from jaxalign.training import exports, setup
from jaxalign.training.data import dated, load_data, refuse_stream
from jaxalign.training.generator import Generator, samples_of
from jaxalign.training.loop import Loop, evaluation
from jaxalign.training.opening import tell_devices
from jaxalign.training.own_loss import check_own_loss
from jaxalign.training.pairs import pair_axis
from jaxalign.training.reward_scale import BATCHES, RewardGradients, reward_gradients, reward_scale
from jaxalign.training.scoring import CausalPolicy
from jaxalign.training.setup import TrainResult
from jaxalign.training.state import create_state
from jaxalign.training.step import make_evaluation, make_update
from jaxalign.training.stops import with_stops
from jaxalign.training.tfpo_config import TFPOConfig, TFPONumbers
from jaxalign.training.tfpo_parts import (
    START,
    Treatment,
    check_identical,
    completion_end,
    ended_fraction,
    optimizers,
    start_sums,
    terminated,
    value_head,
)
from jaxalign.training.tfpo_step import tfpo_counts, tfpo_loss
from jaxalign.training.token_rewards import TokenRewardTable, token_reward_table
from jaxalign.training.update_rules import refuse_schedule_free

__all__ = ["TFPOConfig", "TFPOResult", "train_tfpo"]


@dataclass(frozen=True)
class TFPOResult(TrainResult):
    """What `train_tfpo` returns beside the doctor (`model`, adapters merged).

    Attributes:
      card: the doctor's card, as `export/` has it.
      value_head: leaves of its head of log-values, see `models.log_values_before`.
      adapter: attached LoRA leaves, for a `models.Doctor` on the model that it began as; None without LoRA.
      rewards: the token rewards that it learned from.
    """

    card: models.DoctorCard
    value_head: Mapping[str, Any]
    adapter: Any
    rewards: TokenRewardTable


def _rewarded_data(
    config: TFPOConfig, treatment: Treatment, mesh: Mesh, run: Run
) -> tuple[Dataset, tuple[int, ...], TokenRewardTable]:
    """The comparisons, the ids that a whole response ends with, and the patient's token rewards."""
    tokenizer = treatment.tokenizer
    shape, seed = treatment.doctor_shape, config.run.seed
    data = load_data(run, config.data, "comparison", tokenizer, shape, seed=seed)
    refuse_stream(data, "tfpo")
    check_identical(data.counts, config, run)
    chat = chat_of(dated(run, config.data), tokenizer)
    end = completion_end(chat)
    ended = ended_fraction(data, end)
    if config.loss.resolved().pin_terminal and not ended:
        run.warn("no response ends with an end token, so that no end is pinned (see loss.pin_terminal)")
    run.add_metadata(data=data.summary(), ended_fraction=ended)
    tell_devices(run, mesh)
    table = token_reward_table(
        config.rewards,
        data,
        chat,
        treatment.scoring_patient,
        mesh=mesh,
        folder=run.folder / "token_rewards",
        packing=config.train.packing,
        run=run,
    )
    run.add_metadata(token_rewards=dict(table.summary()))
    return data, end, table


def _scaled(
    numbers: TFPONumbers,
    config: TFPOConfig,
    run: Run,
    policy: CausalPolicy,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
) -> TFPONumbers:
    """With the run's reward scale: as set, or read off the first batches."""

    def measured() -> RewardGradients:
        return reward_gradients(
            lambda eta: tfpo_loss(policy, config.head, replace(numbers, reward_scale=eta)),
            tfpo_counts(numbers),
            params,
            frozen,
            batches,
            accumulation_steps=config.train.accumulation_steps,
        )

    return replace(numbers, reward_scale=reward_scale(run, config.loss.reward_scale, measured))


def train_tfpo(
    config: TFPOConfig,
    *,
    patient: Any = None,
    doctor: Any = None,
    tokenizer: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    optimizer: Any = None,
    loss: Any = None,
    callbacks: Sequence[Any] = (),
    trackers: Sequence[Any] = (),
) -> TFPOResult:
    """Trains a doctor on comparisons whose tokens a frozen patient has rewarded.

    Args:
      config: see `TFPOConfig`.
      patient: a live model in place of `config.patient`; needs `tokenizer`.
      doctor: a live model to begin as, in place of `config.model`; needs `tokenizer`.
      tokenizer: of the live models, which share it.
      loss: a function in place of sub-trajectory balance: loss(logps[B, T], rewards[B, T], log_values[B, T+1],
        mask[B, T], terminated=terminated[B]) -> [B].
      train_dataset, eval_dataset, optimizer, callbacks, trackers: live objects in place of, or beside, what `config`
        names: see `jaxalign.runs.Given`.
        `optimizer` is the policy's and the value head's, each with a state of its own.

    Returns:
      The run folder, final metrics (`eval/balance`, `eval/accuracy` and others over held-out pairs), the doctor, and
        what else a `TFPOResult` has.

    Raises:
      UserError: anything wrong with configuration, files or rows, in one line.
    """
    for live, name in ((patient, "patient"), (doctor, "doctor")):
        if live is not None:
            setup.check_live(live, tokenizer, name)
    tokens = ("B", "T")
    arrays = {"logps": tokens, "rewards": tokens, "log_values": ("B", "T+1"), "mask": tokens}
    unread = ("reward_scale", "reference_weight", "decay", "window", "pin_terminal", "reduction")
    ended = {"terminated": ("B",)}
    check_own_loss(loss, arrays, ("B",), config=config.loss, unread=unread, keywords=ended)
    given = Given(
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        optimizer=optimizer,
        loss=loss,
        callbacks=callbacks,
        trackers=trackers,
        others={"patient": patient, "doctor": doctor, "tokenizer": tokenizer},
    )
    mesh = setup.start(config.run, config.mesh)
    key = jax.random.key(config.run.seed)
    train, numbers = config.train, config.loss.resolved()
    with Run.open(config.run, config, "tfpo", given) as run:
        treatment = Treatment.open(config, mesh, run, patient=patient, doctor=doctor, tokenizer=tokenizer)
        tokenizer = treatment.tokenizer
        data, end, table = _rewarded_data(config, treatment, mesh, run)
        doctor, patient = with_stops(treatment.load_doctor(), config.data, tokenizer), None
        collate = setup.collate_of(collate_comparisons, data.train, packing=train.packing)
        value = value_head(config, doctor, data, collate, mesh, key=jax.random.fold_in(key, 4))
        run.add_metadata(value_start={name: float(value[name]) for name in ("ramp", "horizon")})
        horizon = value.pop("horizon")
        started = start_sums(config, doctor, data.validation, collate, mesh)[0]
        scorer, leaves, base = setup.policy_of(doctor, config.lora, mesh, key=jax.random.fold_in(key, 1))
        # The update donates its own copy of the parameters, so the start can serve as reference.
        start = base if config.lora.enabled else leaves
        frozen = {
            "base": base,
            "reference": start if numbers.reference_weight else {},
            "horizon": horizon,
        }

        def ordered():
            return setup.training_batches(train, data.train, seed=config.run.seed, collate=collate, mesh=mesh)

        def place(batch, *, training=False):
            batch = table.attached(pair_axis(batch), training=training)
            batch = batch | {"terminated": terminated(batch, end)}
            if not training:
                batch["start_logps"] = started[np.asarray(batch["row_ids"])].astype(np.float32)
            parts = train.accumulation_steps if training else 1
            return setup.on_mesh(batch, mesh, packing=train.packing, parts=parts)

        batches, counts = ordered(), tfpo_counts(numbers)
        total = train.total_steps(batches.per_epoch)
        if loss is None:  # another loss has a scale of its own
            first = ordered()
            some = (place(first.next(), training=True) for _ in range(min(BATCHES, total)))
            numbers = _scaled(numbers, config, run, scorer, {"policy": leaves, "value": value}, frozen, some)
        run.add_metadata(loss=asdict(numbers))
        card = treatment.card(numbers)
        rule, schedule = optimizers(config, total, optimizer)
        loss_function = tfpo_loss(scorer, config.head, numbers, loss)
        step = make_update(loss_function, counts, rule, accumulation_steps=train.accumulation_steps)
        rows, positions = data.first(config.run.sample_rows), scorer.definition.config.max_positions
        sampling, prompts = samples_of(config.sampling, rows, positions, run)
        generator = Generator(scorer, base, sampling, tokenizer, jax.random.fold_in(key, 2))
        update_key = jax.random.fold_in(key, 3)

        size = train.eval_batch_size or train.batch_size
        held_out = evaluation(
            make_evaluation(loss_function, counts),
            lambda: eval_batches(data.validation, size, collate),
            frozen,
            place,
            train.eval_batches,
        )
        loop = Loop(
            run=run,
            store=setup.checkpoint_store(run),
            batches=batches,
            update=lambda state, batch: step(state, frozen, place(batch, training=True), update_key),
            total_steps=total,
            evaluate=held_out if data.validation else None,
            sample=lambda state: generator.samples(state.params["policy"], prompts, int(state.step)),
            learning_rate=schedule,
        )
        state = create_state({"policy": leaves, "value": value}, rule)
        refuse_schedule_free(state.opt_state, "tfpo, which has one for the policy and one for the value head")
        begun = doctor if card.reference == START else None
        del doctor, leaves, start  # of the full weights that nothing reads any more, one copy less
        state, metrics = loop.fit(state)
        trained, head = state.params["policy"], {**state.params["value"], "horizon": horizon}
        model = setup.export_policy(run, scorer, trained, base, tokenizer, config.lora)
        if begun is not None:
            models.save_pretrained(
                begun,
                run.folder / "start",
                tokenizer=tokenizer,
                dtype=exports.origin_of(run).weights_dtype(begun.params),
            )
        card = models.load_doctor_card(models.save_doctor(run.folder / "export", card, head))
        run.finish(metrics)
        adapter = scorer.parts(trained, base)[1]
        return TFPOResult(run.folder, metrics, model, tokenizer, card, head, adapter, table)
