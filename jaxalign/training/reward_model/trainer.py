"""Reward modelling: a scalar per completion from comparisons or best-of-n labels, or per step from step labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.data import DataConfig, collate_comparisons, collate_rankings, collate_steps
from jaxalign.data.batches import Collate
from jaxalign.errors import ConfigError
from jaxalign.losses import best_of_n_loss, bradley_terry_loss
from jaxalign.mesh import MeshConfig
from jaxalign.models.heads import HeadConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.processes import fetch
from jaxalign.runs import Given, Live, RunConfig
from jaxalign.training.core import setup
from jaxalign.training.core.batch import pair_axis, question_axis, valid_count
from jaxalign.training.core.loading import refuse_stream
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.offline import DatasetFeed, OfflineRun, Task, fit
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.own_loss import check_own_loss
from jaxalign.training.core.scoring import ScalarPolicy
from jaxalign.training.core.setup import ModelSource, TrainResult
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.step import make_evaluation, mean_of
from jaxalign.training.reward_model.batches import PairBatch, RankingBatch
from jaxalign.training.reward_model.ensemble import EnsembleConfig, ensemble_task
from jaxalign.training.reward_model.process import StepBatch, held_out_steps, process_loss, step_count


@dataclass(frozen=True, kw_only=True)
class RewardLossConfig:
    """The reward model's loss.

    Attributes:
      labels: pairs (Bradley-Terry loss on chosen and rejected), best_of_n (softmax over the candidates) or steps
        (process reward model: cross-entropy at the end of each step of a solution).
      label_smoothing: assumed probability that a label is flipped, in [0, 0.5); pairs only.
      center_coefficient: weight of (chosen + rejected) squared, which keeps scores near 0; pairs only.
      use_margin: subtract the data's margin from each score difference; pairs only.
      function: your own loss, as file.py:function or package.module:function, used in place of the named one; called
        as loss(chosen_rewards[B], rejected_rewards[B]) -> [B] for pairs and as loss(rewards[B, K], best[B]) for
        best_of_n.
    """

    labels: Literal["pairs", "best_of_n", "steps"] = "pairs"
    label_smoothing: float = 0.0
    center_coefficient: float = 0.0
    use_margin: bool = False
    function: str = ""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "center_coefficient", "use_margin"):
            if self.labels == "steps" and getattr(self, name):
                raise ValueError(f"loss.{name} is not used by loss.labels=steps")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Reward-model training.

    Attributes:
      run: folder, seed, device, and how often to log, evaluate and save.
      model: the causal language model whose trunk the reward model uses.
      head: the scalar head on the trunk.
      data: comparisons, best-of-n labels, or solutions with one label per step (data.separator ends a step).
      loss: the loss.
      train: batches and length of training.
      optimizer: the optimizer and its schedule.
      lora: train an adapter on the trunk instead of all its weights.
      mesh: number of devices along each mesh axis.
      ensemble: train several reward models in one run, to measure their disagreement.
      normalize: after training, set gain and bias so that scores of the held-out completions (the training
        completions if there are none) have mean 0 and variance 1; null does so except for steps, whose scores are
        logits.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    head: HeadConfig = field(default_factory=HeadConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: RewardLossConfig = field(default_factory=RewardLossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    normalize: bool | None = None
    WITHOUT: ClassVar[Mapping[str, str]] = {
        "eval": "a reward model writes no text, so eval.generate has nothing to evaluate; run.eval_every evaluates its "
        "scores of held-out rows"
    }

    def __post_init__(self) -> None:
        if self.normalize and self.loss.labels == "steps":
            raise ValueError(
                "normalize=true: the scores of loss.labels=steps are logits and must not be rescaled; "
                "leave it out"
            )
        if self.ensemble.size > 1 and self.loss.labels == "steps":
            raise ValueError(
                "ensemble.size above 1 needs loss.labels=pairs or best_of_n, whose rewards are one per "
                f"completion; got {self.ensemble.size} with loss.labels=steps"
            )
        if self.ensemble.size > 1 and self.train.batch_tokens:
            raise ValueError(
                "train.batch_tokens needs a single reward model: members of an ensemble take batches of one shape; "
                f"set train.packing=true with ensemble.size above 1, got {self.ensemble.size}"
            )
        if self.ensemble.members == "heads" and self.lora.enabled:
            raise ValueError(
                "ensemble.members=heads and lora.enabled: choose one; heads keep the trunk frozen, and "
                "ensemble.members=models trains one adapter per member"
            )

    @property
    def normalizes(self) -> bool:
        """Whether scores are brought to mean 0 and variance 1 after training."""
        return self.loss.labels != "steps" if self.normalize is None else self.normalize


def make_reward_loss(policy: ScalarPolicy, config: RewardLossConfig, own: Callable[..., Any] | None = None):
    """Builds the loss function of `make_update`: the mean over pairs (questions, steps) of the whole batch.

    `own` takes the place of the Bradley-Terry or best-of-n loss: see `train_reward`.
    """
    if config.labels == "steps":
        return process_loss(policy)

    def pair_terms(rewards: jax.Array, batch: PairBatch):
        chosen, rejected = rewards[:, 0], rewards[:, 1]
        options = {
            "margin": batch.margin if config.use_margin else 0.0,
            "label_smoothing": config.label_smoothing,
            "center_coefficient": config.center_coefficient,
        }
        per_pair = own(chosen, rejected) if own else bradley_terry_loss(chosen, rejected, **options)
        right = (chosen > rejected) + 0.5 * (chosen == rejected)
        return per_pair, right, chosen - rejected

    def ranking_terms(rewards: jax.Array, batch: RankingBatch):
        per_question = (own or best_of_n_loss)(rewards, batch.best)
        best = jnp.take_along_axis(rewards, batch.best[:, None], axis=1)[:, 0]
        others = jnp.where(jnp.arange(rewards.shape[1]) == batch.best[:, None], -jnp.inf, rewards).max(1)
        return per_question, best > others, best - others

    terms = pair_terms if config.labels == "pairs" else ranking_terms

    def loss(params: Any, frozen: Any, batch: Any, key: Any, counts: jax.Array):
        rewards = policy.last(params, frozen, batch.rows(), key=key).reshape(batch.shape)
        per_row, right, margin = terms(rewards, batch)
        valid = batch.valid
        metrics = {
            "accuracy": mean_of(right.astype(jnp.float32), valid),
            "margin": mean_of(margin, valid),
            "margin_square": mean_of(jnp.square(margin), valid),
            "score_mean": mean_of(rewards, valid[:, None]),
            "score_square": mean_of(jnp.square(rewards), valid[:, None]),
        }
        return jnp.sum(jnp.where(valid, per_row, 0.0)) / jnp.maximum(counts, 1.0), metrics

    return loss


# Kind of data, how its columns are made and laid out for micro-batches, the batch, and what the loss is a mean over.
LABELS = {
    "pairs": ("comparison", collate_comparisons, pair_axis, PairBatch, valid_count),
    "best_of_n": ("ranking", collate_rankings, question_axis, RankingBatch, valid_count),
    "steps": ("stepwise", collate_steps, dict, StepBatch, step_count),
}


def check_reward_loss(loss: Any, config: RewardConfig) -> Any:
    """The user's loss, see `check_own_loss`; for what it may be see `train_reward`."""
    if (loss is not None or config.loss.function) and config.loss.labels == "steps":
        raise ConfigError("loss: a function is accepted with loss.labels=pairs and best_of_n, not with steps")
    pairs = {"chosen_rewards": ("B",), "rejected_rewards": ("B",)}
    arrays = pairs if config.loss.labels == "pairs" else {"rewards": ("B", "K"), "best": ("B",)}
    unread = ("label_smoothing", "center_coefficient", "use_margin")
    return check_own_loss(loss, arrays, ("B",), config=config.loss, unread=unread)


def train_reward(
    config: RewardConfig, *, model: Any = None, tokenizer: Any = None, loss: Any = None, **live: Unpack[Live]
) -> TrainResult:
    """Trains a reward model on the trunk of a causal language model.

    Args:
      config: see `RewardConfig`.
      model: a live causal model to use in place of `config.model` (its trunk is copied); needs `tokenizer`.
      tokenizer: its tokenizer.
      loss: function to use in place of the loss that `config.loss` selects: loss(chosen_rewards[B],
        rejected_rewards[B]) -> [B] for pairs, loss(rewards[B, K], best[B]) -> [B] for best_of_n.
      live: train_dataset, eval_dataset, optimizer, callbacks and trackers; see `jaxalign.runs.Given`.

    Returns:
      The run folder, final metrics (`eval/accuracy` and `eval/margin` over held-out pairs, each with a
        95% interval `..._low`, `..._high`; of steps those of `process.step_measures`) and the `ScalarModel`.
        With `config.ensemble.size` above 1 a list of them, and the metrics of their mean score, see
        `ensemble.HeldOut.metrics`.

    Raises:
      UserError: an invalid configuration, file or row; the message is one line.
    """
    loss = check_reward_loss(loss, config)
    given = Given.of(train_reward, live, loss=loss, others={"model": model, "tokenizer": tokenizer})
    kind, collate, arrange, batch, count = LABELS[config.loss.labels]

    def begin(run: OfflineRun) -> Task[TrainResult]:
        several = config.ensemble.size > 1
        start, words = run.load_model(model, tokenizer, mapped=several)
        data = run.load_data(kind, words, start.config)
        if several:
            refuse_stream(data, "ensemble.size")
            rows = partial(_arranged, run.collate(collate, data), arrange)
            return ensemble_task(
                run, start, words, data, rows, batch, lambda own: make_reward_loss(own, config.loss, loss)
            )
        steps = models.StepConfig(separator=config.data.separator) if kind == "stepwise" else None
        scalar = models.create_scalar_model(start, config.head, key=run.fold(1), steps=steps)
        policy, trained, frozen = setup.scalar_of(scalar, config.lora, run.mesh, key=run.fold(2))
        function = make_reward_loss(policy, config.loss, loss)
        feed = run.feed(data, run.collate(collate, data), batch, arrange=arrange, head=False)
        evaluate_batch = make_evaluation(function, count)
        evaluate = feed.evaluation(evaluate_batch, frozen)
        if steps and evaluate:
            evaluate = held_out_steps(policy, feed, frozen)

        def finish(state: TrainState, metrics: dict[str, float]) -> TrainResult:
            final = frozen
            if config.normalizes:
                gain, bias = normalization(evaluate_batch, state.params, frozen, feed)
                final = models.with_normalizer(frozen, gain=gain, bias=bias)
                metrics = {**metrics, "final/gain": gain, "final/bias": bias}
            exported = setup.export_scalar(run.run, policy, state.params, final, words)
            return TrainResult(run.run.folder, metrics, exported, words)

        return Task(
            trained=trained,
            frozen=frozen,
            feed=feed,
            loss=function,
            counts=count,
            passes=[policy.training_pass],
            evaluate=evaluate,
            finish=finish,
        )

    return fit("reward", config, given, begin)


def _arranged(collate: Collate, arrange: Callable, examples: Any, numbers: Any) -> dict[str, Any]:
    return arrange(collate(examples, numbers))


def normalization(
    evaluate_batch: Callable[..., Any], params: Any, frozen: Any, feed: DatasetFeed
) -> tuple[float, float]:
    """(gain, bias) that bring the scores of the held-out (else the training) completions to mean 0, variance 1.

    In training gain is 1 and bias 0, so the scores seen here are raw.
    """
    mean, square = np.zeros(2), np.zeros(2)
    for batch in feed.held_out(or_training=True):
        part = fetch(evaluate_batch(params, frozen, feed.place(batch, training=False)))
        mean += np.asarray(part["score_mean"], np.float64)
        square += np.asarray(part["score_square"], np.float64)
    average = mean[0] / max(mean[1], 1.0)
    variance = square[0] / max(square[1], 1.0) - average**2
    gain, bias = models.gain_and_bias(average, variance)
    return float(gain), float(bias)
