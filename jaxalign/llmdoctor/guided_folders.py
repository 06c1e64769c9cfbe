"""A guided model from folders: doctors, and the patient that their cards name."""

import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign.errors import ConfigError, ModelError
from jaxalign.llmdoctor.doctor import DoctorCard, doctor_folders, load_doctor_card
from jaxalign.llmdoctor.guided import Doctor, Guidance, GuidedModel, guide
from jaxalign.models.folders import NOT_OF_A_MODEL, checkpoint_named, model_folder
from jaxalign.models.huggingface import (
    check_vocabulary,
    load_config,
    load_pretrained,
    load_tokenizer,
    local_folder,
)
from jaxalign.models.lora import attach
from jaxalign.models.peft import load_adapter
from jaxalign.models.sharding import on_mesh
from jaxalign.models.stops import stopping, tokenizer_stops
from jaxalign.models.vocabulary import (
    added_differences,
    check_same_vocabulary,
    only_added_differ,
    vocabulary_map,
)
from jaxalign.remote import local, scheme

OtherVocabulary = Literal["refuse", "map"]


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """Doctors that guide a patient.

    Attributes:
      doctor: folders of doctors (tfpo runs, or their export/) that guide the patient; list several as [first,
        second]. A run with several dimensions adds all its doctors; RUN/export/NAME selects one. Their cards
        (doctor.json) hold every other setting.
      patient: the model to guide, in place of the one that the cards name.
      alpha: exponent of the patient's probabilities; null uses the cards'.
      beta: exponent of each doctor's probabilities; 0 disables the doctors; null uses the cards'.
      preference_weights: weight of each doctor's dimension, which multiplies its beta, as in '{"helpfulness": 0.8,
        "safety": 0.2}'; empty weights each by 1.
      plausibility: minimum probability of a token under the patient, as a fraction of its most probable token's,
        which keeps strong doctors from producing nonsense; 0 allows all tokens.
      guidance: product multiplies by the doctor's probabilities; ratio multiplies by those divided by its initial
        model's; auto uses the cards'.
      vocabulary: what to do with a doctor whose tokenizer differs from the patient's: refuse it, or map tokens by
        their text; tokens that the doctor lacks are left to the patient. Tokenizers that differ only in added and
        special tokens are always accepted.
    """

    doctor: tuple[str, ...] = ()
    patient: str = ""
    alpha: float | None = None
    beta: float | None = None
    preference_weights: dict[str, float] = field(default_factory=dict)
    plausibility: float = 0.0
    guidance: Literal["auto", "product", "ratio"] = "auto"
    vocabulary: OtherVocabulary = "refuse"

    def __post_init__(self) -> None:
        weights = {f"preference_weights.{name}": value for name, value in self.preference_weights.items()}
        for name, value in {"alpha": self.alpha, "beta": self.beta, **weights}.items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be non-negative and finite, got {value}")
        if not 0 <= self.plausibility <= 1:
            raise ValueError(f"plausibility must lie in [0, 1], got {self.plausibility}")
        given = {
            "patient": self.patient != "",
            "alpha": self.alpha is not None,
            "beta": self.beta is not None,
            "preference_weights": self.preference_weights != {},
            "plausibility": self.plausibility != 0,
            "guidance": self.guidance != "auto",
            "vocabulary": self.vocabulary != "refuse",
        }
        for name in (name for name, there in given.items() if there and not self.doctor):
            raise ValueError(f"{name} needs doctors; name them with --doctor=FOLDER")


@dataclass(frozen=True, kw_only=True)
class Doctors:
    """Doctors of one patient, as their cards describe them; no weights are loaded.

    Attributes:
      folders: of each doctor's model.
      cards: of each doctor.
      patient: its folder or hub id; empty where neither configuration nor card names it.
      tokenizer: folder or hub id of the one that serves a patient without its own; empty for none.
      named_by: the card that names the patient; empty where the configuration does.
      guidance: product or ratio.
      alpha: the patient's exponent.
      betas: each doctor's exponent.
      plausibility: see `GuideConfig`.
      vocabulary: see `GuideConfig`.
    """

    folders: tuple[Path, ...]
    cards: tuple[DoctorCard, ...]
    patient: str
    tokenizer: str
    named_by: str
    guidance: Guidance
    alpha: float
    betas: tuple[float, ...]
    plausibility: float
    vocabulary: OtherVocabulary

    def patient_folder(self) -> str:
        """The patient's folder (of a run its export/) or hub id.

        Raises:
          ModelError: none is named, or it is not there.
        """
        if not self.patient:
            raise ModelError(f"{self.named_by}: the card names no patient; set --patient")
        try:
            folder = model_folder(self.patient)
            local_folder(folder, weights=False)
        except ModelError as error:
            if not self.named_by:
                raise
            raise ModelError(f"{self.named_by}: its patient was not found; set --patient ({error})") from None
        return folder

    def patient_tokenizer(self, folder: str) -> Any:
        """The tokenizer in the patient's folder, or the one that the card names where it has none.

        Raises:
          ModelError: neither is there.
        """
        try:
            return load_tokenizer(folder)
        except ModelError:
            if not self.tokenizer:
                raise
            return load_tokenizer(self.tokenizer)

    def start_as(self, folder: str) -> bool:
        """Whether one of them begins as the model in a folder, so that it may share its weights."""
        named = [path for card in self.cards for path in (card.base, card.reference) if path]
        return _place(folder) in map(_place, named)


def read_doctors(config: GuideConfig) -> Doctors:
    """The cards of a configuration's doctors, checked against each other and against the configuration.

    Raises:
      ConfigError: no doctor, two of one dimension, weights for other dimensions than theirs, or doctors that differ
        in patient, guidance or alpha where the configuration does not decide.
      ModelError: a folder that is no doctor.
    """
    if not config.doctor:
        raise ConfigError("expected a doctor: --doctor=FOLDER")
    given = [str(one) for folder in config.doctor for one in _doctors_of(folder)]
    cards = [load_doctor_card(folder) for folder in given]
    dimensions = [card.dimension for card in cards]
    for index, dimension in enumerate(dimensions):
        first = dimensions.index(dimension)
        if first != index:
            raise ConfigError(
                f"--doctor: {given[first]} and {given[index]} are both doctors of {dimension}; expected one per "
                "dimension"
            )
    folders = tuple(Path(model_folder(folder)) for folder in given)

    def common(name: str) -> Any:
        """What all cards say; paths are compared by the folder that they lead to."""
        values = [getattr(card, name) for card in cards]
        same = [_place(value) if name == "patient" else value for value in values]
        for index, value in enumerate(same):
            if value != same[0]:
                raise ConfigError(
                    f"--doctor: {given[0]} has {name} {values[0]} in its card, {given[index]} has {values[index]}; "
                    f"choose one with --{name}"
                )
        return values[0]

    own = bool(config.patient)
    guidance = common("guidance") if config.guidance == "auto" else config.guidance
    if guidance == "ratio":
        for home, card in zip(folders, cards, strict=True):
            _check_beginning(home, card)
    return Doctors(
        folders=folders,
        cards=tuple(cards),
        patient=config.patient or common("patient"),
        tokenizer="" if own else cards[0].tokenizer,
        named_by="" if own else str(folders[0] / "doctor.json"),
        guidance=guidance,
        alpha=common("alpha") if config.alpha is None else config.alpha,
        betas=_betas(config, cards),
        plausibility=config.plausibility,
        vocabulary=config.vocabulary,
    )


def _doctors_of(folder: str) -> list[Path]:
    """The doctors that a folder (or RUN@checkpoint) holds, one or several."""
    if checkpoint_named(folder):
        return doctor_folders(model_folder(folder))
    return doctor_folders(local(folder, NOT_OF_A_MODEL))


def _betas(config: GuideConfig, cards: Sequence[DoctorCard]) -> tuple[float, ...]:
    """Each doctor's exponent: beta times the weight of its dimension."""
    weights, dimensions = config.preference_weights, [card.dimension for card in cards]
    for name in weights:
        if name not in dimensions:
            raise ConfigError(
                f"preference_weights: no doctor of {name!r}; the doctors given are of {', '.join(dimensions)}"
            )
    for name in dimensions:
        if weights and name not in weights:
            raise ConfigError(
                f"preference_weights: no weight for {name}; set it to 0 to leave its doctor out"
            )
    return tuple(
        (card.beta if config.beta is None else config.beta) * weights.get(card.dimension, 1.0)
        for card in cards
    )


def load_guided(
    config: GuideConfig, *, param_dtype: Any = None, compute_dtype: Any = None, mesh: Any = None
) -> tuple[Any, Any]:
    """A patient with its doctors, from folders alone.

    Args:
      config: the doctors, and what it sets in place of their cards.
      param_dtype, compute_dtype, mesh: of all models, as `load_pretrained`.

    Returns:
      (the `GuidedModel`, the patient's tokenizer).

    Raises:
      ConfigError: as `read_doctors`.
      ModelError: a folder, tensor or tokenizer that is wrong or missing.
    """
    doctors = read_doctors(config)
    folder = doctors.patient_folder()
    tokenizer = doctors.patient_tokenizer(folder)
    patient = load_pretrained(folder, param_dtype=param_dtype, compute_dtype=compute_dtype, mesh=mesh)
    check_vocabulary(patient.config, tokenizer)
    return guided_by(doctors, patient, tokenizer, folder=folder, mesh=mesh), tokenizer


def guided_by(
    doctors: Doctors, patient: Any, tokenizer: Any, *, folder: str = "", mesh: Any = None
) -> GuidedModel:
    """A live patient with its doctors, which get its dtypes.

    Doctors that are adapters on one base are given that base as one live object, so that they are computed together.
    A completion ends where the patient's would, and at what its tokenizer or a doctor's export names as an end.

    Args:
      doctors: which, from `read_doctors`.
      patient: a causal model.
      tokenizer: the patient's.
      folder: whose parameters the patient has, unchanged: a doctor on the same base then shares them in memory. Empty
        where it comes from elsewhere.
      mesh: lay the doctors' parameters out on this mesh; None puts them on the default device.

    Raises:
      ModelError: a folder, tensor or tokenizer that is wrong or missing; a doctor's tokenizer that differs from the
        patient's in more than added tokens, unless vocabularies are mapped.
    """
    live = {_place(folder): patient} if folder else {}

    def load(path: str | Path) -> Any:
        place = _place(path)
        if place not in live:
            dtypes = {
                "param_dtype": patient.config.param_dtype,
                "compute_dtype": patient.config.compute_dtype,
            }
            live[place] = load_pretrained(model_folder(str(path)), mesh=mesh, **dtypes)
        return live[place]

    ratio = doctors.guidance == "ratio"
    bases = Counter(_place(card.base) for card in doctors.cards if card.adapter)
    maps: list[tuple[dict[str, int], np.ndarray | None]] = []
    steering, stops = [], [*tokenizer_stops(tokenizer)]
    for home, card in zip(doctors.folders, doctors.cards, strict=True):
        words = load_tokenizer(home)
        vocabulary = _vocabulary_of(words, tokenizer, doctors.vocabulary, home, maps)
        heard = {"vocabulary": vocabulary, "unknown": _unknown(words)}
        place = _place(card.base)
        # Where nothing is gained by it, the merged export is the same doctor.
        if card.adapter and _is_there(card.base) and (ratio or bases[place] > 1 or place in live):
            base = load(card.base)
            leaves, settings = load_adapter(home / card.adapter, base.config)
            steering.append(Doctor(base, adapter=attach(leaves, settings), **heard))
        else:
            reference = load(card.reference) if ratio else None
            steering.append(Doctor(load(home), reference=reference, **heard))
        check_vocabulary(steering[-1].model.config, words)
        # Of the export, whose run may have taught an end that its base does not know.
        ends = load_config(home).eos_ids
        stops += ends if vocabulary is None else np.flatnonzero(np.isin(vocabulary, ends)).tolist()
    guided = guide(
        patient,
        steering,
        alpha=doctors.alpha,
        betas=doctors.betas,
        guidance=doctors.guidance,
        plausibility=doctors.plausibility,
    )
    writable = [token for token in stops if token < guided.config.vocab_size]
    params = guided.params if mesh is None else on_mesh(guided.params, mesh)
    return GuidedModel(stopping(guided.definition, writable), params)


def _vocabulary_of(
    words: Any,
    patient: Any,
    other: OtherVocabulary,
    home: Path,
    maps: list[tuple[dict[str, int], np.ndarray | None]],
) -> np.ndarray | None:
    """The map of the patient's tokens to the doctor's; None where ids mean the same. `maps` keeps those made.

    A line on standard error says what differs, once a tokenizer.
    """
    vocabulary = words.get_vocab()
    if vocabulary == patient.get_vocab():
        return None
    for known, ids in maps:
        if known == vocabulary:
            return ids  # the same object: only so are two doctors computed together
    alike = only_added_differ(words, patient)
    if not alike and other == "refuse":
        try:
            check_same_vocabulary(words, patient)
        except ModelError as error:
            raise ModelError(f"{home}: {error} (--vocabulary=map maps tokens by their text)") from None
    found = vocabulary_map(patient, words)
    if alike:
        said = f"but for added tokens its tokenizer is the patient's: {added_differences(patient, words)}"
    else:
        said = (
            f"{(found >= 0).sum():,} of the patient's {len(patient.get_vocab()):,} tokens are among its "
            f"{len(vocabulary):,}; to the others it is neutral"
        )
    print(f"{home}: {said}", file=sys.stderr)
    # Where every token has its id, the doctor just has more.
    ids = None if (found == np.arange(len(found))).all() else found
    maps.append((vocabulary, ids))
    return ids


def _unknown(words: Any) -> int:
    """What a doctor reads where the patient wrote a token that the doctor has not."""
    for token in (words.unk_token_id, words.pad_token_id, words.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _check_beginning(home: Path, card: DoctorCard) -> None:
    """The model that a doctor began as is there: its adapter's base, or its reference."""
    if (card.adapter and _is_there(card.base)) or _is_there(card.reference):
        return
    named = card.reference or card.base
    raise ModelError(
        f"{home / 'doctor.json'}: guidance by ratio needs the doctor's initial model, "
        f"{f'and {named} is not here' if named else 'and names none'}; --guidance=product does not need it"
    )


def _is_there(path: str) -> bool:
    """Whether a folder (or what can be had of a hub id) is there; nothing is named by an empty path."""
    try:
        return path != "" and local_folder(model_folder(path), weights=False).exists()
    except ModelError:
        return False


def _place(path: str | Path) -> str:
    """The folder that a path leads to, by which two paths can be compared; of a hub id (or nothing) itself."""
    named = str(path)
    here = bool(named) and (scheme(named) or Path(named).exists() or checkpoint_named(named) is not None)
    return os.path.realpath(model_folder(named)) if here else named
