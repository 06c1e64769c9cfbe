"""LLMDoctor: token rewards by contrastive prompts, doctors trained on them (TFPO), and decoding that they guide.

Source: arXiv:2601.10416. `tfpo.train_tfpo` trains; `guide` and `load_guided` make a model that samples.
"""

from jaxalign.llmdoctor.contrastive_prompts import (
    INSTRUCTION_PAIRS,
    ContrastiveFormat,
    ContrastiveRows,
    InstructionPair,
)
from jaxalign.llmdoctor.doctor import (
    DoctorCard,
    create_value_head,
    load_doctor_card,
    load_value_head,
    log_values_before,
    save_doctor,
)
from jaxalign.llmdoctor.guided import Doctor, GuidedDefinition, GuidedModel, guide
from jaxalign.llmdoctor.guided_folders import GuideConfig, load_guided

__all__ = [
    "INSTRUCTION_PAIRS",
    "Doctor",
    "DoctorCard",
    "ContrastiveFormat",
    "ContrastiveRows",
    "GuideConfig",
    "GuidedDefinition",
    "GuidedModel",
    "InstructionPair",
    "create_value_head",
    "guide",
    "load_doctor_card",
    "load_guided",
    "load_value_head",
    "log_values_before",
    "save_doctor",
]
