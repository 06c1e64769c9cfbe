"""A doctor in files: the card that says whom it treats and how, and its head of log-values (LLMDoctor).

Beside the Hugging Face files of `export/` lie

    doctor.json                 a `DoctorCard`
    value_head.safetensors      the head's leaves, float32

Doctors of one run lie in folders of `export/`, which doctors.json names.
"""

import json
import math
import os
import tempfile
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxalign.config_values import Mismatch, coerce, type_name
from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig
from jaxalign.models.heads import HeadConfig, apply_head, create_head
from jaxalign.processes import fetch

CARD_FILE = "doctor.json"
VALUE_FILE = "value_head.safetensors"
LIST_FILE = "doctors.json"
FOLDERS = ("patient", "tokenizer", "reference", "base")


@dataclass(frozen=True, kw_only=True)
class DoctorCard:
    """What must be known of a doctor to let it guide.

    A folder that begins with a dot is relative to the card's own; `load_doctor_card` gives it in full.

    Attributes:
      patient: folder or hub id of the model whose faces gave the token rewards, the default to be guided; empty where
        it had none.
      tokenizer: folder or hub id of the tokenizer that both share.
      dimension: what the doctor stands for, for example helpfulness.
      preset: the preset it was trained by.
      guidance: how it guides: product (its log-probs are added) or ratio (to the log-probs of its reference).
      alpha: default exponent of the patient.
      beta: default exponent of the doctor.
      reference: folder or hub id of the model that the doctor began as, which ratio needs; empty where there is none.
      adapter: PEFT folder, relative to the card's; empty where all weights were trained.
      base: folder or hub id of the model that the adapter belongs to; empty where there is none.
      loss: the numbers of the loss that the doctor was trained by.
    """

    patient: str = ""
    tokenizer: str = "."
    dimension: str = ""
    preset: str = ""
    guidance: Literal["product", "ratio"] = "product"
    alpha: float = 1.0
    beta: float = 1.0
    reference: str = ""
    adapter: str = ""
    base: str = ""
    loss: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be non-negative and finite, got {value}")


def save_doctor(folder: str | Path, card: DoctorCard, value_params: Mapping[str, Any]) -> Path:
    """Writes the card and the head of log-values beside a model; the card last, so that it stands for both.

    Args:
      folder: of the doctor's Hugging Face files.
      card: what to write down.
      value_params: leaves of the head, see `create_value_head`.

    Raises:
      ModelError: the folder holds no model.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: no config.json; a doctor's card must be in the folder of its exported model"
        )
    host = fetch(value_params)
    tensors = {f"head.{name}": np.asarray(x, np.float32) for name, x in host["head"].items()}
    tensors |= {name: np.asarray(host[name], np.float32) for name in ("ramp", "horizon")}
    _place(folder / VALUE_FILE, save(tensors))
    _place(folder / CARD_FILE, json.dumps(asdict(card), indent=2, ensure_ascii=False).encode())
    return folder


def _place(path: Path, content: bytes) -> None:
    """The file, whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_doctor_card(folder: str | Path) -> DoctorCard:
    """The card of a doctor, from a run folder or from its `export/`.

    Raises:
      ModelError: no card there, or one that is damaged, naming the key.
    """
    path = _beside(folder, CARD_FILE)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(body, dict):
        raise ModelError(f"{path}: expected an object with the fields of a doctor's card")
    hints, values = typing.get_type_hints(DoctorCard), {}
    unknown = sorted(body.keys() - hints.keys())
    missing = [f.name for f in fields(DoctorCard) if f.name not in body and f.name != "loss"]
    if unknown or missing:
        what = f"unknown key {unknown[0]}" if unknown else f"the key {missing[0]} is missing"
        raise ModelError(f"{path}: {what}")
    for name, value in body.items():
        try:
            values[name] = coerce(value, hints[name])
        except Mismatch:
            raise ModelError(f"{path}: {name} is {value!r}, expected {type_name(hints[name])}") from None
    try:
        card = DoctorCard(**values)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None
    return replace(card, **{name: _in_full(getattr(card, name), path.parent) for name in FOLDERS})


def _in_full(name: str, folder: Path) -> str:
    return str((folder / name).resolve()) if name.startswith(".") else name


def doctor_folders(folder: str | Path) -> list[Path]:
    """The folders of the doctors in a run folder (or in its `export/`) that has several; else the folder itself.

    Raises:
      ModelError: a damaged list of them.
    """
    for place in (Path(folder), Path(folder) / "export"):
        path = place / LIST_FILE
        if path.is_file():
            try:
                return [place / str(name) for name in json.loads(path.read_text(encoding="utf-8"))["doctors"]]
            except (ValueError, KeyError, TypeError):
                raise ModelError(f'{path}: expected a list of doctor names, {{"doctors": [...]}}') from None
    return [Path(folder)]


def load_value_head(folder: str | Path) -> dict[str, Any]:
    """The leaves of a doctor's head of log-values (see `create_value_head`), from a run folder or its `export/`.

    Raises:
      ModelError: no such file, or one that is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = _beside(folder, VALUE_FILE)
    try:
        tensors = load_file(path)
        params = {"head": {n.removeprefix("head."): x for n, x in tensors.items() if n.startswith("head.")}}
        params |= {name: tensors[name] for name in ("ramp", "horizon")}
        if set(params["head"]) not in ({"score"}, {"score", "hidden", "hidden_bias"}):
            raise KeyError(f"the tensors of head are {', '.join(sorted(params['head'])) or 'missing'}")
    except (SafetensorError, KeyError) as error:
        raise ModelError(f"{path}: not a log-value head ({error})") from None
    return jax.tree.map(jnp.asarray, params)


def _beside(folder: str | Path, name: str) -> Path:
    """The file in a doctor's folder, or in the `export/` of a run's."""
    for place in (Path(folder), Path(folder) / "export"):
        if (place / name).is_file():
            return place / name
    several = doctor_folders(folder)
    if len(several) > 1 or several[0] != Path(folder):
        raise ModelError(
            f"{folder}: the folder has several doctors; name one: {', '.join(map(str, several))}"
        )
    raise ModelError(
        f"{folder}: no {name}; expected the run folder of a doctor (from `jaxalign tfpo`) or its export/"
    )


def create_value_head(
    config: ModelConfig, head_config: HeadConfig, *, key: jax.Array, ramp: float, horizon: float
) -> dict[str, Any]:
    """Fresh leaves of a head of log-values on a model of this shape, float32 whatever the model's dtype.

    Returns:
      "head"; "ramp", nats a token, and "horizon", tokens, scalars: see `log_values_before`.
    """
    head = create_head(replace(config, param_dtype="float32"), head_config, key=key)
    return {"head": head, "ramp": jnp.float32(ramp), "horizon": jnp.float32(horizon)}


def log_values_before(
    params: Mapping[str, Any],
    hidden: Float[Array, "B T D"],
    depth: Int[Array, "B T1"],
    head_config: HeadConfig | None = None,
    *,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "B T1"]:
    """log V of the T + 1 states around T tokens, nats, unbounded.

    log V = head(hidden) + ramp * (horizon - depth)

    Flow falls by -log pi with every token, some hundred nats over a response, which the ramp takes off the head.

    Args:
      params: leaves, of `create_value_head`.
      hidden: the state after each token; any float dtype, read in float32.
      depth: tokens of the response before each state.
      head_config: the head; None reads its kind off the leaves.
      dropout_key: for its dropout; None turns it off.

    Returns:
      float32; column t is before token t, column 0 (before any token) is the ramp alone.

    Source: arXiv:2601.10416 has V; the ramp is ours.
    """
    head = params["head"]
    config = head_config or HeadConfig(kind="mlp" if "hidden" in head else "linear")
    after = apply_head(config, head, hidden.astype(jnp.float32), products="float32", dropout_key=dropout_key)
    ramp = params["ramp"] * (params["horizon"] - depth.astype(jnp.float32))
    return jnp.pad(after, ((0, 0), (1, 0))) + ramp
