"""Folders of reward ensembles: one ordinary reward folder a member, and `ensemble.json`, which names them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import ModelError
from jaxalign.models.heads import ScalarModel
from jaxalign.models.huggingface import ENSEMBLE_FILE, load_reward_model, save_reward_model
from jaxalign.models.whole_folder import whole_folder


def is_reward_ensemble(folder: str | Path) -> bool:
    """Whether the folder holds an ensemble of reward models."""
    return (Path(folder) / ENSEMBLE_FILE).is_file()


def save_reward_ensemble(
    members: Sequence[ScalarModel], folder: str | Path, *, tokenizer: Any = None, dtype: str | None = None
) -> Path:
    """Writes `member-0`, `member-1`, ... (see `save_reward_model`) and `ensemble.json`, whole or not at all.

    Args:
      members: at least one.
      folder: where; an ensemble that is there is replaced once the new one is complete.
      tokenizer: saved with every member where given, so that each loads alone.
      dtype: of the weights, as in `save_pretrained`.
    """
    folder = Path(folder)
    names = [f"member-{index}" for index in range(len(members))]
    with whole_folder(folder, ENSEMBLE_FILE) as temporary:
        for name, member in zip(names, members, strict=True):
            save_reward_model(member, temporary / name, tokenizer=tokenizer, dtype=dtype)
        (temporary / ENSEMBLE_FILE).write_text(json.dumps({"members": names}, indent=2))
    return folder


def load_reward_ensemble(
    folder: str | Path, *, param_dtype: Any = None, compute_dtype: Any = None
) -> list[ScalarModel]:
    """The members of an ensemble, in the order of its `ensemble.json`.

    Raises:
      ModelError: no ensemble, an `ensemble.json` that names no folders, or a member that cannot be read.
    """
    path = Path(folder)
    if not is_reward_ensemble(path):
        raise ModelError(f"{path}: no {ENSEMBLE_FILE}; expected a reward ensemble")
    try:
        names = json.loads((path / ENSEMBLE_FILE).read_text())["members"]
        found = [path / name for name in names]
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f'{path / ENSEMBLE_FILE}: expected {{"members": ["member-0", ...]}}, folders beside this file'
        ) from None
    if not found:
        raise ModelError(f"{path / ENSEMBLE_FILE}: no members")
    missing = [str(member) for member in found if not member.is_dir()]
    if missing:
        raise ModelError(f"{path / ENSEMBLE_FILE}: no such folder: {', '.join(missing)}")
    return [
        load_reward_model(member, param_dtype=param_dtype, compute_dtype=compute_dtype) for member in found
    ]
