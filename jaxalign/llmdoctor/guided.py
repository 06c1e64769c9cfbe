"""A model steered by others while it writes: distributions multiplied, nothing fine-tuned (LLMDoctor, stage 3).

    log pi(y | s) = alpha * log patient(y | s) + sum_i beta_i * g_i(y | s) + constant
    g_i = log doctor_i                        (product)
    g_i = log doctor_i - log reference_i      (ratio; the reference is what the doctor began as)

where the patient gives y at least `plausibility` times the probability of its likeliest token; elsewhere pi is 0.

To tokens that a doctor of another vocabulary has not it is neutral, see `models.mapped`.

A `GuidedModel` reads prompts and decodes as any causal model does, so a `Sampler` takes it as one. Its cache is one
cache: the layers of patient and doctors one after another. alpha and beta are leaves, so other weights need no other
program.

Source: arXiv:2601.10416 (product). The ratio is for doctors whose target already holds their own reference, which the
product would count twice. Plausibility is the adaptive constraint of contrastive decoding (arXiv:2210.15097): a ratio
is unbounded on tokens that its doctor never saw.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxalign.llmdoctor.mapped import Spoken, read, translated
from jaxalign.masking import NEGATIVE
from jaxalign.models import kv_cache
from jaxalign.models.composite import Composite, CompositeDefinition
from jaxalign.models.config import ModelConfig
from jaxalign.models.kv_cache import KVCache
from jaxalign.models.lora import has_magnitudes, merge_adapter, stack_adapters
from jaxalign.models.stops import stopping
from jaxalign.models.transformer import Definition, Transformer

Guidance = Literal["product", "ratio"]


@dataclass(frozen=True)
class Doctor:
    """One that steers.

    Attributes:
      model: a causal model, live.
      adapter: attached LoRA leaves (`lora.attach`) on it; None for none. Doctors with adapters on one and the same
        model object are computed together, but for DoRA: such a doctor is merged, a model of its own.
      reference: the model that the doctor began as, for guidance by ratio; None takes `model` without its adapter.
        Where that is the patient itself, the same object, nothing is computed for it.
      vocabulary: int32 [V], for each token of the patient the doctor's id of the same token, -1 where there is none:
        there the doctor is neutral. None where ids mean the same.
      unknown: what the doctor reads in place of a token that it has not.
    """

    model: Transformer
    adapter: Any = None
    reference: Transformer | None = None
    vocabulary: Any = None
    unknown: int = 0


@dataclass(frozen=True)
class ExpertDefinition:
    """The static part of what is computed together: a model, or a model under several adapters.

    Attributes:
      model: its static part.
      members: distributions that it gives, A: one, or one for each adapter.
      shares: A x doctors: how often each doctor's beta counts in the exponent of each distribution.
      map: the number of the map through which it reads and speaks; None where ids mean the same.
    """

    model: Definition
    members: int
    shares: tuple[tuple[float, ...], ...]
    map: int | None


@dataclass(frozen=True)
class GuidedDefinition(CompositeDefinition):
    """The static part of a guided model.

    Attributes:
      patient: its static part.
      patient_shares: how often each doctor's beta counts in the patient's exponent: -1 where guidance by ratio divides
        by the patient itself, else 0.
      experts: the static parts of what steers.
      vocab_size: tokens that can be written.
    """

    patient: Definition
    patient_shares: tuple[float, ...]
    experts: tuple[ExpertDefinition, ...]
    vocab_size: int

    @cached_property
    def config(self) -> ModelConfig:
        """The patient's, with the vocabulary and the positions that all have."""
        positions = [d.config.max_positions for d in (self.patient, *(e.model for e in self.experts))]
        return replace(self.patient.config, vocab_size=self.vocab_size, max_positions=min(positions))

    def merge(self, params: dict[str, Any]) -> "GuidedModel":
        """The model with these parameters; see `models.merge`."""
        return GuidedModel(self, params)

    def with_stops(self, ids: Iterable[int]) -> "GuidedDefinition":
        """Its patient stops at these tokens too."""
        return replace(self, patient=stopping(self.patient, ids))


class GuidedModel(Composite[GuidedDefinition]):
    """A patient and its doctors, to sample from or to score with.

    Attributes:
      definition: the static part.
      params: `patient`; `experts`, each with `base`, perhaps `adapters` (attached; several stacked), `vocabulary` and
        `unknown`; `alpha`, float32; `betas`, float32, one a doctor; `floor`, float32, the log of plausibility.
    """

    def with_weights(
        self,
        *,
        alpha: float | None = None,
        betas: Sequence[float] | None = None,
        plausibility: float | None = None,
    ) -> "GuidedModel":
        """The same models under other weights; a program compiled for one serves the other.

        Raises:
          ValueError: as `guide`.
        """
        changes = {} if alpha is None else {"alpha": _checked_alpha(alpha)}
        if betas is not None:
            changes["betas"] = _checked_betas(betas, len(self.params["betas"]))
        if plausibility is not None:
            changes["floor"] = _floor(plausibility)
        return GuidedModel(self.definition, self.params | changes)

    def __call__(self, tokens: Int[Array, "B T"], *, lengths: Int[Array, " B"] | None = None) -> jax.Array:
        """float32 [B, T, V]: logits of the guided distribution, for plain use; rows are right-padded."""
        hidden = {"patient": self._patient.hidden(tokens, lengths=lengths), "experts": []}
        for expert, part in self._experts:
            rows, counts = (_repeated(x, expert.members) for x in (read(tokens, part), lengths))
            states = self._model(expert, part).hidden(rows, lengths=counts, adapter=part.get("adapters"))
            hidden["experts"].append(_apart(states, expert.members))
        return self.logits(hidden)

    def logits(self, hidden: Mapping[str, Any]) -> Float[Array, "*B V"]:
        """float32 logits of hidden states: `patient` [*B, D], and for each expert [*B, D] by member."""
        size = self.definition.vocab_size
        # Constants a row change no distribution, so nothing is normalized: with beta 0 these are the patient's own.
        betas = self.params["betas"]
        alpha = self.params["alpha"] + _exponent(self.definition.patient_shares, betas)
        patient = self._patient.logits(hidden["patient"])[..., :size]
        total = alpha * patient
        plausible = patient >= jnp.max(patient, axis=-1, keepdims=True) + self.params["floor"]
        spoken: dict[int, Spoken] = {}
        for (expert, part), members in zip(self._experts, hidden["experts"], strict=True):
            model = self._model(expert, part)
            for shares, states in zip(expert.shares, members, strict=True):
                logits = translated(model.logits(states), part.get("vocabulary"), size)
                exponent = _exponent(shares, betas)
                # What has no weight must add 0 also where it is infinite.
                term = jnp.where(exponent == 0, 0.0, exponent * logits)
                if expert.map is None:
                    total = total + term
                    continue
                known = part["vocabulary"][:size] >= 0
                others = spoken.get(expert.map, Spoken(known, jnp.float32(0), jnp.bool(False)))
                spoken[expert.map] = Spoken(known, others.terms + term, others.weighed | (exponent != 0))
        for by_map in spoken.values():
            total = total + by_map.neutral(self.params["alpha"] * patient, plausible)
        return jnp.where(plausible, total, NEGATIVE)

    # --- decoding, as `Transformer` does it ---------------------------------------------------

    def prefill(
        self,
        tokens: Int[Array, "B P"],
        lengths: Int[Array, " B"],
        *,
        cache_length: int,
        adapter: None = None,
        int8_cache: bool = False,
    ) -> tuple[dict[str, Any], KVCache]:
        """Reads right-padded prompts; see `Transformer.prefill`. The hidden states are those of all models."""
        del adapter  # doctors have their own
        options: dict[str, Any] = {"cache_length": cache_length, "int8_cache": int8_cache}
        states, cache = self._patient.prefill(tokens, lengths, **options)
        hidden, caches = {"patient": states, "experts": []}, [cache]
        for expert, part in self._experts:
            states, cache = self._model(expert, part).prefill(
                _repeated(read(tokens, part), expert.members),
                _repeated(lengths, expert.members),
                adapter=part.get("adapters"),
                **options,
            )
            hidden["experts"].append(_apart(states, expert.members))
            caches.append(_folded(cache, expert.members))
        return hidden, kv_cache.joined(caches)

    def decode_weights(self, adapter: None = None) -> dict[str, Any]:
        """Weights for `decode` and `logits`: of each model as `Transformer.decode_weights` makes them."""
        del adapter
        experts = []
        for expert, part in self._experts:
            model, adapters = self._model(expert, part), part.get("adapters")
            ready = {name: value for name, value in part.items() if name != "adapters"}
            if adapters is None or expert.members == 1:
                experts.append(ready | {"base": model.decode_weights(adapters)})
                continue
            layers = [jax.tree.map(lambda x, i=i: x[i], adapters) for i in range(model.config.num_layers)]
            experts.append(ready | {"base": model.decode_weights(), "adapters": layers})
        return {**self.params, "patient": self._patient.decode_weights(), "experts": experts}

    def decode(
        self, weights: Mapping[str, Any], tokens: Int[Array, " B"], cache: KVCache
    ) -> tuple[dict[str, Any], KVCache]:
        """One token a row, read by every model; see `Transformer.decode`."""
        first = self._patient.config.num_layers
        states, part_cache = self._patient.decode(
            weights["patient"], tokens, kv_cache.take_layers(cache, 0, first)
        )
        hidden, caches = {"patient": states, "experts": []}, [part_cache]
        for expert, part in self._experts:
            members, layers = expert.members, expert.model.config.num_layers
            states, part_cache = self._model(expert, part).decode(
                part["base"],
                read(tokens, part),
                kv_cache.take_layers(cache, first, layers),
                adapter=part.get("adapters"),
                members=members,
            )
            hidden["experts"].append(_apart(states, members))
            caches.append(part_cache)
            first += layers
        return hidden, kv_cache.joined(caches)

    @property
    def _patient(self) -> Transformer:
        return Transformer(self.definition.patient.config, self.params["patient"])

    @property
    def _experts(self) -> list[tuple[ExpertDefinition, dict[str, Any]]]:
        return list(zip(self.definition.experts, self.params["experts"], strict=True))

    @staticmethod
    def _model(expert: ExpertDefinition, part: Mapping[str, Any]) -> Transformer:
        return Transformer(expert.model.config, part["base"])


def guide(
    patient: Transformer,
    doctors: Sequence[Doctor],
    *,
    alpha: float = 1.0,
    betas: Sequence[float],
    guidance: Guidance = "product",
    plausibility: float = 0.0,
) -> GuidedModel:
    """A patient steered by doctors.

    Args:
      patient: a causal model; it may have 8-bit weights (`models.quantize`).
      doctors: one or more, each for a dimension of preference.
      alpha: exponent of the patient.
      betas: exponent of each doctor; 0 leaves it out, and all 0 (with alpha 1) is the patient, bit for bit.
      guidance: product or ratio, see above. A reference that is the patient has the patient's weights, also where
        those are 8-bit.
      plausibility: the part of its likeliest token's probability that the patient must give a token for it to be
        written; 0 leaves all tokens.

    Raises:
      ValueError: no doctor, a negative weight, not one a doctor, a plausibility outside 0 to 1; guidance by ratio of a
        doctor that has neither adapter nor reference; a vocabulary of another length than another's.
    """
    if not doctors:
        raise ValueError("expected at least one doctor")
    if guidance not in ("product", "ratio"):
        raise ValueError(f"guidance must be product or ratio, got {guidance!r}")
    doctors = list(map(_without_magnitudes, doctors))
    definitions, parts, maps = [], [], []

    def add(model: Transformer, doctor: Doctor, shares: Sequence[Sequence[float]], adapters: Any) -> None:
        part: dict[str, Any] = {"base": model.params}
        if adapters is not None:
            part["adapters"] = adapters
        number = None
        if doctor.vocabulary is not None:
            part["vocabulary"] = jnp.asarray(doctor.vocabulary, jnp.int32)
            part["unknown"] = jnp.int32(doctor.unknown)
            maps.append(np.asarray(doctor.vocabulary))
            number = next(n for n, known in enumerate(maps) if np.array_equal(known, maps[-1]))
        counted = tuple(map(tuple, shares))
        definitions.append(ExpertDefinition(Definition(model.config), len(shares), counted, number))
        parts.append(part)

    ratio = guidance == "ratio"
    alone = np.eye(len(doctors))
    patient_shares = np.zeros(len(doctors))
    for numbers in _together(doctors):
        doctor, shares = doctors[numbers[0]], [alone[i] for i in numbers]
        adapters = [doctors[i].adapter for i in numbers]
        own = [i for i in numbers if doctors[i].reference is None]
        if ratio and own and adapters[0] is None:
            raise ValueError(f"guidance by ratio: doctor {own[0]} has neither an adapter nor a reference")
        if ratio and own and _is_patient(doctor.model, patient, doctor):
            patient_shares[own] = -1
        elif ratio and own:
            # The model without its adapter is one more member: an adapter that changes nothing.
            adapters.append(jax.tree.map(jnp.zeros_like, adapters[0]))
            shares.append(-sum(alone[i] for i in own))
        add(doctor.model, doctor, shares, adapters[0] if len(adapters) == 1 else stack_adapters(adapters))
        for i in numbers:
            other = doctors[i].reference
            if ratio and other is not None and _is_patient(other, patient, doctors[i]):
                patient_shares[i] = -1
            elif ratio and other is not None:
                add(other, doctors[i], [-alone[i]], None)
    params = {
        "patient": patient.params,
        "experts": parts,
        "alpha": _checked_alpha(alpha),
        "betas": _checked_betas(betas, len(doctors)),
        "floor": _floor(plausibility),
    }
    definition = GuidedDefinition(
        Definition(patient.config),
        tuple(patient_shares.tolist()),
        tuple(definitions),
        _vocab_size(patient, doctors),
    )
    return GuidedModel(definition, params)


def _is_patient(reference: Transformer, patient: Transformer, doctor: Doctor) -> bool:
    """Whether a doctor's reference says what the patient says of every token."""
    return reference is patient and doctor.vocabulary is None


def _without_magnitudes(doctor: Doctor) -> Doctor:
    """A doctor with a DoRA adapter as a model of its own, for such adapters cannot be stacked."""
    if doctor.adapter is None or not has_magnitudes(doctor.adapter):
        return doctor
    merged = merge_adapter(doctor.model, doctor.adapter)
    return replace(doctor, model=merged, adapter=None, reference=doctor.reference or doctor.model)


def _together(doctors: Sequence[Doctor]) -> list[list[int]]:
    """Numbers of the doctors that are computed together: with adapters on one model and one vocabulary."""
    groups: dict[Any, list[int]] = {}
    for number, doctor in enumerate(doctors):
        alone = doctor.adapter is None
        name = (number,) if alone else ("on", id(doctor.model), id(doctor.vocabulary))
        groups.setdefault(name, []).append(number)
    return list(groups.values())


def _vocab_size(patient: Transformer, doctors: Sequence[Doctor]) -> int:
    """Tokens that can be written. Models of one family may pad their vocabularies differently: what all have."""
    sizes = {len(d.vocabulary) for d in doctors if d.vocabulary is not None}
    if len(sizes) > 1:
        raise ValueError(f"the vocabularies of a patient's doctors differ in size: {sorted(sizes)}")
    plain = [d.model.config.vocab_size for d in doctors if d.vocabulary is None]
    return min([patient.config.vocab_size, *sizes, *plain])


def _checked_alpha(alpha: float) -> jax.Array:
    if not (np.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be non-negative and finite, got {alpha}")
    return jnp.asarray(alpha, jnp.float32)


def _checked_betas(betas: Sequence[float], count: int) -> jax.Array:
    values = np.asarray(betas, np.float32)
    if values.shape != (count,):
        raise ValueError(f"betas: expected one for each of {count} doctors, got {list(np.ravel(betas))}")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"betas must be non-negative and finite, got {values.tolist()}")
    return jnp.asarray(values)


def _floor(plausibility: float) -> jax.Array:
    if not 0 <= plausibility <= 1:
        raise ValueError(f"plausibility must lie in [0, 1], got {plausibility}")
    return jnp.log(jnp.float32(plausibility))


def _exponent(shares: Sequence[float], betas: Float[Array, " K"]) -> Float[Array, ""]:
    # No matrix product: an accelerator would round the weights.
    return jnp.sum(jnp.asarray(shares, jnp.float32) * betas)


# Several members of an expert are more rows: those of a row lie together, row * A + member. In the cache they are more
# heads of the row.


def _repeated(x: jax.Array | None, members: int) -> Any:
    return x if x is None or members == 1 else jnp.repeat(x, members, axis=0)


def _apart(states: Float[Array, "BA *T D"], members: int) -> list[jax.Array]:
    """The hidden states of each member, [B, *T, D]."""
    rows = states.reshape(-1, members, *states.shape[1:])
    return [rows[:, index] for index in range(members)]


def _folded(cache: KVCache, members: int) -> KVCache:
    """A cache of B * A rows as one of B rows with A times the heads."""

    def fold(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // members, members * x.shape[1], *x.shape[2:])

    if members == 1:
        return cache
    return replace(
        cache,
        keys=jax.tree.map(fold, cache.keys),
        values=jax.tree.map(fold, cache.values),
        starts=cache.starts[::members],
    )
