"""The models that a run holds on its devices beside what its optimizer step reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.models.tensor_dtypes import device_dtype
from jaxalign.plan.program import held
from jaxalign.plan.shapes import parameters_of, placed
from jaxalign.plan.steps import reference_shape, shape_on
from jaxalign.training.core import setup
from jaxalign.training.rl.grpo import Trainer as GRPOTrainer

# Command -> whether its trainer scores rollouts with a reference.
READS_REFERENCE = {
    "grpo": GRPOTrainer.reads_reference,
    "online-dpo": lambda config: True,
    "ppo": lambda config: config.kl.measured,
}


def beside(command: str, config: Any, shape: models.ModelConfig, mesh: Mesh) -> dict[str, int]:
    """Bytes of a device by model, of those that score rollouts: they stay while it samples and while it learns.

    With `train.offload` they wait in the host's memory. Under an adapter the base is the reference, at no cost.

    Args:
      command: the training command.
      config: its configuration.
      shape: the policy's.
      mesh: the devices.

    Raises:
      ModelError: a folder of a reference or reward model without config.json.
    """
    if command not in READS_REFERENCE:
        return {}
    offloaded = config.train.offload and mesh.devices.flat[0].platform != "cpu"
    found = {}
    if READS_REFERENCE[command](config) and (config.reference.path or not config.lora.enabled):
        found["reference model"] = parameters_of(reference_shape(config, shape, mesh), mesh)
    for number, folder in enumerate(_reward_folders(config.reward)):
        # In float32, whatever the policy's, and without a vocabulary head.
        scalar = replace(models.load_config(folder), param_dtype="float32", tied_head=True, head_bias=False)
        found["reward model" if not number else f"reward model {number + 1}"] = parameters_of(scalar, mesh)
    return {} if offloaded else {name: held(tree) for name, tree in found.items()}


def _reward_folders(source: Any) -> list[Path | str]:
    if source.models:
        return [setup.model_folder(path) for path in source.models]
    if not source.model:
        return []
    folder = setup.model_folder(source.model)
    if models.is_reward_ensemble(folder):
        return sorted(path for path in Path(folder).glob("member-*") if path.is_dir())
    return [folder]


def patient_bytes(config: Any, mesh: Mesh) -> int:
    """Bytes of a device of the patient's weights, which are let go before a TFPO run loads its doctor."""
    source, device = config.patient, mesh.devices.flat[0]
    if not source.path:
        return 0
    shape = models.load_config(setup.model_folder(source.path), revision=source.revision or None)
    shape = shape_on(shape, replace(source, param_dtype=device_dtype(source.param_dtype, device)), mesh)
    tree = parameters_of(shape, mesh)
    if source.weights == "int8":
        tree = placed(jax.eval_shape(models.quantize_params, tree), mesh)
    return held(tree)
