"""The optimizer step of a training command for shapes alone: no weights, no data, no device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.doctor import create_value_head
from jaxalign.llmdoctor.tfpo_parts import optimizers
from jaxalign.llmdoctor.tfpo_step import TFPOBatch, make_tfpo_loss, tfpo_counts
from jaxalign.mesh import partition_spec, replicated
from jaxalign.models.flops import Pass
from jaxalign.models.tensor_dtypes import device_dtype
from jaxalign.plan.shapes import everywhere, key_on, parameters_of, placed, with_shardings
from jaxalign.training.core import setup
from jaxalign.training.core.batch import TokenRows, valid_count
from jaxalign.training.core.mesh_fit import check_rows, tell_fit
from jaxalign.training.core.optimizer import make_optimizer
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.state import TrainState, moment_shardings
from jaxalign.training.core.step import Update, make_update
from jaxalign.training.distill.student_rows import DistillBatch
from jaxalign.training.distill.trainer import make_distill_loss
from jaxalign.training.preference.objectives import PreferenceBatch, make_preference_loss, passes_of
from jaxalign.training.reward_model.batches import PairBatch
from jaxalign.training.reward_model.trainer import make_reward_loss
from jaxalign.training.rl.actor_critic import build
from jaxalign.training.rl.gae_inputs import Outcome, advantages_of
from jaxalign.training.rl.grpo_step import (
    GRPOBatch,
    GRPORollout,
    make_grpo_loss,
    make_single_step_grpo_loss,
)
from jaxalign.training.rl.online_dpo import SampledPairs, make_pair_loss
from jaxalign.training.rl.ppo_step import PPOBatch, PPORollout, make_ppo_loss, make_single_step_ppo_loss
from jaxalign.training.rl.rollout_metrics import rollout_counts
from jaxalign.training.sft import DemonstrationBatch, make_sft_loss, sft_counts

KEY = jax.random.key


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `make_update` compiles, with shapes on the mesh in place of arrays.

    Attributes:
      loss, counts: see `make_update`.
      trained, frozen: shapes of the leaves.
      batch: what a step reads, on the host.
      optimizer: of the trained leaves.
      passes: the models' passes over the batch.
      policy: of a command that samples, how the leaves of `trained["policy"]` and `frozen["policy"]` make its model.
    """

    loss: Callable[..., Any]
    counts: Callable[..., Any]
    trained: Any
    frozen: Any
    batch: TokenRows
    optimizer: optax.GradientTransformation
    passes: Sequence[Pass]
    policy: CausalPolicy | None = None

    @property
    def flops(self) -> float:
        """Model FLOPs."""
        return sum(each.flops(self.batch.columns()) for each in self.passes)


def planned(command: str, config: Any, mesh: Mesh, tokens: int) -> tuple[Update, tuple[Any, ...]]:
    """The optimizer step of a command, and the shapes (on a mesh) of what it takes: state, frozen, batch and key.

    Args:
      command: one of `STEPS`.
      config: the command's, with `model.path`, a folder of which only config.json is read.
      mesh: the devices.
      tokens: of a row.

    Raises:
      ConfigError: a command that is not planned.
    """
    step = step_of(command, config, mesh, tokens)
    abstract = jax.eval_shape(step.optimizer.init, step.trained)
    whole = replicated(mesh)
    state = TrainState(
        cast("jax.Array", jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)),
        step.trained,
        with_shardings(abstract, moment_shardings(abstract, step.trained, whole)),
    )
    update = make_update(
        step.loss, step.counts, step.optimizer, accumulation_steps=config.train.accumulation_steps
    )
    return update, (state, step.frozen, _batch_shapes(step.batch, mesh), key_on(mesh))


def step_of(command: str, config: Any, mesh: Mesh, tokens: int) -> Step:
    """The step of a command; arguments and errors are those of `planned`."""
    check_rows(config, mesh)
    if getattr(config.train, "batch_tokens", 0):
        raise ConfigError(
            f"plan {command}: train.batch_tokens is not planned; set train.batch_size to the rows of its largest step"
        )
    shape = shape_of(command, config, mesh)
    tell_fit(None, "model", shape, mesh)
    return STEPS[command](config, shape, mesh, tokens)


def model_of(command: str, config: Any) -> models.ModelConfig:
    """What the config.json of `model.path` says.

    Raises:
      ConfigError: a command or setting that is not planned, or no folder.
      ModelError: no config.json there, or one that is wrong.
    """
    if command not in STEPS:
        raise ConfigError(f"plan {command}: expected one of {', '.join(STEPS)}")
    if getattr(getattr(config, "rollout", None), "exact", False):
        raise ConfigError(f"plan {command}: rollout.exact=true is not planned")
    source = source_of(command, config)
    if not source.path:
        names = "model.path or patient.path" if command == "tfpo" else "model.path"
        raise ConfigError(f"{names}: expected a folder with a config.json; got nothing")
    folder = setup.model_folder(source.path)
    return models.load_config(
        folder, revision=source.revision or None, context=source.context, key="model.context"
    )


def source_of(command: str, config: Any) -> setup.ModelSource:
    """Where the model that learns comes from; a doctor without a model of its own begins as its patient."""
    if command == "tfpo" and not config.model.path:
        return replace(config.model, path=config.patient.path, revision=config.patient.revision)
    return config.model


def shape_of(command: str, config: Any, mesh: Mesh) -> models.ModelConfig:
    """The model of a configuration, as it would be on the mesh; raises as `model_of`."""
    return shape_on(model_of(command, config), source_of(command, config), mesh)


def shape_on(shape: models.ModelConfig, source: setup.ModelSource, mesh: Mesh) -> models.ModelConfig:
    """A model's shape as its section of the configuration has it on the mesh."""
    compute = device_dtype(source.compute_dtype, mesh.devices.flat[0])
    return replace(
        shape,
        param_dtype=source.param_dtype,
        compute_dtype=compute,
        remat=source.remat,
        attention=source.attention,
        products=source.products,
        mesh=mesh if mesh.size > 1 else None,
    )


def reference_shape(config: Any, shape: models.ModelConfig, mesh: Mesh) -> models.ModelConfig:
    """The reference model's shape on the mesh: that of `reference.path`, else the policy's."""
    return _shape_of(config.reference, mesh) if config.reference.path else shape


def _shape_of(source: setup.ModelSource, mesh: Mesh) -> models.ModelConfig:
    found = models.load_config(setup.model_folder(source.path), revision=source.revision or None)
    return shape_on(found, source, mesh)


# --- the commands -----------------------------------------------------------------------------


def _sft(config: Any, shape: models.ModelConfig, mesh: Mesh, tokens: int) -> Step:
    policy, trained, frozen = _policy(config, shape, mesh)
    columns = _rows((config.train.batch_size,), tokens)
    columns["weights"] = columns["mask"].astype(np.float32)
    return Step(
        loss=make_sft_loss(policy, config.loss),
        counts=sft_counts,
        trained=trained,
        frozen=frozen,
        batch=_laid_out(columns, DemonstrationBatch, config, mesh),
        optimizer=_optimizer(config),
        passes=[policy.training_pass],
    )


def _distill(config: Any, shape: models.ModelConfig, mesh: Mesh, tokens: int) -> Step:
    if not config.teacher.path:
        raise ConfigError("teacher.path: expected a folder with a config.json, got nothing")
    policy, trained, base = _policy(config, shape, mesh)
    teacher = _shape_of(config.teacher, mesh)
    columns = _rows((config.train.batch_size,), tokens)
    columns["weights"] = columns["mask"].astype(np.float32)
    columns["sampled"] = np.zeros(config.train.batch_size, bool)
    shared = min(shape.vocab_size, teacher.vocab_size)
    return Step(
        loss=make_distill_loss(policy, models.Definition(teacher), config.loss, vocabulary=shared),
        counts=sft_counts,
        trained=trained,
        frozen={"base": base, "teacher": parameters_of(teacher, mesh)},
        batch=_laid_out(columns, DistillBatch, config, mesh),
        optimizer=_optimizer(config),
        passes=[policy.training_pass, Pass(config=teacher, learns="nothing")],
    )


def _dpo(config: Any, shape: models.ModelConfig, mesh: Mesh, tokens: int) -> Step:
    policy, trained, base = _policy(config, shape, mesh)
    rows, spec = config.train.batch_size, config.loss.spec
    columns = _rows((rows, 2), tokens) | {"margin": np.zeros(rows, np.float32)}
    if spec.unpaired:
        columns["desirable"] = np.tile([True, False], (rows, 1))
    # Under an adapter the base is the reference: one model in two places.
    ref_shape = reference_shape(config, shape, mesh)
    own = base if config.lora.enabled and not config.reference.path else parameters_of(ref_shape, mesh)
    reference = own if spec.reference else {}
    if config.reference_logps == "precomputed" and spec.reference:
        columns["ref_logps"], reference = np.zeros((rows, 2), np.float32), {}
    passes = passes_of(policy, models.Definition(ref_shape), config.loss, precomputed=not reference)
    return Step(
        loss=make_preference_loss(policy, models.Definition(ref_shape), config.loss),
        counts=valid_count,
        trained=trained,
        frozen={"base": base, "reference": reference},
        batch=_laid_out(columns, PreferenceBatch, config, mesh),
        optimizer=_optimizer(config),
        passes=passes,
    )


def _reward(config: Any, shape: models.ModelConfig, mesh: Mesh, tokens: int) -> Step:
    if config.loss.labels != "pairs" or config.ensemble.size > 1:
        raise ConfigError("plan reward: loss.labels=pairs of a single model alone is planned")

    def parts(params: Any) -> Any:
        scalar = models.create_scalar_model(_model(shape, params), config.head, key=KEY(0))
        policy, trained, frozen = setup.scalar_of(scalar, config.lora, mesh, key=KEY(0))
        return policy, (trained, frozen)

    policy, (trained, frozen) = _shapes_of(parts, shape, mesh)
    rows = config.train.batch_size
    columns = _rows((rows, 2), tokens) | {"margin": np.zeros(rows, np.float32)}
    return Step(
        loss=make_reward_loss(policy, config.loss),
        counts=valid_count,
        trained=trained,
        frozen=frozen,
        batch=_laid_out(columns, PairBatch, config, mesh, head=False),
        optimizer=_optimizer(config),
        passes=[policy.training_pass],
    )


def _grpo(config: Any, shape: models.ModelConfig, mesh: Mesh, tokens: int) -> Step:
    policy, trained, frozen = _policy(config, shape, mesh)
    rows, one_step = _rollout_rows(config)
    columns = _completions(config, rows, tokens)
    columns |= {"ref_logps": _numbers(rows, tokens)} if config.loss.beta else {}
    make_loss = make_single_step_grpo_loss if one_step else make_grpo_loss
    return Step(
        loss=make_loss(policy, config.loss, config.sampling.temperature, config.sampling.max_new_tokens),
        counts=rollout_counts,
        trained={"policy": trained},
        frozen={"policy": frozen},
        batch=_laid_out(columns, GRPORollout if one_step else GRPOBatch, config, mesh),
        optimizer=_optimizer(config),
        passes=[policy.training_pass],
        policy=policy,
    )


def _online_dpo(config: Any, shape: models.ModelConfig, mesh: Mesh, tokens: int) -> Step:
    policy, trained, frozen = _policy(config, shape, mesh)
    rows = config.train.prompts // config.train.minibatches
    columns = _rows((rows, 2), tokens)
    columns["mask"] &= np.arange(tokens) >= tokens - config.sampling.max_new_tokens
    columns |= {
        "old_logps": np.zeros((rows, 2, tokens), np.float32),
        "desirable": np.tile([True, False], (rows, 1)),
    }
    if config.loss.spec.reference:
        columns["ref_logps"] = np.zeros((rows, 2), np.float32)
    return Step(
        loss=make_pair_loss(policy, config.loss, config.sampling.temperature),
        counts=valid_count,
        trained={"policy": trained},
        frozen={"policy": frozen},
        batch=_laid_out(columns, SampledPairs, config, mesh),
        optimizer=_optimizer(config),
        passes=[policy.training_pass],
        policy=policy,
    )


def _ppo(config: Any, shape: models.ModelConfig, mesh: Mesh, tokens: int) -> Step:
    if config.critic.init != "policy":
        raise ConfigError(f"plan ppo: critic.init=policy alone is planned, got {config.critic.init}")
    # The step does not read the reference, which lies beside it.
    own = replace(config, reference=setup.ModelSource())

    def parts(params: Any) -> Any:
        made = build(own, _model(shape, params), lambda prompts, completions: None, mesh, key=KEY(0))
        return (made.models, made.optimizer), (made.trained, made.frozen)

    (both, optimizer), (trained, frozen) = _shapes_of(parts, shape, mesh)
    rows, one_step = _rollout_rows(config)
    one_step = one_step and config.train.accumulation_steps == 1
    columns = _completions(config, rows, tokens) | {
        "outcome": Outcome(
            scores=np.zeros(rows, np.float32),
            token_rewards=_numbers(rows, tokens),
            truncated=np.zeros(rows, bool),
        ),
        "coefficient": np.zeros(rows, np.float32),
        "policy_weight": np.ones(rows, np.float32),
        "ref_logps": _numbers(rows, tokens),
        "old_values": _numbers(rows, tokens),
        "returns": _numbers(rows, tokens),
    }
    temperature = config.sampling.temperature
    if one_step:
        options = {"kl": config.kl, "loss": config.loss, "whiten_rewards": config.reward.whiten}
        loss = make_single_step_ppo_loss(both, config.loss, temperature, partial(advantages_of, **options))
    else:
        loss = make_ppo_loss(both, config.loss, temperature)
    return Step(
        loss=loss,
        counts=rollout_counts,
        trained=trained,
        frozen=frozen,
        batch=_laid_out(columns, PPORollout if one_step else PPOBatch, config, mesh),
        optimizer=optimizer,
        passes=both.training_passes,
        policy=both.policy,
    )


def _tfpo(config: Any, shape: models.ModelConfig, mesh: Mesh, tokens: int) -> Step:
    if config.dimensions:
        raise ConfigError("plan tfpo: dimensions: a single doctor alone is planned")
    policy, leaves, base = _policy(config, shape, mesh)
    numbers, rows = config.loss.resolved(), config.train.batch_size
    value = jax.eval_shape(lambda: create_value_head(shape, config.head, key=KEY(0), ramp=0.0, horizon=1.0))
    value = everywhere(value, mesh)
    horizon = value.pop("horizon")
    # What the doctor began as; without an adapter a second model beside the one that learns.
    start = base if config.lora.enabled else parameters_of(shape, mesh)
    columns = _rows((rows, 2), tokens) | {
        "rewards": np.zeros((rows, 2, tokens), np.float32),
        "terminated": np.ones((rows, 2), bool),
    }

    def loss(params: Any, frozen: Any, *rest: Any) -> Any:
        at = replace(numbers, reward_scale=frozen["reward_scale"])
        return make_tfpo_loss(policy, config.head, at)(params, frozen, *rest)

    passes = [policy.training_pass]
    return Step(
        loss=loss,
        counts=tfpo_counts(numbers),
        trained={"policy": leaves, "value": value},
        frozen={
            "base": base,
            "reference": start if numbers.reference_weight else {},
            "horizon": horizon,
            "reward_scale": horizon,
        },
        batch=_laid_out(columns, TFPOBatch, config, mesh),
        optimizer=optimizers(config, 1000)[0],
        passes=[*passes, Pass(config=shape, learns="nothing")] if numbers.reference_weight else passes,
    )


STEPS = {
    "sft": _sft,
    "distill": _distill,
    "reward": _reward,
    "dpo": _dpo,
    "grpo": _grpo,
    "online-dpo": _online_dpo,
    "ppo": _ppo,
    "tfpo": _tfpo,
}


# --- shapes -----------------------------------------------------------------------------------


def _model(shape: models.ModelConfig, params: Any) -> Any:
    return models.merge(models.Definition(shape), params)


def _shapes_of(parts: Callable[[Any], Any], shape: models.ModelConfig, mesh: Mesh) -> tuple[Any, Any]:
    """`parts(params) -> (static objects, arrays)` for shapes: the objects, and the arrays' shapes on the mesh."""
    kept = []

    def traced(params: Any) -> Any:
        static, arrays = parts(params)
        kept.append(static)
        return arrays

    arrays = jax.eval_shape(traced, parameters_of(shape, mesh))
    return kept[0], placed(arrays, mesh)


def _policy(config: Any, shape: models.ModelConfig, mesh: Mesh) -> tuple[CausalPolicy, Any, Any]:
    def parts(params: Any) -> Any:
        policy, trained, frozen = setup.policy_of(_model(shape, params), config.lora, mesh, key=KEY(0))
        return policy, (trained, frozen)

    policy, (trained, frozen) = _shapes_of(parts, shape, mesh)
    return policy, trained, frozen


def _optimizer(config: Any) -> optax.GradientTransformation:
    return make_optimizer(config.optimizer, 1000)[0]


def _rollout_rows(config: Any) -> tuple[int, bool]:
    """Rows of an optimizer step, and whether it is the only one of its rollout."""
    train = config.train
    rows = train.prompts * config.sampling.num_samples // train.minibatches
    return rows, train.epochs * train.minibatches == 1 and not config.importance_cap


def _rows(lead: tuple[int, ...], tokens: int) -> dict[str, Any]:
    """Columns of full rows, of which all tokens but the first count."""
    return {
        "tokens": np.zeros((*lead, tokens), np.int32),
        "lengths": np.full(lead, tokens, np.int32),
        "mask": np.broadcast_to(np.arange(tokens) > 0, (*lead, tokens)).copy(),
        "valid": np.ones(lead[0], bool),
    }


def _completions(config: Any, rows: int, tokens: int) -> dict[str, Any]:
    """Columns of full rows, of which the completion counts."""
    columns = _rows((rows,), tokens)
    columns["mask"] &= np.arange(tokens) >= tokens - config.sampling.max_new_tokens
    names = ("sampler_logps", "old_logps", "advantages", "weights")
    return columns | {name: _numbers(rows, tokens) for name in names}


def _numbers(rows: int, tokens: int) -> np.ndarray:
    return np.zeros((rows, tokens), np.float32)


def _laid_out(columns: dict[str, Any], kind: Any, config: Any, mesh: Mesh, *, head: bool = True) -> Any:
    arranged = setup.laid_out(
        columns,
        mesh,
        packing=config.train.packing,
        num_microbatches=config.train.accumulation_steps,
        head=head,
    )
    return kind.of(arranged)


def _batch_shapes(batch: Any, mesh: Mesh) -> Any:
    """Shapes of a batch as `mesh.shard_batch` would place it."""

    def shape(value: Any) -> jax.ShapeDtypeStruct:
        array = np.asarray(value)
        names = ("batch", *[None] * (array.ndim - 1))[: array.ndim]
        spec = partition_spec(names, array.shape, mesh) if array.ndim else PartitionSpec()
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(shape, batch)
