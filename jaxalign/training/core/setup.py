"""From a configuration to live objects: devices, seeds, models, adapters, exports."""

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign import models, processes
from jaxalign.checkpoints.orbax_store import CheckpointStore
from jaxalign.data import (
    packed,
    with_loss_positions,
)
from jaxalign.determinism import check_determinism
from jaxalign.errors import ConfigError
from jaxalign.kernels.frozen import Frozen
from jaxalign.mesh import (
    MeshConfig,
    devices_of,
    length_shards,
    make_mesh,
    replicated,
    row_shards,
    shard_batch,
)
from jaxalign.models.folders import model_folder as model_folder
from jaxalign.models.lora import LoraConfig, create_adapter
from jaxalign.models.sharding import on_mesh as on_mesh_params
from jaxalign.models.tensor_dtypes import ComputeDtype
from jaxalign.runs import Run, RunConfig
from jaxalign.training.core import exports
from jaxalign.training.core.batch import Kind
from jaxalign.training.core.implementations import with_implementations
from jaxalign.training.core.mesh_fit import tell_fit
from jaxalign.training.core.opening import tell_model
from jaxalign.training.core.scoring import CausalPolicy, ScalarPolicy

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from and in what precision it runs.

    Attributes:
      path: a Hugging Face folder, a GGUF file, a run folder or a hub id.
      tokenizer: folder or hub id of the tokenizer; empty uses the model's own.
      revision: revision of a hub id; empty uses the newest.
      context: longest row in tokens; 0 takes the model's own (of longrope models the length before it is stretched,
        max_position_embeddings for the others). It decides on the rotary frequencies of longrope and dynamic models,
        and YaRN models can read longer rows than their config.json says.
      router_loss: factor of the load-balancing loss of a mixture of experts (Mixtral, Qwen3-MoE) in the training loss;
        -1 takes the model's own (router_aux_loss_coef).
      param_dtype: dtype in which parameters are stored and updated.
      compute_dtype: dtype of matrix products; norms, softmax and losses always use float32. auto is bfloat16 on GPUs
        and TPUs and float32 on CPUs, and keeps the run's choice on resume. A CPU without bfloat16 instructions uses
        float32 instead, unless products says otherwise. float16 is for GPUs without bfloat16 (T4,
        V100): the loss is scaled dynamically, and steps whose gradient overflows are skipped and counted.
      random_init: read only config.json from `path` and initialize the weights at random from run.seed.
      remat: activations of each layer to store for the backward pass; the rest are recomputed, which saves memory.
        From most memory to least: none (store all), minimal (matrix products), save_qkv_context (attention's products
        and its output), save_context (attention's output), full (nothing) and offload (nothing, and each
        layer's input in the host's memory). true means full, false means none.
      attention: attention implementation; all give the same result: plain, blockwise (fast on CPUs), cudnn (NVIDIA
        GPUs) or splash (TPUs). auto picks a fast one that supports this device and model, and keeps the run's choice
        on resume.
      products: how bfloat16 matrix products are computed: compute_dtype (GPUs, TPUs), bfloat16_float32 (CPUs with AMX
        or AVX-512 BF16) or float32 (other CPUs; activations too). auto chooses in the same way; metadata.json
        records both choices.
    """

    path: str = ""
    tokenizer: str = ""
    revision: str = ""
    context: int = 0
    router_loss: float = -1.0
    param_dtype: Dtype = "float32"
    compute_dtype: ComputeDtype = "auto"
    random_init: bool = False
    remat: models.Remat | bool = "none"
    attention: Literal["auto"] | models.AttentionImplementation = "auto"
    products: Literal["auto"] | models.MatmulImplementation = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "remat", models.remat_level(self.remat))
        if self.router_loss < 0 and self.router_loss != -1:
            raise ValueError(f"router_loss must be 0 or more, or -1, got {self.router_loss}")


@dataclass(frozen=True)
class TrainResult:
    """What a training call returns.

    Attributes:
      folder: the run folder.
      metrics: the final metrics by name.
      model: the trained model, live (adapters merged).
      tokenizer: its tokenizer.
    """

    folder: Path
    metrics: Mapping[str, float]
    model: Any
    tokenizer: Any


def start(run: RunConfig, mesh: MeshConfig) -> Mesh:
    """Seeds Python and NumPy, picks the devices, and makes the mesh."""
    if run.distributed not in ("auto", "false"):  # a command has joined already; a caller in Python may have
        processes.join(run.distributed)
    random.seed(run.seed)
    np.random.seed(run.seed % 2**32)
    devices = devices_of(run.device)
    if run.deterministic:
        check_determinism(devices[0].platform)
    return make_mesh(mesh, devices)


def default_device(mesh: Mesh) -> AbstractContextManager[Any]:
    """Within it, arrays without a place of their own lie on a device of the mesh's kind, for which programs compile."""
    device = mesh.local_devices[0]
    return nullcontext() if device.platform == jax.default_backend() else jax.default_device(device)


def load_model(
    source: ModelSource,
    mesh: Mesh,
    *,
    seed: int,
    section: str = "model",
    run: Run | None = None,
    packing: bool = False,
    mapped: bool = False,
    weights: models.Weights = "same",
) -> tuple[Any, Any]:
    """The model and tokenizer that `source` names, with attention and matrix products that suit the devices.

    Args:
      source: what the configuration names.
      mesh: the devices.
      seed: of random weights.
      section: of the configuration, for messages and records.
      run: records the implementations, and gives back those that it began with; None where there is no run.
      packing, mapped: whether it will read packed rows, or several of it run as one; not every
        implementation can everywhere.
      weights: what is quantized, see `models.quantize`.

    Raises:
      ConfigError: no path, or an implementation that cannot run here.
      ModelError: a folder, tensor or tokenizer that is wrong.
    """
    if not source.path:
        raise ConfigError(
            f"{section}.path: expected a Hugging Face folder, a GGUF file, a run folder or a hub id; got nothing"
        )
    folder = exports.begun_with(run, section, source.path)
    revision = source.revision or None
    device = mesh.devices.flat[0]
    param_dtype, _ = exports.kept_dtype(run, section, source, "param_dtype", device)
    compute_dtype, why = exports.kept_dtype(run, section, source, "compute_dtype", device)
    if run is not None:
        exports.note_model(run, section, folder, source)
    shape = models.load_config(folder, revision=revision, context=source.context, key=f"{section}.context")
    if mesh.size > 1:
        tell_fit(run, section, shape, mesh)
    tokenizer = models.load_tokenizer(
        source.tokenizer or folder, revision=None if source.tokenizer else revision
    )
    dtypes: dict[str, Any] = {
        "param_dtype": jnp.dtype(param_dtype),
        "compute_dtype": jnp.dtype(compute_dtype),
    }
    if source.random_init:
        model = models.create(shape, key=jax.random.key(seed), **dtypes)
        model = models.quantize(model, weights)
    else:
        model = models.load_pretrained(
            folder, revision=revision, context=source.context, mesh=mesh, weights=weights, **dtypes
        )
    model = models.with_remat(model, source.remat)
    if source.router_loss >= 0:
        mixture = replace(model.config.mixture, balance=source.router_loss)
        model = models.with_config(model, mixture=mixture)
    models.check_vocabulary(model.config, tokenizer)
    model = models.with_stops(model, models.tokenizer_stops(tokenizer))
    model = with_implementations(
        model, source, mesh, section=section, run=run, packing=packing, mapped=mapped
    )
    model = place_model(model, mesh)
    if run is not None:
        tell_model(run, section, source, model, why)
    return model, tokenizer


def check_live(model: Any, tokenizer: Any, name: str = "model") -> None:
    """A live model comes with its tokenizer.

    Raises:
      ConfigError: one of the two alone, or a folder in place of a model.
    """
    if isinstance(model, (str, Path)):
        raise ConfigError(
            f"{name}: expected a live model, got {str(model)!r}; set model.path to load a folder"
        )
    if (model is None) != (tokenizer is None):
        there, missing = ("tokenizer", name) if model is None else (name, "tokenizer")
        raise ConfigError(f"{there}: passed without {missing}; a live model needs both")


def load_reference(config: Any, policy: Any, mesh: Mesh, run: Run | None, *, read: bool = True) -> Any:
    """The model that `config.reference` names, of the policy's run; the policy where it names none or none is read."""
    if not (config.reference.path and read):
        return policy
    # It reads the policy's rows.
    source = replace(config.reference, context=config.reference.context or config.model.context)
    reference, _ = load_model(
        source,
        mesh,
        seed=config.run.seed,
        section="reference",
        run=run,
        packing=config.train.packing,
    )
    return models.with_config(reference, exact=policy.config.exact)


def place_model(model: Any, mesh: Mesh) -> Any:
    """The model with its parameters laid out on the mesh, which its custom calls are split over."""
    definition, params = models.split(models.with_config(model, mesh=mesh if mesh.size > 1 else None))
    return models.merge(definition, place_params(params, mesh))


def placed(live: Any, mesh: Mesh, *, run: Run | None = None, section: str = "model") -> Any:
    """A live model, laid out on the mesh if that, or the one where it lies, has several devices.

    Raises:
      ConfigError: see `tell_fit`, which the `run` is told by.
    """
    tell_fit(run, section, live.config, mesh)
    return place_model(live, mesh) if mesh.size > 1 or live.config.mesh is not None else live


def place_params(params: Any, mesh: Mesh) -> Any:
    """Parameters laid out on the mesh by their logical axes."""
    return on_mesh_params(params, mesh)


def learning(params: Any) -> Any:
    """The parameters, all of which are to learn.

    Raises:
      ConfigError: quantized weights.
    """
    if any(isinstance(x, Frozen) for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Frozen))):
        raise ConfigError(
            "model: its weights are quantized, which do not learn; set lora.enabled=true, or load export/ of the run "
            "that it comes from"
        )
    return params


def policy_of(model: Any, lora: LoraConfig, mesh: Mesh, *, key: jax.Array) -> tuple[CausalPolicy, Any, Any]:
    """How to score with `model`, its trained leaves, and its frozen leaves.

    Without LoRA everything is trained and the frozen leaves are an empty dict.
    """
    definition, params = models.split(models.quantize(model, lora.weights))
    if not lora.enabled:
        return CausalPolicy(definition), learning(params), {}
    adapter = create_adapter(model.config, lora, key=key, layers=params["layers"])
    return CausalPolicy(definition, lora), jax.device_put(adapter, replicated(mesh)), params


def on_mesh(
    columns: Mapping[str, Any],
    kind: type[Kind],
    mesh: Mesh,
    *,
    packing: bool = False,
    num_microbatches: int = 1,
    head: bool = True,
) -> Kind:
    """A host batch on the mesh, rows split over its devices.

    Args:
      columns: of the batch, arrays by name.
      kind: what it becomes; it takes the columns that it has fields for.
      mesh, packing, num_microbatches, head: see `laid_out`.
    """
    columns = laid_out(columns, mesh, packing=packing, num_microbatches=num_microbatches, head=head)
    return shard_batch(kind.of(columns), mesh)


def laid_out(
    columns: Mapping[str, Any],
    mesh: Mesh,
    *,
    packing: bool = False,
    num_microbatches: int = 1,
    head: bool = True,
) -> Mapping[str, Any]:
    """The columns of a batch, with what tells a model which tokens to compute and where its head is read.

    Args:
      columns: of the batch, arrays by name.
      mesh: the devices that its rows will be split over.
      packing: lay out its rows of tokens in fewer, fuller ones (see `data.packed`), unless they have been.
      num_microbatches: micro-batches it will be split into.
      head: whether a vocabulary head reads them; it will read what predicts counted tokens.
    """
    options: dict[str, Any] = {"num_microbatches": num_microbatches, **shards_of(mesh)}
    if packing and "packed" not in columns:
        columns = packed(columns, loss_positions=head, **options)
    elif head and not packing:
        columns = with_loss_positions(columns, **options)
    return columns


def shards_of(mesh: Mesh) -> dict[str, Any]:
    """Into how many parts rows and their columns are split over a mesh, as `data.packed` asks for it."""
    return {"shards": row_shards(mesh), "length_shards": length_shards(mesh)}


def device_part(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The numeric arrays of a batch; text columns stay on the host."""
    return {k: v for k, v in batch.items() if isinstance(v, np.ndarray) and v.dtype.kind in "biuf"}


def export_policy(
    run: Run, policy: CausalPolicy, trained: Any, frozen: Any, tokenizer: Any, lora: LoraConfig
) -> Any:
    """Writes `export/` (a Hugging Face folder, adapters merged) and `adapter/` (PEFT) and returns the model."""
    model, adapter = policy.parts(trained, frozen)
    if adapter is not None:
        exports.export_adapter(run, trained, lora, model.config, tokenizer)
        model = models.merge_adapter(model, adapter)
    exports.write_model(exports.origin_of(run), model, run.folder / "export", tokenizer)
    return model


def scalar_of(
    scalar: Any, lora: LoraConfig | None, mesh: Mesh, *, key: jax.Array
) -> tuple[ScalarPolicy, Any, Any]:
    """The same as `policy_of` for a scalar model: trunk (or adapter) and head are trained, the normalizer is not."""
    weights = lora.weights if lora else "same"
    definition, params = models.split(place_model(models.quantize(scalar, weights), mesh))
    head, normalizer = params["head"], {"normalizer": params["normalizer"]}
    if lora is None or not lora.enabled:
        return ScalarPolicy(definition), {"trunk": learning(params["trunk"]), "head": head}, normalizer
    adapter = create_adapter(scalar.config, lora, key=key, layers=params["trunk"]["layers"])
    adapter = jax.device_put(adapter, replicated(mesh))
    return (
        ScalarPolicy(definition, lora),
        {"adapter": adapter, "head": head},
        {"trunk": params["trunk"], **normalizer},
    )


def export_scalar(run: Run, policy: ScalarPolicy, trained: Any, frozen: Any, tokenizer: Any) -> Any:
    """Writes `export/` in the ...ForSequenceClassification layout (adapters merged); returns the model."""
    model = merged_scalar(policy, trained, frozen)
    exports.write_reward(exports.origin_of(run), model, run.folder / "export", tokenizer)
    return model


def merged_scalar(policy: ScalarPolicy, trained: Any, frozen: Any) -> Any:
    """The scalar model, its adapter merged where there is one."""
    model, adapter = policy.parts(trained, frozen)
    return model if adapter is None else models.merge_adapter(model, adapter)


def checkpoint_store(run: Run) -> CheckpointStore:
    """The checkpoints of a run, kept as its configuration says."""
    config = run.config
    return CheckpointStore(
        run.folder / "checkpoints",
        keep_last=config.keep_last,
        best_metric=config.best_metric or None,
        best_mode=config.best_mode,
        warn=run.warn,
    )
