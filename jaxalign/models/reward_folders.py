"""Folders of reward models: of one, in the layout of transformers, and of an ensemble, one such folder a member.

An ensemble's `ensemble.json` names the members' folders.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxalign.errors import ModelError
from jaxalign.mesh import Rules
from jaxalign.models.families import FAMILIES, config_to_json
from jaxalign.models.folders import NOT_OF_A_MODEL
from jaxalign.models.gguf.head import is_gguf
from jaxalign.models.heads import HeadConfig, ScalarModel, StepConfig
from jaxalign.models.huggingface import (
    ENSEMBLE_FILE,
    MAX_SHARD_BYTES,
    from_tensors,
    load_config,
    local_folder,
    to_tensors,
    write_folder,
)
from jaxalign.models.sharding import to_device
from jaxalign.models.tensor_files import leaf_of, on_host, outgoing, read_json, read_tensors, read_whole
from jaxalign.models.token_classifier import head_tensors, is_token_classifier, one_label, take_head
from jaxalign.models.transformer import with_dtypes
from jaxalign.models.whole_folder import whole_folder
from jaxalign.remote import local

HEAD_FILE = "jaxalign_head.json"


def load_reward_model(
    folder: str | Path,
    *,
    param_dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    revision: str | None = None,
) -> ScalarModel:
    """A scalar model from a `...ForSequenceClassification` folder with one label.

    A `...ForTokenClassification` folder gives a process reward model, whose `steps` are set; see `token_classifier`.
    Arguments are those of `load_pretrained`.

    Raises:
      ModelError: as `load_pretrained`; or the folder holds no scalar head.
    """
    path = local_folder(folder, revision)
    if is_gguf(path):
        raise ModelError(
            f"{path}: a GGUF file is a language model, without a head for scores; expected a reward model"
        )
    config = with_dtypes(load_config(path), param_dtype or "float32", compute_dtype or "float32")
    config = replace(config, tied_head=True, head_bias=False)
    tensors = read_tensors(path)
    extra = json.loads((path / HEAD_FILE).read_text()) if (path / HEAD_FILE).is_file() else {}
    head_config = HeadConfig(**extra.get("head", {}))
    tokens = is_token_classifier(read_json(path / "config.json"), extra)
    score, bias = take_head(tensors, FAMILIES[config.family], str(path), tokens=tokens)
    hidden = {}
    if head_config.kind == "mlp":
        for ours, theirs in (("hidden", "score_hidden.weight"), ("hidden_bias", "score_hidden.bias")):
            if theirs not in tensors:
                raise ModelError(f"{path}: the tensor {theirs} is missing")
            hidden[ours] = tensors.pop(theirs)
    # Names and shapes are checked before any number is read.
    trunk = from_tensors(tensors, config, str(path))
    head = {"score": one_label(read_whole(score))} | {ours: read_whole(x).T for ours, x in hidden.items()}
    normalizer = {
        "gain": np.float32(extra.get("gain", 1.0)),
        "bias": np.float32(extra.get("bias", 0.0 if bias is None else one_label(read_whole(bias)))),
    }
    params = {"trunk": trunk} | jax.tree.map(leaf_of, {"head": head, "normalizer": normalizer})
    steps = StepConfig(separator=extra.get("separator", "")) if tokens else None
    config = replace(config, mesh=mesh if mesh is not None and mesh.size > 1 else None)
    placed = to_device(params, config.param_dtype, mesh=mesh, rules=rules)
    return ScalarModel(config, head_config, placed, steps)


def save_reward_model(
    model: ScalarModel, folder: str | Path, *, tokenizer: Any = None, dtype: str | None = None
) -> Path:
    """Writes a scalar model in the `...ForSequenceClassification` layout, whole or not at all.

    A process reward model is written as `...ForTokenClassification` with one label, the logit of a right
    step (Gemma 3, which has no such class in transformers, as `...ForSequenceClassification`); that it is
    one, and its separator, stand in `jaxalign_head.json`.
    A linear head whose normalizer is 1 and 0 loads in transformers as it is. Gain, bias and
    an MLP head are ours: they go to `jaxalign_head.json` (as numbers, whatever the `dtype`) and `score_hidden.*`.
    Arguments and errors are those of `save_pretrained`.
    """
    config, params = model.config, model.params
    family, tokens = FAMILIES[config.family], model.steps is not None
    tensors = to_tensors(params["trunk"], config)
    head = jax.tree.map(on_host, params["head"])
    small = head_tensors(family, head["score"], float(params["normalizer"]["bias"]), tokens=tokens)
    if model.head_config.kind == "mlp":
        small |= {"score_hidden.weight": head["hidden"].T, "score_hidden.bias": head["hidden_bias"]}
    tensors |= {name: outgoing(array) for name, array in small.items()}
    extra = {
        "head": asdict(model.head_config),
        "gain": float(params["normalizer"]["gain"]),
        "bias": float(params["normalizer"]["bias"]),
    }
    if model.steps is not None:
        extra |= {"level": "token", "separator": model.steps.separator}
    body = config_to_json(config) | {
        "architectures": [(tokens and family.token_architecture) or family.reward_architecture],
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "problem_type": None if tokens else "regression",
        "tie_word_embeddings": True,
    }
    extra_files = {HEAD_FILE: extra}
    return write_folder(
        Path(folder), body, tensors, tokenizer, config, MAX_SHARD_BYTES, extra_files, dtype=dtype
    )


def is_reward_model(folder: str | Path) -> bool:
    """Whether the folder holds a model that scores whole texts, by its config.json, or an ensemble of them."""
    path = Path(folder)
    if is_reward_ensemble(path):
        return True
    if not (path / "config.json").is_file():
        return False
    names = read_json(path / "config.json").get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")


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
    folder: str | Path,
    *,
    param_dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
) -> list[ScalarModel]:
    """The members of an ensemble, in the order of its `ensemble.json`. Arguments are those of `load_pretrained`.

    Raises:
      ModelError: no ensemble, an `ensemble.json` that names no folders, or a member that cannot be read.
    """
    path = Path(local(folder, NOT_OF_A_MODEL))
    if not is_reward_ensemble(path):
        raise ModelError(f"{path}: no {ENSEMBLE_FILE}; expected a reward ensemble")
    try:
        names = json.loads((path / ENSEMBLE_FILE).read_text())["members"]
        members = [path / name for name in names]
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f'{path / ENSEMBLE_FILE}: expected {{"members": ["member-0", ...]}}, folders beside this file'
        ) from None
    if not members:
        raise ModelError(f"{path / ENSEMBLE_FILE}: no members")
    missing = [str(member) for member in members if not member.is_dir()]
    if missing:
        raise ModelError(f"{path / ENSEMBLE_FILE}: no such folder: {', '.join(missing)}")
    return [
        load_reward_model(member, param_dtype=param_dtype, compute_dtype=compute_dtype, mesh=mesh)
        for member in members
    ]
