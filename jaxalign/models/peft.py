"""Adapters in PEFT format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig
from jaxalign.models.families import FAMILIES
from jaxalign.models.folders import NOT_OF_A_MODEL
from jaxalign.models.layers import Adapter
from jaxalign.models.lora import TARGETS, LoraConfig
from jaxalign.models.transformer import parameter_shapes
from jaxalign.models.whole_folder import whole_folder
from jaxalign.processes import fetch
from jaxalign.remote import local


def _module_names(config: ModelConfig) -> dict[str, str]:
    """target -> module name in the family, for example layers.{i}.self_attn.q_proj."""
    names = {}
    for tensor in FAMILIES[config.family].layer:
        if len(tensor.leaves) == 1 and tensor.leaves[0] in TARGETS:
            names[tensor.leaves[0]] = tensor.name.removesuffix(".weight")
    return names


def fused_targets(targets: Iterable[str], config: ModelConfig) -> list[str]:
    """The targets of an adapter that a PEFT folder cannot hold, as the family has them in one module with others."""
    names = _module_names(config)
    return [target for target in targets if target not in names]


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
    """Saves the trained leaves (`a`, `b` by target) as a PEFT folder, atomically.

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
      ModelError: the family fuses a target into one module (Phi-3, GPT-2, GPT-NeoX q/k/v), which PEFT
        would adapt as a whole; merge the adapter instead.
    """
    from safetensors.numpy import save_file

    names = _module_names(config)
    if fused := fused_targets(adapter, config):
        raise ModelError(
            f"{config.family} fuses {', '.join(fused)} into one module, so a PEFT folder cannot hold this adapter; "
            "use the merged export"
        )
    host = fetch(adapter)
    trunk = FAMILIES[config.family].trunk
    tensors = {}
    for target, part in host.items():
        for layer in range(config.num_layers):
            module = f"base_model.model.{trunk}{names[target].format(i=layer)}"
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(np.asarray(part["a"][layer]).T)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(np.asarray(part["b"][layer]).T)
    body = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({names[t].rpartition(".")[2] for t in adapter}),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
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


def load_adapter(folder: str | Path, config: ModelConfig) -> tuple[dict[str, Any], LoraConfig]:
    """Loads a PEFT folder's adapter for a model of this configuration, and its settings.

    Returns:
      (trained leaves, config); pass `models.attach(leaves, config)` to a model.

    Raises:
      ModelError: no such folder, a method other than plain LoRA, or a missing, unexpected or wrongly shaped tensor.
    """
    from safetensors.numpy import load_file

    path = Path(local(folder, NOT_OF_A_MODEL))
    settings, weights = path / "adapter_config.json", path / "adapter_model.safetensors"
    for file in (settings, weights):
        if not file.is_file():
            raise ModelError(f"{file}: no such file; expected a PEFT folder")
    body = json.loads(settings.read_text())
    if body.get("peft_type") != "LORA" or body.get("use_dora") or body.get("bias", "none") != "none":
        raise ModelError(
            f"{settings}: only plain LoRA without biases is supported, got {body.get('peft_type')}"
        )
    if body.get("rank_pattern") or body.get("alpha_pattern") or body.get("modules_to_save"):
        raise ModelError(f"{settings}: rank_pattern, alpha_pattern and modules_to_save are not supported")
    rank, alpha = int(body["r"]), float(body["lora_alpha"])
    if body.get("use_rslora"):
        alpha *= rank**0.5  # alpha / sqrt(r), written as alpha' / r
    tensors = load_file(weights)
    shapes, trunk = parameter_shapes(config)["layers"], FAMILIES[config.family].trunk
    adapter: dict[str, Any] = {}
    for target, module in _module_names(config).items():
        names = [f"base_model.model.{trunk}{module.format(i=layer)}" for layer in range(config.num_layers)]
        if f"{names[0]}.lora_A.weight" not in tensors:
            continue
        part = {}
        for leaf, ending in (("a", "lora_A.weight"), ("b", "lora_B.weight")):
            arrays = []
            _, inputs, outputs = shapes[target]
            expected = (inputs, rank) if leaf == "a" else (rank, outputs)
            for name in names:
                key = f"{name}.{ending}"
                if key not in tensors:
                    raise ModelError(f"{weights}: missing tensor {key}")
                arrays.append(tensors.pop(key).T)
                if arrays[-1].shape != expected:
                    raise ModelError(
                        f"{weights}: {key} has shape {list(arrays[-1].shape[::-1])}, expected {list(expected[::-1])}"
                    )
            part[leaf] = jnp.asarray(np.stack(arrays), jnp.float32)
        adapter[target] = part
    if tensors:
        raise ModelError(f"{weights}: unexpected tensors for this model: {', '.join(sorted(tensors)[:4])}")
    dropout = float(body.get("lora_dropout", 0.0))
    return adapter, LoraConfig(enabled=True, rank=rank, alpha=alpha, dropout=dropout, targets=tuple(adapter))
