"""Supervised fine-tuning: the next token of demonstrations, on completion tokens only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxalign.arrays import AnyArray
from jaxalign.data import DataConfig, collate_demonstrations
from jaxalign.losses import token_mean
from jaxalign.losses.cross_entropy import token_cross_entropy
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import Given, Live, RunConfig
from jaxalign.training.core.batch import TokenBatch
from jaxalign.training.core.eval_config import EvalConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.offline import OfflineRun, Task, TrainResult, fit
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.own_loss import check_own_loss
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.core.step import make_evaluation, mean_of


@dataclass(frozen=True, kw_only=True)
class SFTLossConfig:
    """The supervised loss.

    Attributes:
      label_smoothing: weight of the mean of -log p over the vocabulary, in [0, 1).
      z_loss: weight of the squared logsumexp, which keeps logits small.
      function: your own loss, as file.py:function or package.module:function, used in place of the cross-entropy;
        called as loss(logps[B, T], mask[B, T]) -> [B, T].
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
      model: the initial model.
      data: demonstrations.
      loss: the loss.
      train: batches and length of training.
      optimizer: the optimizer and its schedule.
      lora: train an adapter instead of all weights.
      mesh: number of devices along each mesh axis.
      sampling: how to sample the completions in samples.jsonl.
      eval: evaluations by generation.
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
    eval: EvalConfig = field(default_factory=EvalConfig)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DemonstrationBatch(TokenBatch):
    """Demonstrations.

    Attributes:
      weights: of each token in the loss; 1 where the data sets none.
    """

    weights: Float[AnyArray, "B T"]


def make_sft_loss(policy: CausalPolicy, config: SFTLossConfig, own: Callable[..., Any] | None = None):
    """Builds the loss function of `make_update`: the token mean over the whole batch, by the tokens' weights.

    `own(logps[B, T], mask[B, T]) -> [B, T]` takes the place of the cross-entropy.
    """

    def loss(params: Any, frozen: Any, batch: DemonstrationBatch, key: Any, counts: jax.Array):
        rows = batch.rows()
        mask = rows.mask
        scores = policy.score(params, frozen, rows, key=key)
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
        per_token *= batch.weights
        metrics = {
            "nll": mean_of(-scores.logps, mask),
            "entropy": mean_of(scores.entropy, mask),
            "token_accuracy": mean_of(scores.is_top1, mask),
        } | scores.router_metrics
        return token_mean(per_token, mask, count=counts), metrics

    return loss


def sft_counts(batch: DemonstrationBatch) -> jax.Array:
    """Counted tokens of the whole batch, by their weights."""
    return jnp.sum(jnp.where(batch.rows().mask, batch.weights, 0.0), dtype=jnp.float32)


def train_sft(
    config: SFTConfig, *, model: Any = None, tokenizer: Any = None, loss: Any = None, **live: Unpack[Live]
) -> TrainResult:
    """Fine-tunes a causal language model on demonstrations.

    Args:
      config: see `SFTConfig`.
      model: a live model to use in place of `config.model`; needs `tokenizer`.
      tokenizer: its tokenizer.
      loss: function to use in place of the cross-entropy: loss(logps[B, T], mask[B, T]) -> [B, T].
      live: train_dataset, eval_dataset, eval_reward, optimizer, callbacks and trackers; see `jaxalign.runs.Given`.

    Returns:
      The run folder, final metrics (`eval/loss` in nats per token, and those of `config.eval.generate`) and the model.

    Raises:
      UserError: an invalid configuration, file or row; the message is one line.
    """
    unread = ("label_smoothing", "z_loss")
    arrays = {"logps": ("B", "T"), "mask": ("B", "T")}
    loss = check_own_loss(loss, arrays, ("B", "T"), config=config.loss, unread=unread)
    given = Given.of(train_sft, live, loss=loss, others={"model": model, "tokenizer": tokenizer})

    def begin(run: OfflineRun) -> Task[TrainResult]:
        start, words = run.load_policy(model, tokenizer)
        data = run.load_data("demonstration", words, start.config)
        policy, trained, frozen = run.trained_parts(start)
        function = make_sft_loss(policy, config.loss, loss)
        feed = run.feed(data, run.collate(collate_demonstrations, data), DemonstrationBatch)
        return Task(
            trained=trained,
            frozen=frozen,
            feed=feed,
            loss=function,
            counts=sft_counts,
            passes=[policy.training_pass],
            evaluate=feed.evaluation(make_evaluation(function, sft_counts), frozen),
            generate=run.generated(policy, frozen, words, feed),
            sample=run.samples(policy, frozen, words, data),
            finish=run.export_policy(policy, frozen, words),
        )

    return fit("sft", config, given, begin)
