"""Supervised fine-tuning: the next token of demonstrations, on completion tokens only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data import DataConfig, collate_demonstrations, eval_batches
from jaxalign.losses import token_mean
from jaxalign.losses.cross_entropy import token_cross_entropy
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import Given, Run, RunConfig
from jaxalign.training import setup
from jaxalign.training.data import load_data
from jaxalign.training.generator import Generator, samples_of
from jaxalign.training.loop import Loop, TrainConfig, evaluation
from jaxalign.training.opening import tell_devices
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.own_loss import check_own_loss
from jaxalign.training.packing import packing_of
from jaxalign.training.scoring import CausalPolicy
from jaxalign.training.setup import ModelSource, TrainResult
from jaxalign.training.state import create_state
from jaxalign.training.step import make_evaluation, make_update, mean_of
from jaxalign.training.stops import with_stops


@dataclass(frozen=True, kw_only=True)
class SFTLossConfig:
    """The supervised loss.

    Attributes:
      label_smoothing: weight of the mean of -log p over the vocabulary, in [0, 1).
      z_loss: weight of logsumexp squared, which keeps logits small.
      function: your own loss in place of the cross-entropy, as file.py:function or package.module:function, called as
        loss(logps[B, T], mask[B, T]) -> [B, T].
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    function: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.z_loss < 0:
            raise ValueError(f"loss.z_loss must not be negative, got {self.z_loss}")


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning.

    Attributes:
      run: folder, seed, device, and how often to log, evaluate and save.
      model: the model to start from.
      data: demonstrations.
      loss: the loss.
      train: batches and length.
      optimizer: AdamW and its schedule.
      lora: train an adapter instead of all weights.
      mesh: devices by axis.
      sampling: how the samples of samples.jsonl are drawn.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    data: DataConfig = field(default_factory=DataConfig)
    loss: SFTLossConfig = field(default_factory=SFTLossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def make_sft_loss(policy: CausalPolicy, config: SFTLossConfig, own: Callable[..., Any] | None = None):
    """Builds the loss function of `make_update`: the token mean over the whole batch, by the tokens' weights.

    `own(logps[B, T], mask[B, T]) -> [B, T]` takes the place of the cross-entropy.
    """

    def loss(params, frozen, batch, key, counts):
        mask = batch["mask"] & batch["valid"][:, None]
        scores = policy.score(
            params, frozen, batch["tokens"], batch["lengths"], mask, key=key, packing=packing_of(batch)
        )
        if own is not None:
            per_token = own(scores.logps, mask)
        else:
            per_token = token_cross_entropy(
                scores.logps,
                scores.mean_logps,
                scores.logsumexp,
                label_smoothing=config.label_smoothing,
                z_loss=config.z_loss,
            )
        if "weights" in batch:
            per_token *= batch["weights"]
        metrics = {
            "nll": mean_of(-scores.logps, mask),
            "entropy": mean_of(scores.entropy, mask),
            "token_accuracy": mean_of(scores.is_top1, mask),
        }
        return token_mean(per_token, mask, count=counts), metrics

    return loss


def sft_counts(batch) -> jax.Array:
    """Counted tokens of the whole batch, by their weights."""
    mask = batch["mask"] & batch["valid"][:, None]
    return jnp.sum(jnp.where(mask, batch.get("weights", 1.0), 0.0), dtype=jnp.float32)


def train_sft(
    config: SFTConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    optimizer: Any = None,
    loss: Any = None,
    callbacks: Sequence[Any] = (),
    trackers: Sequence[Any] = (),
) -> TrainResult:
    """Fine-tunes a causal language model on demonstrations.

    Args:
      config: see `SFTConfig`.
      model: a live model in place of `config.model`; needs `tokenizer`.
      tokenizer: its tokenizer.
      loss: a function in place of the cross-entropy: loss(logps[B, T], mask[B, T]) -> [B, T].
      train_dataset, eval_dataset, optimizer, callbacks, trackers: live objects in place of, or beside, what `config`
        names: see `jaxalign.runs.Given`.

    Returns:
      The run folder, final metrics (`eval/loss` in nats a token) and the model.

    Raises:
      UserError: anything wrong with configuration, files or rows, in one line.
    """
    setup.check_live(model, tokenizer)
    unread = ("label_smoothing", "z_loss")
    arrays = {"logps": ("B", "T"), "mask": ("B", "T")}
    loss = check_own_loss(loss, arrays, ("B", "T"), config=config.loss, unread=unread)
    given = Given(
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        optimizer=optimizer,
        loss=loss,
        callbacks=callbacks,
        trackers=trackers,
        others={"model": model, "tokenizer": tokenizer},
    )
    mesh = setup.start(config.run, config.mesh)
    key = jax.random.key(config.run.seed)
    with Run.open(config.run, config, "sft", given) as run:
        if model is None:
            model, tokenizer = setup.load_model(
                config.model, mesh, seed=config.run.seed, run=run, packing=config.train.packing
            )
        model = with_stops(model, config.data, tokenizer)
        data = load_data(run, config.data, "demonstration", tokenizer, model.config, seed=config.run.seed)
        tell_devices(run, mesh)
        policy, trained, frozen = setup.policy_of(model, config.lora, mesh, key=jax.random.fold_in(key, 1))
        parts, packing = config.train.accumulation_steps, config.train.packing
        collate = setup.collate_of(collate_demonstrations, data.train, packing=packing)
        batches = setup.training_batches(
            config.train, data.train, seed=config.run.seed, collate=collate, mesh=mesh
        )
        total = config.train.total_steps(batches.per_epoch)
        rule, schedule = make_optimizer(config.optimizer, total, optimizer)
        loss_function = make_sft_loss(policy, config.loss, loss)
        update = make_update(loss_function, sft_counts, rule, accumulation_steps=parts)
        update_key = jax.random.fold_in(key, 3)
        sampling, prompts = samples_of(
            config.sampling, data.first(config.run.sample_rows), model.config.max_positions, run
        )
        generator = Generator(policy, frozen, sampling, tokenizer, jax.random.fold_in(key, 2))
        size = config.train.eval_batch_size or config.train.batch_size
        held_out = evaluation(
            make_evaluation(loss_function, sft_counts),
            lambda: eval_batches(data.validation, size, collate),
            frozen,
            lambda batch: setup.on_mesh(batch, mesh, packing=packing),
            config.train.eval_batches,
        )
        loop = Loop(
            run=run,
            store=setup.checkpoint_store(run),
            batches=batches,
            update=lambda state, batch: update(
                state, frozen, setup.on_mesh(batch, mesh, packing=packing, parts=parts), update_key
            ),
            total_steps=total,
            evaluate=held_out if data.validation else None,
            sample=lambda state: generator.samples(state.params, prompts, int(state.step)),
            learning_rate=schedule,
        )
        state = create_state(trained, rule)
        # The state has copies of what is trained: the model that it began with leaves the device.
        del model, trained
        state, metrics = loop.fit(state)
        model = setup.export_policy(run, policy, state.params, frozen, tokenizer, config.lora)
        run.finish(metrics)
        return TrainResult(run.folder, metrics, model, tokenizer)
