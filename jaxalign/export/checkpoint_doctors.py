"""What an export of a TFPO checkpoint has beside the model: cards, heads of log-values, adapters; several doctors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import llmdoctor, models
from jaxalign.llmdoctor.doctor import DoctorCard
from jaxalign.models.peft import partly_fused
from jaxalign.runs.part import metadata_of
from jaxalign.training.core.members import member_of


def add_doctor(one: Any, trained: Any, begun: Any, place: Path) -> None:
    """Adds a doctor's card and head to its export, and what the card names that is in no folder yet.

    Args:
      one: the `checkpoint_export.Checkpoint`.
      trained: the policy's trained leaves.
      begun: the model without its adapter, or with the trained leaves.
      place: the folder.
    """
    card, lora = _card(one, one.config, one.origin.metadata), one.config.lora
    if card.adapter:
        named = {"base": one.origin.base, "revision": one.origin.revision, "tokenizer": one.tokenizer}
        card = replace(card, adapter="")
        if not partly_fused(trained, begun.config):
            models.save_adapter(trained, place / "adapter", lora, begun.config, **named)
            card = replace(card, adapter="./adapter")
    if card.patient.startswith(".."):
        card = replace(card, patient=str((one.run / "patient").resolve()))
    if card.reference.startswith(".."):
        models.save_pretrained(_begun(one, begun), place / "start", tokenizer=one.tokenizer)
        card = replace(card, reference="./start", base="./start" if card.base else "")
    llmdoctor.save_doctor(place, card, _value_head(one.params["value"], one.origin.metadata))


def write_several(one: Any, folder: Path) -> None:
    """Writes the doctors of several dimensions; `one` as for `add_doctor`."""
    from jaxalign.llmdoctor.doctor_exports import DoctorParts, write_doctors

    policy, trained, base = one.policy()
    doctors = {}
    for index, (name, config) in enumerate(one.config.each().items()):
        metadata = metadata_of(dict(one.origin.metadata), name)
        doctors[name] = DoctorParts(
            card=_card(one, config, metadata),
            head=_value_head(member_of(one.params["value"], index), metadata),
            adapter=member_of(trained, index),
        )
    model = models.merge(policy.definition, base)
    write_doctors(one.origin, doctors, model, one.config.lora, folder, one.tokenizer)


def _begun(one: Any, model: Any) -> Any:
    """What the doctor began as: the frozen base of an adapter, else read (or drawn) anew."""
    if one.config.lora.enabled:
        return model
    return models.merge(models.Definition(model.config), one.base_params())


def _card(one: Any, config: Any, metadata: Mapping[str, Any]) -> DoctorCard:
    """The card of a doctor (by configuration and metadata of its own) as the run writes it at its end."""
    from jaxalign.llmdoctor.tfpo_config import TFPONumbers
    from jaxalign.llmdoctor.tfpo_parts import doctor_card

    numbers = TFPONumbers(**metadata["loss"])
    known = metadata.get("models") or {}
    source = "" if one.base.get("random_init") or "model" not in known else one.base["path"]
    return doctor_card(config, numbers, source, named="patient" in known)


def _value_head(trained: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """All leaves of a head of log-values, of those that are trained."""
    starts = metadata.get("value_start") or {}
    return {**trained, "horizon": np.float32(starts.get("horizon", 0.0))}
