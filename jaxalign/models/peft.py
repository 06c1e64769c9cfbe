"""Adapters in PEFT format: `adapter_config.json` and `adapter_model.safetensors`.

Where a family has several of our projections in one module (Phi-3, GLM-4, GPT-2, GPT-NeoX), PEFT has one adapter on it,
and we one on each projection. Both ways are exact: PEFT's first factor is that of each projection, and its second
factor is split by their outputs; n adapters of rank r are one of rank n r, whose second factor is n blocks.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig
from jaxalign.models.families import FAMILIES, Tensor, fuse, read_part
from jaxalign.models.folders import NOT_OF_A_MODEL
from jaxalign.models.layers import Adapter
from jaxalign.models.lora import TARGETS, LoraConfig
from jaxalign.models.transformer import parameter_shapes
from jaxalign.models.whole_folder import whole_folder
from jaxalign.processes import fetch
from jaxalign.remote import local

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
# Keys of adapter_config.json that make more, or something else, of an adapter.
UNSUPPORTED = (
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
)
Host = Mapping[str, Mapping[str, np.ndarray]]


def _modules(config: ModelConfig) -> list[Tensor]:
    """The modules of a layer that adapters can be on, as the family has them."""
    return [t for t in FAMILIES[config.family].layer if set(t.leaves) <= set(TARGETS)]


def _name(tensor: Tensor, config: ModelConfig, layer: int) -> str:
    """A module's whole name, for example model.layers.0.self_attn.q_proj."""
    return FAMILIES[config.family].trunk + tensor.name.removesuffix(".weight").format(i=layer)


def _ending(tensor: Tensor, config: ModelConfig) -> str:
    """What `target_modules` calls a module: its last name, or two where that means another one too (GPT-2's c_proj)."""
    names = [t.name.removesuffix(".weight") for t in _modules(config)]
    own = tensor.name.removesuffix(".weight").split(".")
    return own[-1] if [n.split(".")[-1] for n in names].count(own[-1]) == 1 else ".".join(own[-2:])


def _of_fan(tensor: Tensor, arrays: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Our arrays [..., outputs] of a module's projections as one in the order of its outputs."""
    return arrays[0] if len(arrays) == 1 else fuse(replace(tensor, kind="plain"), arrays, config.num_heads)


# --- writing ----------------------------------------------------------------------------------


def partly_fused(adapter: Adapter, config: ModelConfig) -> str:
    """Why a PEFT folder cannot hold an adapter; empty where it can."""
    for tensor in _modules(config):
        missing = [leaf for leaf in tensor.leaves if leaf not in adapter]
        there = [leaf for leaf in tensor.leaves if leaf in adapter]
        if there and missing and "magnitude" in adapter[there[0]]:
            return (
                f"{config.family} fuses {', '.join(tensor.leaves)} into one module, of which a DoRA adapter in a PEFT "
                f"folder needs all, but there is none on {', '.join(missing)}"
            )
    return ""


def save_adapter(
    adapter: Adapter,
    folder: str | Path,
    lora: LoraConfig,
    config: ModelConfig,
    *,
    base: str = "",
    revision: str = "",
    tokenizer: Any = None,
) -> Path:
    """Saves the trained leaves (`a`, `b`, with DoRA `magnitude`, by target) as a PEFT folder, atomically.

    In a family that fuses n projections into one module the rank of that module is n times that of the adapter, and
    alpha such that the scale is the same (`rank_pattern`, `alpha_pattern`).

    Args:
      adapter: the leaves.
      folder: destination; an existing adapter is replaced once the new one is complete.
      lora: its settings.
      config: the shape of the model that it adapts.
      base: folder or hub id of that model, which `peft.AutoPeftModelForCausalLM` loads it on; empty where it has
        none.
      revision: of a hub id.
      tokenizer: saved beside it where given.

    Raises:
      ModelError: a DoRA adapter on a part of a module that the family fuses (Phi-3, GLM-4, GPT-2, GPT-NeoX).
    """
    from safetensors.numpy import save_file

    if why := partly_fused(adapter, config):
        raise ModelError(f"{why}; use the merged export")
    leaves = ("a", "b", "magnitude")
    host: Host = fetch(
        {name: {k: v for k, v in part.items() if k in leaves} for name, part in adapter.items()}
    )
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    targets, convolutions = [], False
    for tensor in _modules(config):
        if not any(leaf in host for leaf in tensor.leaves):
            continue
        ending = _ending(tensor, config)
        targets.append(ending)
        convolutions |= tensor.kind == "conv1d"
        for layer in range(config.num_layers):
            name = f"base_model.model.{_name(tensor, config, layer)}"
            a, b = _factors(tensor, host, config, layer)
            ranks[ending] = len(a)
            tensors[f"{name}.{A}"], tensors[f"{name}.{B}"] = a, b
            if "magnitude" in host[next(leaf for leaf in tensor.leaves if leaf in host)]:
                parts = [host[leaf]["magnitude"][layer] for leaf in tensor.leaves]
                tensors[f"{name}.{MAGNITUDE}"] = np.ascontiguousarray(_of_fan(tensor, parts, config))
    other = {ending: rank for ending, rank in ranks.items() if rank != lora.rank}
    body = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": other,
        "alpha_pattern": {ending: lora.scale * _divisor(rank, lora.rslora) for ending, rank in other.items()},
        "lora_dropout": lora.dropout,
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": convolutions,
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
        "modules_to_save": None,
        "base_model_name_or_path": base or None,
        "revision": revision or None,
        "inference_mode": True,
    }
    folder = Path(folder)
    with whole_folder(folder, "adapter_config.json") as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(body, indent=2))
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    return folder


def _divisor(rank: int, rslora: bool) -> float:
    return rank**0.5 if rslora else rank


def _factors(tensor: Tensor, host: Host, config: ModelConfig, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's factors of a module in a layer: A [R, inputs] and B [outputs, R].

    R is the sum of the ranks of its projections. One without an adapter has zeros in both.
    """
    shapes = parameter_shapes(config)["layers"]
    like = next(host[leaf] for leaf in tensor.leaves if leaf in host)
    rank = like["a"].shape[-1]
    a, columns, count = [], [], len(tensor.leaves)
    for number, leaf in enumerate(tensor.leaves):
        _, inputs, outputs = shapes[leaf]
        part = host.get(leaf)
        a.append(np.zeros((inputs, rank), np.float32) if part is None else part["a"][layer])
        blocks = np.zeros((count, rank, outputs), np.float32)
        if part is not None:
            blocks[number] = part["b"][layer]
        columns.append(blocks.reshape(count * rank, outputs))
    b = _of_fan(tensor, columns, config)
    return np.ascontiguousarray(np.concatenate(a, axis=1).T), np.ascontiguousarray(b.T)


# --- reading ----------------------------------------------------------------------------------


def load_adapter(folder: str | Path, config: ModelConfig) -> tuple[dict[str, Any], LoraConfig]:
    """Loads a PEFT folder's adapter for a model of this configuration, and its settings.

    Returns:
      (trained leaves, config); pass `models.attach(leaves, config)` to a model. A module whose scale is not that of
      the settings (`alpha_pattern`) has it in its second factor.

    Raises:
      ModelError: no such folder, a method other than LoRA, rsLoRA and DoRA, ranks that differ between layers, or a
        missing, unexpected or wrongly shaped tensor.
    """
    from safetensors.numpy import load_file

    path = Path(local(folder, NOT_OF_A_MODEL))
    settings, weights = path / "adapter_config.json", path / "adapter_model.safetensors"
    for file in (settings, weights):
        if not file.is_file():
            raise ModelError(f"{file}: no such file; expected a PEFT folder")
    body = json.loads(settings.read_text())
    if body.get("peft_type") != "LORA" or body.get("bias", "none") != "none":
        raise ModelError(
            f"{settings}: only LoRA (with use_rslora or use_dora) without biases is supported, got peft_type="
            f"{body.get('peft_type')}, bias={body.get('bias', 'none')}"
        )
    if others := [name for name in UNSUPPORTED if body.get(name)]:
        raise ModelError(f"{settings}: {', '.join(others)}: not supported")
    lora = LoraConfig(
        enabled=True,
        rank=int(body["r"]),
        alpha=float(body["lora_alpha"]),
        rslora=bool(body.get("use_rslora")),
        dora=bool(body.get("use_dora")),
        dropout=float(body.get("lora_dropout", 0.0)),
    )
    tensors = load_file(weights)
    adapter: dict[str, Any] = {}
    for tensor in _modules(config):
        if f"base_model.model.{_name(tensor, config, 0)}.{A}" in tensors:
            adapter |= _loaded(tensor, tensors, weights, body, lora, config)
    if tensors:
        raise ModelError(f"{weights}: unexpected tensors for this model: {', '.join(sorted(tensors)[:4])}")
    return adapter, replace(lora, targets=tuple(adapter))


def _loaded(
    tensor: Tensor,
    tensors: dict[str, np.ndarray],
    file: Path,
    body: Mapping[str, Any],
    lora: LoraConfig,
    config: ModelConfig,
) -> dict[str, Any]:
    """The adapters of a module's projections; its tensors are taken away."""
    names = [_name(tensor, config, layer) for layer in range(config.num_layers)]
    shapes = [parameter_shapes(config)["layers"][leaf][1:] for leaf in tensor.leaves]
    inputs, outputs = shapes[0][0], sum(shape[1] for shape in shapes)
    ranks = {int(_by_pattern(body.get("rank_pattern"), name, lora.rank)) for name in names}
    alphas = {float(_by_pattern(body.get("alpha_pattern"), name, lora.alpha)) for name in names}
    if len(ranks) > 1 or len(alphas) > 1:
        raise ModelError(f"{file}: rank or alpha of {_ending(tensor, config)} differ between layers")
    rank, alpha = ranks.pop(), alphas.pop()

    def take(ending: str, shape: tuple[int, ...]) -> np.ndarray:
        arrays = []
        for name in names:
            # Before its version 0.9 PEFT had a `.weight` after it.
            key = f"base_model.model.{name}.{ending}"
            key = key if key in tensors or ending != MAGNITUDE else f"{key}.weight"
            if key not in tensors:
                raise ModelError(f"{file}: missing tensor {key}")
            arrays.append(np.asarray(tensors.pop(key), np.float32))
            if arrays[-1].shape != shape:
                raise ModelError(f"{file}: {key} has shape {list(arrays[-1].shape)}, expected {list(shape)}")
        return np.stack(arrays)

    a = take(A, (rank, inputs)).swapaxes(1, 2)
    b = take(B, (outputs, rank)).swapaxes(1, 2)
    scale = alpha / _divisor(rank, lora.rslora)
    if scale != lora.scale:
        b = b * np.float32(scale / lora.scale)
    magnitude = take(MAGNITUDE, (outputs,)) if lora.dora else None
    sizes, plain = [shape[1] for shape in shapes], replace(tensor, kind="plain")

    def own(number: int, array: np.ndarray) -> np.ndarray:
        """The outputs of one projection, of the module's along the last axis."""
        whole = (*(slice(0, n) for n in array.shape[:-1]), slice(0, sizes[number]))
        return read_part(plain, number, sizes, config.num_heads, array, whole)

    split = [own(number, b) for number in range(len(sizes))]
    factors = _blocks(a, split, lora.rank) or [(a, part) for part in split]
    found = {}
    for number, (leaf, (one, other)) in enumerate(zip(tensor.leaves, factors, strict=True)):
        if len(sizes) > 1 and not one.any():
            continue  # what `save_adapter` writes where a projection has no adapter
        found[leaf] = {"a": jnp.asarray(one), "b": jnp.asarray(other)}
        if magnitude is not None:
            found[leaf]["magnitude"] = jnp.asarray(own(number, magnitude))
    return found


def _blocks(
    a: np.ndarray, parts: Sequence[np.ndarray], rank: int
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """The factors of n adapters of a rank that lie in one of n times the rank, as `save_adapter` writes them."""
    if len(parts) == 1 or a.shape[-1] != len(parts) * rank:
        return None
    found = []
    for number, b in enumerate(parts):
        own = slice(number * rank, (number + 1) * rank)
        if np.delete(b, np.r_[own], axis=1).any():
            return None
        found.append((a[..., own], b[:, own]))
    return found


def _by_pattern(pattern: Mapping[str, Any] | None, name: str, otherwise: float) -> float:
    """What `rank_pattern` or `alpha_pattern` says of a module; as PEFT reads them."""
    return next((v for k, v in (pattern or {}).items() if re.match(rf"(.*\.)?({k})$", name)), otherwise)
