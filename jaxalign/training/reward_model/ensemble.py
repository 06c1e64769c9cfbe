"""Reward ensembles: K reward models trained together, one program for all of them.

Trained leaves are stacked, [K, ...]; frozen leaves are shared. The whole update is mapped over the members, so
each has its own clipping, optimizer and finite guard, as if it were trained alone: member k is what a run of the
seed `run.seed + k` on the same rows gives. Why several: a policy finds what one reward model gets wrong; where
members disagree, none of them has been told (arXiv:2310.02743).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.data import BatchIterator, Dataset, eval_batches
from jaxalign.losses import ensemble_disagreement
from jaxalign.mesh import row_shards, shard_batch
from jaxalign.processes import fetch
from jaxalign.training.core import exports, setup
from jaxalign.training.core.batch import CompletionBatch, valid_count
from jaxalign.training.core.held_out import summary
from jaxalign.training.core.members import MemberBatches, create_member_states, member_of, stacked
from jaxalign.training.core.offline import OfflineRun, Task
from jaxalign.training.core.packing import most_segments
from jaxalign.training.core.scoring import ScalarPolicy
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.step import Batch, LossFunction, make_evaluation
from jaxalign.training.core.update_rules import refuse_schedule_free
from jaxalign.training.reward_model.batches import PairBatch, RankingBatch


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Several reward models from one run, each with its own seed for the head and the data order.

    Attributes:
      size: number of members; 1 trains a single model.
      members: what each member owns: models (a trunk, or with LoRA an adapter) or heads (only a head on one shared,
        frozen trunk; cheaper, and weaker).
    """

    size: int = 1
    members: Literal["models", "heads"] = "models"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"ensemble.size must be 1 or more, got {self.size}")
        if self.members == "heads" and self.size == 1:
            raise ValueError("ensemble.members=heads needs ensemble.size of 2 or more, got 1")


# --- leaves -----------------------------------------------------------------------------------


def create_members(config: Any, model: Any, mesh: Any) -> tuple[ScalarPolicy, Any, Any]:
    """How to score with a member, the trained leaves of all members stacked, and the frozen leaves they share.

    Args:
      config: a `RewardConfig`.
      model: the causal model whose trunk is taken.
      mesh: the devices; a stacked leaf lies on it as each member's would, the leading axis on every device.
    """
    form = models.attention_for(model.config, max_segments=most_segments(config.train.packing), mapped=True)
    model = models.with_config(model, attention=form.attention)
    policy, parts, frozen = None, [], {}
    for seed in seeds(config):
        key = jax.random.key(seed)
        scalar = models.create_scalar_model(model, config.head, key=jax.random.fold_in(key, 1))
        policy, trained, frozen = setup.scalar_of(scalar, config.lora, mesh, key=jax.random.fold_in(key, 2))
        if config.ensemble.members == "heads":
            frozen = {**frozen, "trunk": trained.pop("trunk")}
        parts.append(trained)
    assert policy is not None
    return policy, stacked(parts), frozen


def seeds(config: Any) -> list[int]:
    """The seed of each member: that of the run, and the numbers after it."""
    return [config.run.seed + index for index in range(config.ensemble.size)]


# --- update and evaluation --------------------------------------------------------------------


def over_members(update: Callable) -> Callable:
    """For `make_update(lift=...)`: state, batch and key have a leading axis of members, the frozen leaves none.

    Metrics are means over the members, and each member's loss; `finite` is 0 where any member's is.
    """
    mapped = jax.vmap(update, in_axes=(0, None, 0, 0))

    def lifted(state: TrainState, frozen: Any, batch: Any, key: jax.Array):
        state, metrics = mapped(state, frozen, batch, key)
        means = {name: jnp.mean(values) for name, values in metrics.items()}
        means["finite"] = jnp.min(metrics["finite"])
        each = {f"member-{k}/loss": loss for k, loss in enumerate(metrics["loss"])}
        return state, means | each

    return lifted


class _Known:
    """Stands for a policy whose trained leaves are the scores [B * G] themselves, so that a loss computes none."""

    def last(self, trained: Any, *_: Any, **__: Any) -> Any:
        return trained


@dataclass(frozen=True)
class HeldOut:
    """What K members say of N held-out questions (pairs) of G completions each.

    Attributes:
      scores: float32 [K, N, G], before normalisation.
      best: int [N], the completion that is preferred.
      sums: metric -> [2, K], the (sum, count) of every member's own evaluation.
    """

    scores: np.ndarray
    best: np.ndarray
    sums: Mapping[str, np.ndarray]

    def normalizer(self) -> tuple[np.ndarray, np.ndarray]:
        """(gain [K], bias [K]) that give each member's scores here mean 0 and variance 1."""
        scores = np.asarray(self.scores, np.float64)
        return models.gain_and_bias(scores.mean(axis=(1, 2)), scores.var(axis=(1, 2)))

    def metrics(self, *, normalize: bool) -> dict[str, float]:
        """`accuracy` and `margin` of the mean score, with 95% intervals; `disagreement`; each member's own.

        Args:
          normalize: whether members are brought to mean 0 and variance 1 first, as their exported models are;
            all margins and the disagreement then are in standard deviations of a score.
        """
        gain, bias = (
            self.normalizer() if normalize else (np.ones(len(self.scores)), np.zeros(len(self.scores)))
        )
        scores = gain[:, None, None] * self.scores + bias[:, None, None]
        ours, own = margins(scores.mean(axis=0), self.best), margins(scores, self.best)
        sums = {
            "accuracy": (np.sum(is_right(ours)), ours.size),
            "margin": (np.sum(ours), ours.size),
            "margin_square": (np.sum(np.square(ours)), ours.size),
        }
        values = summary({name: np.asarray(pair, np.float64) for name, pair in sums.items()})
        loss, count = self.sums["loss"]
        values["loss"] = float(np.mean(loss / np.maximum(count, 1e-9)))
        flat = jnp.asarray(scores.reshape(len(scores), -1), jnp.float32)
        values["disagreement"] = float(np.mean(ensemble_disagreement(flat)))
        values["member_accuracy"] = float(np.mean(is_right(own)))
        values["member_margin"] = float(np.mean(own))
        for index, each in enumerate(own):
            values[f"member-{index}/accuracy"] = float(np.mean(is_right(each)))
            values[f"member-{index}/margin"] = float(np.mean(each))
        # Of raw scores, by which a checkpoint of this step can be normalised.
        for index, each in enumerate(np.asarray(self.scores, np.float64)):
            values[f"member-{index}/score_mean"] = float(each.mean())
            values[f"member-{index}/score_std"] = float(each.std())
        return values


def margins(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """[..., N, G], [N] -> [..., N]: the preferred completion's score less the largest of the others'."""
    preferred = np.arange(scores.shape[-1]) == best[:, None]
    return np.sum(np.where(preferred, scores, 0), -1) - np.max(np.where(preferred, -np.inf, scores), -1)


def is_right(margin: np.ndarray) -> np.ndarray:
    """1 where the preferred completion scores highest, 1/2 for a tie."""
    return (margin > 0) + 0.5 * (margin == 0)


def make_member_evaluation(policy: ScalarPolicy, loss_of: Callable[[Any], LossFunction]) -> Callable:
    """Builds `evaluate(params, frozen, batch) -> (scores [K, B, G], {name: (sum [K], count [K])})`, jitted.

    All members score the same rows; what they share (a frozen trunk) runs once.
    """
    of_scores = make_evaluation(loss_of(_Known()), valid_count)

    def member(params: Any, frozen: Any, batch: CompletionBatch):
        scores = policy.last(params, frozen, batch.rows())
        return scores.reshape(batch.shape), of_scores(scores, {}, batch)

    return jax.jit(jax.vmap(member, in_axes=(0, None, None)))


def score_held_out(
    evaluate: Callable, params: Any, frozen: Any, batches: Iterable[PairBatch | RankingBatch], limit: int = 0
) -> HeldOut:
    """Scores batches with all members; at most `limit` where not 0."""
    scores, best, sums = [], [], {}
    for index, batch in enumerate(batches):
        if limit and index >= limit:
            break
        found, parts = fetch(evaluate(params, frozen, batch))
        valid = np.asarray(batch.valid)
        scores.append(found[:, valid])
        best.append(np.asarray(batch.best)[valid])
        for name, pair in parts.items():
            sums[name] = sums.get(name, 0.0) + np.asarray(pair, np.float64)
    return HeldOut(np.concatenate(scores, axis=1), np.concatenate(best), sums)


# --- a run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Feed:
    """Batches of all members, stacked [K, ...], on the host and on the mesh; an `offline.Feed`."""

    batches: MemberBatches
    kind: type[PairBatch] | type[RankingBatch]
    mesh: Mesh

    def place(self, columns: Mapping[str, Any]) -> Batch:
        return shard_batch(self.kind.of(columns), self.mesh, axis=1)


def ensemble_task(
    run: OfflineRun,
    model: Any,
    tokenizer: Any,
    data: Dataset,
    collate: Callable,
    kind: type[PairBatch] | type[RankingBatch],
    loss_of: Callable[[Any], LossFunction],
) -> Task[TrainResult]:
    """The task of training all members; the model that the call returns is a list of `ScalarModel`s.

    Args:
      run: of a `RewardConfig` with `ensemble.size` above 1.
      model: the causal model whose trunk is taken.
      tokenizer: its tokenizer.
      data: tokenized rows.
      collate: examples and their numbers -> columns of a batch, with rows of tokens as [B, G, T].
      kind: what the loss reads.
      loss_of: a policy -> the loss function of `make_update`.
    """
    config, train = run.config, run.config.train
    size = config.ensemble.size
    policy, trained, frozen = create_members(config, model, run.mesh)
    batches = MemberBatches(
        [
            BatchIterator(data.train, batch_size=train.batch_size, seed=seed, collate=collate)
            for seed in seeds(config)
        ],
        packing=train.packing,
        num_microbatches=train.accumulation_steps,
        **setup.shards_of(run.mesh),
    )
    evaluate = make_member_evaluation(policy, loss_of)

    def held_out(params: Any, limit: int = 0) -> HeldOut:
        rows = eval_batches(
            data.validation or data.train,
            train.eval_batch_size or train.batch_size,
            collate,
            multiple=row_shards(run.mesh),
        )
        placed = (
            setup.on_mesh(columns, kind, run.mesh, packing=train.packing, head=False) for columns in rows
        )
        return score_held_out(evaluate, params, frozen, placed, limit)

    def evaluated(state: TrainState) -> dict[str, float]:
        return held_out(state.params, train.eval_batches).metrics(normalize=config.normalizes)

    def states(trained: Any, rule: optax.GradientTransformation) -> TrainState:
        state = create_member_states(trained, rule, size)
        refuse_schedule_free(state.opt_state, "ensemble.size above 1")
        return state

    def finish(state: TrainState, metrics: dict[str, float]) -> TrainResult:
        gain, bias = np.ones(size), np.zeros(size)
        if config.normalizes:
            gain, bias = held_out(state.params).normalizer()
            for index, pair in enumerate(zip(gain, bias, strict=True)):
                names = (f"final/member-{index}/gain", f"final/member-{index}/bias")
                metrics |= dict(zip(names, map(float, pair), strict=True))
        found = [
            setup.merged_scalar(
                policy,
                member_of(state.params, index),
                models.with_normalizer(frozen, gain=gain[index], bias=bias[index]),
            )
            for index in range(size)
        ]
        exports.write_reward(exports.origin_of(run.run), found, run.run.folder / "export", tokenizer)
        return TrainResult(run.run.folder, metrics, found, tokenizer)

    return Task(
        trained=trained,
        frozen=frozen,
        feed=_Feed(batches, kind, run.mesh),
        loss=loss_of(policy),
        counts=valid_count,
        passes=[policy.training_pass],
        lift=over_members,
        create_state=states,
        key=jnp.stack([jax.random.fold_in(jax.random.key(seed), 3) for seed in seeds(config)]),
        evaluate=evaluated if data.validation else None,
        finish=finish,
    )
