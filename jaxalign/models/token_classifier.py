"""Process reward models as Hugging Face token classifiers: what they call their head, and how many labels it has.

One label is the logit of a right step; of two, wrong and right (as TRL trains them), the difference is that logit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.families import Family
from jaxalign.models.tensor_files import Source


def is_token_classifier(config_json: Mapping[str, Any], head_file: Mapping[str, Any]) -> bool:
    """Whether a folder holds one, by the parsed config.json and jaxalign_head.json (empty where there is none)."""
    named = config_json.get("architectures") or [""]
    return head_file.get("level") == "token" or named[0].endswith("ForTokenClassification")


def take_head(
    tensors: dict[str, Source], family: Family, where: str, *, tokens: bool
) -> tuple[Source, Source | None]:
    """Removes the head of a classifier from the tensors: its weight [labels, width], and its bias [labels] if any.

    Args:
      tensors: by their names in the folder.
      family: the model's.
      where: the folder, for messages.
      tokens: it is a token classifier.

    Raises:
      ModelError: no head, or a wrong number of labels.
    """
    name = (family.token_head if tokens else "") or "score"
    if f"{name}.weight" not in tensors:
        raise ModelError(
            f"{where}: missing tensor {name}.weight; expected a reward model (one-label classifier)"
        )
    weight = tensors.pop(f"{name}.weight")
    if len(weight.shape) != 2 or weight.shape[0] not in ((1, 2) if tokens else (1,)):
        expected = "[1, width], a single label" + (", or [2, width], wrong and right" if tokens else "")
        raise ModelError(f"{where}: {name}.weight has shape {weight.shape}; expected {expected}")
    return weight, tensors.pop(f"{name}.bias", None)


def one_label(labels: np.ndarray) -> np.ndarray:
    """Of one label its numbers, of two the difference: [labels, ...] to [...]."""
    return labels[0] if len(labels) == 1 else labels[1] - labels[0]


def head_tensors(family: Family, weight: np.ndarray, bias: float, *, tokens: bool) -> dict[str, np.ndarray]:
    """The head under its names in the folder: `score.weight` [1, width], and of a token classifier its bias too."""
    if not (tokens and family.token_head):
        return {"score.weight": np.ascontiguousarray(weight[None])}
    return {
        f"{family.token_head}.weight": np.ascontiguousarray(weight[None]),
        f"{family.token_head}.bias": np.asarray([bias], weight.dtype),
    }
