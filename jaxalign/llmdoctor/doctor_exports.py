"""Several doctors in one folder, for `--doctor=FOLDER` to take all of them.

doctors.json    the names of their folders
NAME/           a doctor like any: merged model, tokenizer, doctor.json, head of log-values, adapter/ (PEFT)
start/          what they began as, where guidance needs it and no other folder has it
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxalign import models
from jaxalign.llmdoctor.doctor import LIST_FILE, DoctorCard, save_doctor
from jaxalign.llmdoctor.tfpo_config import START_FOLDER
from jaxalign.llmdoctor.tfpo_parts import START
from jaxalign.models.lora import LoraConfig, attach, merge_adapter
from jaxalign.models.peft import partly_fused
from jaxalign.runs.part import metadata_of
from jaxalign.training.core import exports
from jaxalign.training.core.exports import Origin


@dataclass(frozen=True, kw_only=True)
class DoctorParts:
    """What a doctor is exported of.

    Attributes:
      card: as of a run of its dimension alone.
      head: leaves of its head of log-values.
      adapter: LoRA leaves, as they are trained.
    """

    card: DoctorCard
    head: Mapping[str, Any]
    adapter: Any


def write_doctors(
    origin: Origin,
    doctors: Mapping[str, DoctorParts],
    base: Any,
    lora: LoraConfig,
    folder: Path,
    tokenizer: Any,
) -> None:
    """Writes doctors that are adapters on one base, all or none.

    Args:
      origin: of which checkpoint they are.
      doctors: by the name of the dimension.
      base: live.
      lora: the adapters' settings.
      folder: where.
      tokenizer: of all.
    """
    dtype, words = origin.weights_dtype(base.params), origin.tokenizer(tokenizer)

    def fill(place: Path) -> None:
        for name, parts in doctors.items():
            merged = merge_adapter(base, attach(parts.adapter, lora))
            models.save_pretrained(merged, place / name, tokenizer=words, dtype=dtype)
            card = replace(parts.card, adapter="")
            if card.patient.startswith(".."):  # of the run, which may be elsewhere
                card = replace(card, patient=str((origin.run / "patient").resolve()))
            if not partly_fused(parts.adapter, base.config):
                models.save_adapter(
                    parts.adapter,
                    place / name / "adapter",
                    lora,
                    base.config,
                    tokenizer=words,
                    **named(origin),
                )
                card = replace(card, adapter="./adapter" if parts.card.adapter else "")
            save_doctor(place / name, card, parts.head)
            about = replace(origin, metadata=metadata_of(dict(origin.metadata), name))
            (place / name / "README.md").write_text(about.card("model", dtype), encoding="utf-8")
        if any(parts.card.reference == START for parts in doctors.values()):
            models.save_pretrained(base, place / START_FOLDER, tokenizer=words, dtype=dtype)
        (place / LIST_FILE).write_text(json.dumps({"doctors": list(doctors)}), encoding="utf-8")

    exports.write_folder(origin, folder, LIST_FILE, "doctors", dtype, fill)


def named(origin: Origin) -> dict[str, str]:
    """How an adapter names its base: not at all where its weights were drawn from a seed."""
    drawn = ((origin.metadata.get("models") or {}).get("model") or {}).get("random_init", False)
    return {"base": "" if drawn else origin.base, "revision": "" if drawn else origin.revision}
