"""The parts of a TFPO run: patient and doctor, pairs that differ, where responses end, the value head, the card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.data import Counts, Dataset, Example, eval_batches
from jaxalign.data.batches import Collate
from jaxalign.data.chat import ChatFormat
from jaxalign.data.table import counted_of, row_lengths_of
from jaxalign.errors import DataError
from jaxalign.llmdoctor.doctor import DoctorCard, create_value_head
from jaxalign.llmdoctor.tfpo_config import TFPOConfig, TFPONumbers
from jaxalign.mesh import replicated, row_shards
from jaxalign.models.folders import checkpoint_named
from jaxalign.models.memory import weights_text
from jaxalign.models.vocabulary import check_same_vocabulary
from jaxalign.processes import fetch
from jaxalign.remote import as_named
from jaxalign.runs import Run
from jaxalign.training.core import setup
from jaxalign.training.core.batch import CompletionBatch, pair_axis
from jaxalign.training.core.mesh_fit import tell_fit
from jaxalign.training.core.optimizer import make_optimizer
from jaxalign.training.core.packing import most_segments
from jaxalign.training.core.scoring import score_tokens
from jaxalign.training.core.setup import ModelSource

# Answers of single tokens by which `completion_end` finds the end.
PROBES = 16
# Pairs over which the ramp of the log-values is measured before training.
RAMP_PAIRS = 256
# How the reasons begin under which comparisons of equal text, or equal tokens, are counted.
EQUAL = "chosen equals rejected"
# Where a run keeps what the doctor began as, seen from the card.
START = "../start"
# Likewise a patient that was drawn from the seed, and so is in no other folder.
PATIENT = "../patient"


@dataclass
class DoctorPatientPair:
    """Patient and doctor of a run. Only one is loaded at a time where both are files.

    Attributes:
      config: the run's.
      mesh, run: its devices and folder.
      patient: live, until `load_doctor`.
      doctor: live where one was given, or is the live patient; else None, until `load_doctor`.
      tokenizer: of both.
      source: where the doctor is loaded from; None where it is live.
      named: whether the patient is what the configuration names, and not one that was given live.
    """

    config: TFPOConfig
    mesh: Mesh
    run: Run
    patient: Any
    doctor: Any
    tokenizer: Any
    source: ModelSource | None
    named: bool

    @staticmethod
    def open(
        config: TFPOConfig, mesh: Mesh, run: Run, *, patient: Any, doctor: Any, tokenizer: Any
    ) -> "DoctorPatientPair":
        """Loads the patient where none is given, and checks that its tokens mean the same to the doctor.

        Raises:
          ConfigError: a live model without a tokenizer; no patient.
          ModelError: a folder or tokenizer that is wrong, or two vocabularies.
        """
        named = patient is None
        source = None
        for section, live in (("patient", patient), ("model", doctor)):
            if live is not None:
                size = weights_text(live.config, live.params)
                run.tell(section, f"passed live ({live.config.family}, {size})")
                tell_fit(run, section, live.config, mesh)
        placed = {id(live): setup.place_model(live, mesh) for live in (patient, doctor) if live is not None}
        patient, doctor = placed.get(id(patient)), placed.get(id(doctor))
        if doctor is None:
            source = config.model
            if not source.path and patient is None:
                names = ("path", "tokenizer", "revision", "random_init")
                source = replace(source, **{name: getattr(config.patient, name) for name in names})
            elif not source.path:
                doctor, source = patient, None
        if patient is None:
            packing, words = config.train.packing, tokenizer
            patient, tokenizer = setup.load_model(
                config.patient,
                mesh,
                seed=config.run.seed,
                section="patient",
                run=run,
                packing=packing,
                weights=config.patient.weights,
            )
            if words is not None:
                check_same_vocabulary(words, tokenizer)
        if source is not None and source.path != config.patient.path:
            folder = source.tokenizer or setup.model_folder(source.path)
            revision = None if source.tokenizer else source.revision or None
            check_same_vocabulary(models.load_tokenizer(folder, revision=revision), tokenizer)
        return DoctorPatientPair(config, mesh, run, patient, doctor, tokenizer, source, named)

    @property
    def doctor_shape(self) -> models.ModelConfig:
        """The doctor's shape, before it is loaded too."""
        if self.source is None:
            return self.doctor.config
        folder, source = setup.model_folder(self.source.path), self.source
        return models.load_config(folder, revision=source.revision or None, context=source.context)

    @property
    def scoring_patient(self) -> Any:
        """The patient in the weights that it is to score with; a live one, which its owner keeps, is copied."""
        return models.quantize(self.patient) if self.config.patient.weights == "int8" else self.patient

    def load_doctor(self) -> Any:
        """The doctor as it begins; the patient is let go, and kept in the run's folder where it is in no other."""
        config, seed = self.config, self.config.run.seed
        self.patient, folder = None, self.run.folder / "patient"
        if self.named and config.patient.random_init and not (self.run.resumed and folder.is_dir()):
            drawn, tokenizer = setup.load_model(config.patient, self.mesh, seed=seed, section="patient")
            models.save_pretrained(drawn, folder, tokenizer=tokenizer)
        packing, mapped = config.train.packing, bool(config.dimensions)
        if self.source is None and mapped:
            form = models.attention_for(self.doctor.config, max_segments=most_segments(packing), mapped=True)
            return models.with_config(self.doctor, attention=form.attention)
        if self.source is None:
            return self.doctor
        return setup.load_model(
            self.source,
            self.mesh,
            seed=seed,
            run=self.run,
            packing=packing,
            mapped=mapped,
            weights=config.lora.weights,
        )[0]

    def card(self, config: TFPOConfig, numbers: TFPONumbers) -> DoctorCard:
        """The card of a doctor of one dimension, trained with this loss."""
        # A model that was given live, or drawn from a seed, is in no folder.
        start = "" if self.source is None or self.source.random_init else full_name(self.source.path)
        return doctor_card(config, numbers, start, named=self.named)


def doctor_card(config: TFPOConfig, numbers: TFPONumbers, start: str, *, named: bool) -> DoctorCard:
    """The card of a run's doctor.

    Args:
      config: the run's.
      numbers: its loss.
      start: folder or hub id of the model that the doctor began as; empty where no folder has it: where guidance needs
        it the card names `START`.
      named: whether the patient is what the configuration names, and not one that was given live.
    """
    guidance = config.guidance.resolved(config.loss.preset)
    if not start and guidance["guidance"] == "ratio":
        start = START
    patient = PATIENT if config.patient.random_init else full_name(config.patient.path)
    return DoctorCard(
        patient=patient if named else "",
        dimension=config.rewards.dimension,
        preset=config.loss.preset,
        reference=start,
        adapter="../adapter" if config.lora.enabled and start else "",
        base=start if config.lora.enabled else "",
        loss=asdict(numbers),
        **guidance,
    )


def full_name(path: str) -> str:
    """A folder by its whole path or URL, so that a card means the same from everywhere; a hub id as it is."""
    path = setup.model_folder(path) if checkpoint_named(path) else path
    return as_named(str(Path(path).resolve())) if path and Path(path).exists() else path


def check_identical(counts: Counts, config: TFPOConfig, run: Run) -> None:
    """Says how many comparisons were left out because their two responses are the same, as text or as tokens.

    Raises:
      DataError: there is one and `on_identical` is stop.
    """
    number = sum(rows for reason, rows in counts.filtered.items() if reason.startswith(EQUAL))
    if number and config.on_identical == "stop":
        raise DataError(
            f"{number} comparisons have two equal completions (in full, or when cut to data.max_length); fix the "
            "data or set on_identical=skip"
        )
    if number:
        run.warn(f"{number} comparisons skipped, as their two completions have the same tokens")


def completion_end(chat: ChatFormat) -> tuple[int, ...]:
    """The ids that every whole response ends with, by the end token or the chat template; () where there are none.

    They are what the rows of some answers share. Two of them would not do: a vocabulary of words may know neither.
    """
    words = chat.tokenizer
    # Added tokens may be marks that a chat template reads, such as <think>.
    ordinary = sorted({*words.get_vocab().values()} - {*words.all_special_ids, *words.added_tokens_decoder})
    known = [words.decode([token]).strip() for token in ordinary[:: max(len(ordinary) // PROBES, 1)]]
    answers = ["yes", "42", *(text for text in known if text and "\ufffd" not in text)]
    first, *rows = (chat.example("1", answer)[0] for answer in answers)
    shared = len(first)
    for row in rows:
        equal = [a == b for a, b in zip(reversed(first), reversed(row), strict=False)]
        shared = min(shared, (*equal, False).index(False))
    return tuple(first[len(first) - shared :])


def terminated(batch: Mapping[str, Any], end: tuple[int, ...]) -> np.ndarray:
    """bool [B, 2]: whether a response's last counted tokens are those that end it, so that it was not cut."""
    tokens, mask, lengths = (np.asarray(batch[name]) for name in ("tokens", "mask", "lengths"))
    if not end:
        return np.zeros(lengths.shape, bool)
    places = lengths[..., None] - len(end) + np.arange(len(end))
    places = np.maximum(places, 0)
    tails, counted = (np.take_along_axis(x, places, axis=-1) for x in (tokens, mask))
    return (tails == np.asarray(end)).all(-1) & counted.all(-1)


def ended_fraction(data: Dataset, end: tuple[int, ...]) -> float:
    """The part of the training responses that end by themselves."""
    if not end:
        return 0.0
    found = [row[len(row) - len(end) :] == end for e in data.train for row in e.rows]
    return sum(found) / len(found)


def value_head(
    config: TFPOConfig, doctor: Any, data: Dataset, collate: Collate, mesh: Mesh, *, key: jax.Array
) -> dict[str, Any]:
    """A fresh head of log-values on every device, whose ramp begins where balance is near.

    The horizon is the mean length of the training responses: with it the pinned end costs least at the start.
    """
    ramp, kappa = config.loss.value_ramp, config.loss.resolved().reference_weight
    if ramp is None and kappa == 1:
        ramp = 0.0
    elif ramp is None:
        logps, tokens = start_sums(config, doctor, data.train[:RAMP_PAIRS], collate, mesh)
        ramp = (1 - kappa) * float(-logps.sum() / tokens.sum())
    horizon = float(counted_of(data.train).sum() / len(row_lengths_of(data.train)))
    params = create_value_head(doctor.config, config.head, key=key, ramp=ramp, horizon=horizon)
    return jax.device_put(params, replicated(mesh))


def start_sums(
    config: TFPOConfig, model: Any, examples: Sequence[Example], collate: Collate, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-probs of responses under the doctor as it begins, nats, and their tokens: [N, 2] each, in order."""
    definition, params = models.split(model)
    size = config.train.eval_batch_size or config.train.batch_size
    parts = [np.zeros((2, 0, 2))]
    for batch in eval_batches(examples, size, collate, multiple=row_shards(mesh)):
        placed = setup.on_mesh(pair_axis(batch), CompletionBatch, mesh, packing=config.train.packing)
        valid = np.asarray(batch["valid"])
        parts.append(np.stack([x[: len(valid)][valid] for x in fetch(_sums(definition, params, placed))]))
    logps, tokens = np.concatenate(parts, axis=1)
    return logps, tokens


@partial(jax.jit, static_argnums=0)
def _sums(definition: Any, params: Any, batch: CompletionBatch) -> tuple[jax.Array, jax.Array]:
    rows = batch.rows()
    scores = score_tokens(models.merge(definition, params), rows)
    return scores.logps.sum(1).reshape(-1, 2), rows.mask.sum(1).reshape(-1, 2)


def optimizers(
    config: TFPOConfig, total: int, given: Any = None
) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
    """A chain for the policy, and one of the same shape for the value head, so that neither clips the other.

    Args:
      config: the run's.
      total: optimizer steps.
      given: see `make_optimizer`; a transformation is of both, a schedule of the policy alone.

    Returns:
      The transformation, and the policy's learning rate, where it is known.
    """
    policy, schedule = make_optimizer(config.optimizer, total, given)
    rate = config.head_learning_rate or config.optimizer.learning_rate
    rule = given if isinstance(given, optax.GradientTransformation) else None
    value, _ = make_optimizer(replace(config.optimizer, learning_rate=rate), total, rule)

    def labels(params: dict[str, Any]) -> dict[str, Any]:
        return {name: jax.tree.map(lambda _, n=name: n, tree) for name, tree in params.items()}

    return optax.partition({"policy": policy, "value": value}, labels), schedule
