"""Direct preference optimization: a policy from comparisons, without a reward model."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxalign import models
from jaxalign.data import BatchIterator, DataConfig, collate_comparisons, eval_batches, load_dataset
from jaxalign.losses import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from jaxalign.mesh import MeshConfig, shard_batch
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import Run, RunConfig
from jaxalign.training import setup
from jaxalign.training.loop import Loop, TrainConfig, evaluation
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.pairs import flatten, pair_axis, valid_rows
from jaxalign.training.scoring import CausalPolicy, score_tokens
from jaxalign.training.setup import ModelSource, TrainResult
from jaxalign.training.state import create_state
from jaxalign.training.step import make_evaluation, make_update, mean_of


@dataclass(frozen=True, kw_only=True)
class DPOLossConfig:
    """The preference loss.

    Attributes:
      name: dpo (sigmoid; conservative with label_smoothing), robust, ipo or hinge.
      beta: strength of the pull to the reference, in units of 1 / nats.
      label_smoothing: chance that a label is flipped, in [0, 0.5); for dpo and robust.
      length_normalize: use the mean log-prob a token instead of the sum (IPO as in TRL).
      sft_weight: weight of the chosen completion's negative log-likelihood a token (RPO term).
    """

    name: Literal["dpo", "robust", "ipo", "hinge"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalize: bool = False
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"loss.beta must be positive, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"loss.label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")
        if self.label_smoothing and self.name in ("ipo", "hinge"):
            raise ValueError(f"loss.label_smoothing has no meaning for loss.name={self.name}; set it to 0")


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Preference training.

    Attributes:
      run: folder, seed, device, and how often to log, evaluate and save.
      model: the policy to start from.
      reference: the frozen reference; an empty path takes the policy as it starts (with LoRA: its base).
      data: comparisons.
      loss: which loss, and its numbers.
      train: batches and length.
      optimizer: AdamW and its schedule.
      lora: train an adapter instead of all weights.
      mesh: devices by axis.
      sampling: how the samples of samples.jsonl are drawn.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    reference: ModelSource = field(default_factory=ModelSource)
    data: DataConfig = field(default_factory=DataConfig)
    loss: DPOLossConfig = field(default_factory=DPOLossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-6, schedule="linear", warmup_ratio=0.1)
    )
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def preference_loss(policy: CausalPolicy, reference_definition: Any, config: DPOLossConfig):
    """Builds the loss function of `make_update`: the mean over the pairs of the whole batch.

    `frozen` is {"base": frozen leaves of the policy, "reference": the reference's leaves}.
    """

    def pairwise(logps, ref_logps):
        four = (logps[:, 0], logps[:, 1], ref_logps[:, 0], ref_logps[:, 1])
        if config.name == "dpo":
            return dpo_loss(*four, beta=config.beta, label_smoothing=config.label_smoothing)
        if config.name == "robust":
            return robust_dpo_loss(*four, beta=config.beta, label_smoothing=config.label_smoothing)
        return (ipo_loss if config.name == "ipo" else hinge_loss)(*four, beta=config.beta)

    def loss(params, frozen, batch, key, counts):
        tokens, mask, lengths = flatten(batch)
        shape = batch["tokens"].shape[:2]
        scores = policy.score(params, frozen["base"], tokens, lengths, mask, key=key)
        reference = models.merge(reference_definition, frozen["reference"])
        ref = score_tokens(reference, tokens, lengths, mask)
        size = jnp.maximum(mask.sum(1), 1).reshape(shape).astype(jnp.float32)
        logps = scores.logps.sum(1).reshape(shape)
        ref_logps = jax.lax.stop_gradient(ref.logps.sum(1)).reshape(shape)
        scale = size if config.length_normalize else 1.0
        per_pair = pairwise(logps / scale, ref_logps / scale)
        if config.sft_weight:
            per_pair += config.sft_weight * -logps[:, 0] / size[:, 0]
        valid = batch["valid"]
        rewards = config.beta * (logps - ref_logps)
        margin = rewards[:, 0] - rewards[:, 1]
        metrics = {
            "accuracy": mean_of((margin > 0) + 0.5 * (margin == 0), valid),
            "margin": mean_of(margin, valid),
            "margin_square": mean_of(jnp.square(margin), valid),
            "reward_chosen": mean_of(rewards[:, 0], valid),
            "reward_rejected": mean_of(rewards[:, 1], valid),
            "logps_chosen": mean_of(logps[:, 0], valid),
            "logps_rejected": mean_of(logps[:, 1], valid),
            "entropy": mean_of(scores.entropy, mask),
        }
        return jnp.sum(jnp.where(valid, per_pair, 0.0)) / jnp.maximum(counts, 1.0), metrics

    return loss


def train_dpo(
    config: DPOConfig, *, policy: Any = None, reference: Any = None, tokenizer: Any = None
) -> TrainResult:
    """Trains a policy on comparisons with a direct preference loss.

    Args:
      config: see `DPOConfig`.
      policy: a live model in place of `config.model`; needs `tokenizer`.
      reference: a live model in place of `config.reference`.
      tokenizer: the policy's tokenizer.

    Returns:
      The run folder, final metrics (`eval/accuracy` and `eval/margin` over held-out pairs, each with a
        95% interval `..._low`, `..._high`) and the model.

    Raises:
      UserError: anything wrong with configuration, files or rows, in one line.
    """
    mesh = setup.start(config.run, config.mesh)
    key = jax.random.key(config.run.seed)
    with Run.open(config.run, config, "dpo") as run:
        if policy is None:
            policy, tokenizer = setup.load_model(config.model, mesh, seed=config.run.seed)
        if reference is None and config.reference.path:
            reference, _ = setup.load_model(config.reference, mesh, seed=config.run.seed, section="reference")
        # The update donates its own copy of the parameters, so the start can serve as reference.
        reference_definition, reference_params = models.split(policy if reference is None else reference)
        data = load_dataset(config.data, "comparison", tokenizer, seed=config.run.seed)
        setup.check_context(policy.config, data)
        run.add_metadata(data=data.summary(), mesh=dict(mesh.shape))
        scorer, trained, base = setup.policy_of(policy, config.lora, mesh, key=jax.random.fold_in(key, 1))
        frozen = {"base": base, "reference": reference_params}
        total = config.train.total_steps(len(data.train))
        optimizer, schedule = make_optimizer(config.optimizer, total)
        loss = preference_loss(scorer, reference_definition, config.loss)
        update = make_update(loss, valid_rows, optimizer, accumulation_steps=config.train.accumulation_steps)
        generator = setup.Generator(scorer, base, config.sampling, tokenizer, jax.random.fold_in(key, 2))
        prompts = [list(e.prompt_tokens) for e in (data.validation or data.train)[: config.run.sample_rows]]
        size = config.train.eval_batch_size or config.train.batch_size
        update_key = jax.random.fold_in(key, 3)

        def place(batch):
            return shard_batch(setup.device_part(pair_axis(batch)), mesh)

        held_out = evaluation(
            make_evaluation(loss, valid_rows),
            lambda: eval_batches(data.validation, size, collate_comparisons),
            frozen,
            place,
            config.train.eval_batches,
        )
        loop = Loop(
            run=run,
            store=setup.checkpoint_store(run),
            batches=BatchIterator(
                data.train,
                batch_size=config.train.batch_size,
                seed=config.run.seed,
                collate=collate_comparisons,
            ),
            update=lambda state, batch: update(state, frozen, place(batch), update_key),
            total_steps=total,
            evaluate=held_out if data.validation else None,
            sample=lambda state: generator.samples(state.params, prompts, int(state.step)),
            learning_rate=schedule,
        )
        state, metrics = loop.fit(create_state(trained, optimizer))
        model = setup.export_policy(run, scorer, state.params, base, tokenizer, config.lora)
        run.finish(metrics)
        return TrainResult(run.folder, metrics, model, tokenizer)
