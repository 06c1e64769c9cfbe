"""Rotary settings of config.json, as transformers 4 and transformers 5 write them <-> those of `ModelConfig`."""

from collections.abc import Mapping
from typing import Any

from jaxalign.models.config import ModelConfig, RopeScaling

Json = Mapping[str, Any]

# Of any kind; and those that say nothing of the numbers.
_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
_ORIGINAL = "original_max_position_embeddings"
_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL},
    "yarn": {
        "factor", "attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", _ORIGINAL,
    },
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor", _ORIGINAL},
    "dynamic": {"factor"},
}  # fmt: skip
# What transformers leaves aside in other kinds than their own.
_KNOWN = _ALWAYS.union(*_KEYS.values())


def read_rope(config: Json, *, theta: float = 10_000.0, layers: str = "full_attention") -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and what they say of positions, as arguments of `ModelConfig`.

    From either place: `rope_parameters` (transformers 5), there by kind of layer in some families, or the older fields.

    Args:
      config: the body.
      theta: the base where none is given.
      layers: of families with settings by kind of layer, which kind.

    Raises:
      ValueError: a kind or a key that is not supported.
    """
    parameters = dict(config.get("rope_parameters") or {})
    if any(isinstance(v, Mapping) for v in parameters.values()):
        parameters = dict(parameters.get(layers) or {})
    field = "rope_parameters" if parameters else "rope_scaling"
    older = dict(config.get("rope_scaling") or {})
    for both in (parameters, older):
        if both.get("type"):
            both.setdefault("rope_type", both.pop("type"))
    # Written for both versions of transformers they say the same; where one was edited, the other is out of date.
    if differ := [key for key in older if key in parameters and older[key] != parameters[key]]:
        raise ValueError(
            f"rope_scaling.{differ[0]} is not rope_parameters.{differ[0]}; expected one of the two fields, or the same"
        )
    scaling = older | parameters
    kind = str(scaling.get("rope_type") or "default")
    if config.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # as its first releases called it
    if kind not in _KEYS:
        raise ValueError(f"{field} of type {kind!r} is not supported; expected one of {', '.join(_KEYS)}")
    if unknown := sorted(set(scaling) - _KNOWN):
        raise ValueError(f"{field}.{unknown[0]}: not supported")
    positions = int(config.get("max_position_embeddings") or 2048)
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or theta)
    return {"rope_theta": theta} | _scaling(kind, scaling, config, positions)


def _scaling(kind: str, scaling: Json, config: Json, positions: int) -> dict[str, Any]:
    """`rope_scaling`, `max_positions` and `folder_positions`."""
    arguments: dict[str, Any] = {"kind": "none" if kind == "default" else kind}
    factor, own = scaling.get("factor"), _KEYS[kind]
    if _ORIGINAL in own:
        # The top level counts first where it has one, as in Phi-3.
        original = int(config.get(_ORIGINAL) or scaling.get(_ORIGINAL) or positions)
        arguments["original_positions"] = original
        if kind != "llama3" and factor is None:
            factor = positions / original
    if "factor" in own:
        if factor is None:
            raise KeyError("factor")
        arguments["factor"] = float(factor)
    if kind == "llama3":
        arguments["low_frequency_factor"] = float(scaling["low_freq_factor"])
        arguments["high_frequency_factor"] = float(scaling["high_freq_factor"])
    if "attention_factor" in own and scaling.get("attention_factor") is not None:
        arguments["attention_factor"] = float(scaling["attention_factor"])
    if kind == "yarn":
        arguments["beta_fast"] = float(scaling.get("beta_fast") or 32)
        arguments["beta_slow"] = float(scaling.get("beta_slow") or 1)
        arguments["truncate"] = bool(scaling.get("truncate", True))
        if scaling.get("mscale") and scaling.get("mscale_all_dim"):
            arguments["mscale"] = float(scaling["mscale"])
            arguments["mscale_all_dim"] = float(scaling["mscale_all_dim"])
    most = positions
    if kind == "longrope":
        arguments["short_factor"] = tuple(float(x) for x in scaling["short_factor"])
        arguments["long_factor"] = tuple(float(x) for x in scaling["long_factor"])
        most = min(positions, arguments["original_positions"])
    if kind == "dynamic":
        arguments["original_positions"] = positions
    return {
        "rope_scaling": RopeScaling(**arguments),
        "max_positions": most,
        "folder_positions": 0 if most == positions else positions,
    }


def partial_rotary(config: Json, default: float = 1.0) -> float:
    """The part of a head that rotates."""
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or default)


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_rope`, in both places, so that transformers 4 and 5 read the same model."""
    scaling, kind = config.rope_scaling, config.rope_scaling.kind
    positions = config.folder_positions or config.max_positions
    body: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind}
    original = {_ORIGINAL: scaling.original_positions}
    result: dict[str, Any] = {"rope_theta": config.rope_theta, "max_position_embeddings": positions}
    if kind == "longrope":
        body |= {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
        if scaling.factor != positions / scaling.original_positions:
            body["factor"] = scaling.factor
        # On the top level as in Phi-3, where transformers 4 finds it too.
        result |= original
    elif kind != "none":
        body["factor"] = scaling.factor
    if kind == "llama3":
        body |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
        } | original
    if kind == "yarn":
        body |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        } | original
        if scaling.mscale:
            body |= {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
    if scaling.attention_factor is not None:
        body["attention_factor"] = scaling.attention_factor
    result["rope_parameters"] = {**body, "rope_theta": config.rope_theta} | (
        original if kind == "longrope" else {}
    )
    if kind != "none":
        result["rope_scaling"] = body
    return result
