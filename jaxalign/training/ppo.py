"""Proximal policy optimization for language models, with a critic.

One update:

    sample completions -> score them (policy, reference, critic) -> reward
    -> KL penalty, GAE, whitening -> epochs x minibatches of the clipped loss
    -> KL controller -> log, save

Sources: arXiv:1707.06347 (PPO), arXiv:1909.08593 and arXiv:2009.01325 (on language
models); the details follow "The N implementation details of RLHF with PPO" (2023).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints import CheckpointStore
from jaxalign.data import BatchIterator, collate_prompts, load_dataset
from jaxalign.errors import UserError
from jaxalign.mesh import shard_batch
from jaxalign.rewards import RewardRequest, evaluate_reward
from jaxalign.rollout import Completions, join_rows
from jaxalign.runs import Run, StopFlag
from jaxalign.training import setup
from jaxalign.training.actor_critic import ActorCritic, build
from jaxalign.training.experience import RunningMoments, Scored, advantages_of, drop_rows, final_scores
from jaxalign.training.kl_controller import negative_streak, next_coefficient
from jaxalign.training.loop import Interrupted
from jaxalign.training.ppo_config import PPOConfig
from jaxalign.training.ppo_step import ppo_counts, ppo_loss
from jaxalign.training.setup import TrainResult
from jaxalign.training.state import TrainState, create_state
from jaxalign.training.step import make_update

__all__ = ["PPOConfig", "train_ppo"]


@dataclass
class Trainer:
    """The live objects of one PPO run. `state`, `coefficient`, `moments`,
    `negative` and the prompts' position are saved."""

    config: PPOConfig
    run: Run
    mesh: Any
    models: ActorCritic
    frozen: Any
    reference: Any
    reward: Any
    tokenizer: Any
    prompts: BatchIterator
    state: TrainState
    optimizer: Any
    key: jax.Array
    coefficient: float = 0.0
    moments: RunningMoments = None  # type: ignore[assignment]
    negative: int = 0

    def __post_init__(self) -> None:
        config = self.config
        self.coefficient = config.kl.coefficient
        self.moments = RunningMoments()
        self.generator = setup.Generator(
            self.models.policy, self.frozen["policy"], config.sampling, self.tokenizer, self.key
        )
        self._update = make_update(
            ppo_loss(self.models, config.loss, config.sampling.temperature),
            ppo_counts,
            self.optimizer,
            accumulation_steps=config.train.accumulation_steps,
            accept=self._within_limit if config.loss.ratio_limit else None,
        )
        self._score = jax.jit(self._score_rows)
        self._advantages = jax.jit(
            lambda *arrays: advantages_of(
                *arrays, kl=config.kl, loss=config.loss, whiten_rewards=config.reward.whiten
            )
        )

    # --- one update -------------------------------------------------------------------------

    def update(self, number: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its passes; returns metrics and a few samples as rows."""
        started = time.perf_counter()
        batch = self.prompts.next()
        completions, request = self._sample(batch, number)
        sampled = time.perf_counter()
        rows = join_rows(request.prompt_ids, completions, multiple=16)
        scored = self._score_all(rows)
        gap = self._check_logps(number, rows, scored, completions)
        rewards = evaluate_reward(self.reward, request)
        raw = np.asarray(rewards.scores) + np.asarray(rewards.token_rewards).sum(1)
        scores = final_scores(self.config.reward, rewards, completions, self.moments)
        assert rewards.valid is not None and rewards.token_rewards is not None
        if not rewards.valid.any():
            raise UserError(f"update {number}: no reward applies to any of the {len(raw)} completions")
        data, metrics = self._advantages(
            drop_rows(scored, rewards.valid),
            jnp.asarray(scores),
            jnp.asarray(rows.from_completion(rewards.token_rewards)),
            jnp.asarray([reason == "length" for reason in completions.finish_reason]),
            jnp.float32(self.coefficient),
        )
        judged = time.perf_counter()
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        metrics |= self._optimize(number, {k: np.asarray(v) for k, v in jax.device_get(data).items()})
        finished = time.perf_counter()
        valid = rewards.valid
        metrics |= {
            "objective/score": float(raw[valid].mean()),
            "objective/score_std": float(raw[valid].std()),
            "objective/kl_coefficient": self.coefficient,
            "rollout/length": float(completions.lengths.mean()),
            "rollout/stop_rate": float(np.mean([r == "stop" for r in completions.finish_reason])),
            "rollout/valid_rows": float(valid.mean()),
            "rollout/logp_gap": gap,
            **{f"reward/{name}": float(value) for name, value in rewards.metrics.items()},
            "time/sample_seconds": sampled - started,
            "time/score_seconds": judged - sampled,
            "time/optimize_seconds": finished - judged,
            "time/tokens_per_second": float(completions.lengths.sum()) / (finished - started),
        }
        kl = metrics["objective/kl"]
        self.negative, warning = negative_streak(self.negative, kl)
        if warning:
            self.run.warn(f"update {number}: {warning}")
        self.coefficient = next_coefficient(self.config.kl, self.coefficient, kl, len(raw))
        shown = [
            {"prompt": request.prompts[i], "completion": request.completions[i], "score": float(raw[i])}
            for i in range(min(self.config.run.sample_rows, len(raw)))
        ]
        return metrics, shown

    def _sample(self, batch: Mapping[str, Any], number: int) -> tuple[Completions, RewardRequest]:
        sampling = self.config.sampling
        prompts = [list(p) for p in batch["prompts"]]
        sampler = self.generator.refresh(self.state.params["policy"])
        completions = sampler.generate(
            prompts, key=jax.random.fold_in(self.key, number), **sampling.arguments()
        )
        copies = sampling.num_samples
        prompt_ids = [p for p in prompts for _ in range(copies)]
        texts = [t for t in batch["prompt_texts"] for _ in range(copies)]
        columns = {k: [v for v in values for _ in range(copies)] for k, values in batch["columns"].items()}
        return completions, RewardRequest(
            prompts=texts,
            completions=completions.texts(self.tokenizer),
            prompt_ids=prompt_ids,
            completion_ids=completions.token_lists(),
            columns=columns,
            width=completions.tokens.shape[1],
        )

    def _score_rows(self, params, frozen, reference, tokens, lengths, mask) -> Scored:
        temperature = self.config.sampling.temperature
        scores, values, after = self.models.score(
            params, frozen, tokens, lengths, mask, temperature=temperature
        )
        # A reference whose penalty is 0 still gives the KL that is logged and alarmed on.
        ref = self.models.reference_logps(reference, tokens, lengths, mask, temperature=temperature)
        return Scored(tokens, lengths, mask, scores.logps, ref, values, scores.entropy, after)

    def _score_all(self, rows: Any) -> Scored:
        size = min(self.config.train.score_batch_size, len(rows.lengths))
        parts = []
        for start in range(0, len(rows.lengths), size):
            piece = {
                name: _padded(getattr(rows, name)[start : start + size], size)
                for name in ("tokens", "lengths", "mask")
            }
            placed = shard_batch(piece, self.mesh)
            scored = self._score(
                self.state.params,
                self.frozen,
                self.reference,
                placed["tokens"],
                placed["lengths"],
                placed["mask"],
            )
            parts.append(jax.device_get(scored))
        whole = jax.tree.map(lambda *x: np.concatenate(x)[: len(rows.lengths)], *parts)
        return replace(whole, tokens=rows.tokens, lengths=rows.lengths, mask=rows.mask)

    def _within_limit(self, metrics: Mapping[str, jax.Array]) -> jax.Array:
        return metrics["policy/ratio_mean"] <= self.config.loss.ratio_limit

    def _check_logps(self, number: int, rows: Any, scored: Scored, completions: Completions) -> float:
        """Largest difference of the sampler's and the training forward's log-probs, in nats."""
        sampled = rows.from_completion(np.where(completions.mask, completions.logps, 0.0))
        gap = float(np.max(np.abs(np.where(rows.mask, sampled - scored.logps, 0.0)), initial=0.0))
        default = 1e-3 if self.config.model.compute_dtype == "float32" else 0.1
        tolerance = self.config.train.logp_tolerance or default
        if number == 1 and not gap <= tolerance:
            raise UserError(
                f"sampler and training log-probs of the same tokens differ by {gap:.3g} nats, more than "
                f"train.logp_tolerance = {tolerance:g}; the update would not be on-policy"
            )
        return gap

    def _optimize(self, number: int, data: dict[str, np.ndarray]) -> dict[str, float]:
        train = self.config.train
        rows = len(data["lengths"])
        size = rows // train.minibatches
        warming = number <= self.config.critic.warmup_updates
        data["policy_weight"] = np.full(rows, 0.0 if warming else 1.0, np.float32)
        seen: list[dict[str, jax.Array]] = []
        for epoch in range(train.epochs):
            key = jax.random.fold_in(jax.random.fold_in(self.key, number), 1_000_003 + epoch)
            order = np.asarray(jax.random.permutation(key, rows))
            for start in range(0, rows, size):
                pick = order[start : start + size]
                batch = shard_batch({name: value[pick] for name, value in data.items()}, self.mesh)
                self.state, metrics = self._update(self.state, self.frozen, batch, self.key)
                seen.append(metrics)
            if train.target_kl and epoch + 1 < train.epochs:
                recent = [float(m["policy/approx_kl"]) for m in seen[-train.minibatches :]]
                if np.mean(recent) > train.target_kl:
                    break
        fetched = jax.device_get(seen)
        if not all(m["finite"] for m in fetched):
            raise UserError(
                f"update {number}: the loss or the gradient norm is not finite; the last saved checkpoint is good "
                "(a smaller learning rate or float32 compute may help)"
            )
        metrics = {
            name: float(np.mean([m[name] for m in fetched])) for name in fetched[0] if name != "finite"
        }
        metrics["policy/ratio_max"] = float(np.max([m["policy/ratio_max"] for m in fetched]))
        # Before the first step the policy is the one that sampled, so the first ratio is 1.
        metrics["policy/first_ratio"] = float(fetched[0]["policy/ratio_mean"])
        metrics["policy/steps"] = float(len(fetched))
        return metrics

    # --- saving -----------------------------------------------------------------------------

    def extra(self) -> dict[str, Any]:
        """What the checkpoint holds beside arrays."""
        moments = self.moments
        return {
            "prompts": dict(self.prompts.state()),
            "kl_coefficient": self.coefficient,
            "moments": [moments.count, moments.mean, moments.square],
            "negative": self.negative,
        }

    def restore(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """The inverse of saving `state` with `extra()`."""
        self.state = state
        self.prompts.restore(extra["prompts"])
        self.coefficient = float(extra["kl_coefficient"])
        self.moments = RunningMoments(*extra["moments"])
        self.negative = int(extra["negative"])


def train_ppo(
    config: PPOConfig, *, policy: Any = None, reward: Any = None, tokenizer: Any = None
) -> TrainResult:
    """Trains a policy against a reward by PPO.

    Args:
      config: see `PPOConfig`.
      policy: a live model in place of `config.model`; needs `tokenizer`.
      reward: a live reward (see `jaxalign.rewards`) or scalar model in place of `config.reward`.
      tokenizer: the policy's tokenizer.

    Returns:
      The run folder, the last update's metrics and the model.

    Raises:
      UserError: anything wrong with configuration, files, rows or rewards, in one line.
    """
    mesh = setup.start(config.run, config.mesh)
    key = jax.random.key(config.run.seed)
    with Run.open(config.run, config, "ppo") as run:
        if policy is None:
            policy, tokenizer = setup.load_model(config.model, mesh, seed=config.run.seed)
        parts = build(config, policy, reward, mesh, key=jax.random.fold_in(key, 1))
        data = load_dataset(config.data, "prompt", tokenizer, seed=config.run.seed)
        setup.check_context(policy.config, data, new_tokens=config.sampling.max_new_tokens)
        run.add_metadata(data=data.summary(), mesh=dict(mesh.shape))
        prompts = BatchIterator(
            data.train, batch_size=config.train.prompts, seed=config.run.seed, collate=collate_prompts
        )
        trainer = Trainer(
            config=config,
            run=run,
            mesh=mesh,
            models=parts.models,
            frozen=parts.frozen,
            reference=parts.reference,
            reward=parts.reward,
            tokenizer=tokenizer,
            prompts=prompts,
            state=create_state(parts.trained, parts.optimizer),
            optimizer=parts.optimizer,
            key=jax.random.fold_in(key, 2),
        )
        metrics = _run(trainer, config, run)
        model = setup.export_policy(
            run,
            parts.models.policy,
            trainer.state.params["policy"],
            parts.frozen["policy"],
            tokenizer,
            config.lora,
        )
        run.finish(metrics)
        return TrainResult(run.folder, metrics, model, tokenizer)


def _run(trainer: Trainer, config: PPOConfig, run: Run) -> dict[str, float]:
    """All updates, from the newest checkpoint where the run resumes."""
    metrics: dict[str, float] = {}
    total, every = config.train.updates, config.run
    with setup.checkpoint_store(run) as store, StopFlag() as stop:
        for number in range(_first_update(trainer, store, run) + 1, total + 1):
            metrics, samples = trainer.update(number)
            last, halted = number == total, stop.signal_received is not None
            if number == 1 or last or (every.log_every and number % every.log_every == 0):
                run.log_metrics(number, metrics)
            run.progress(number, total, metrics["objective/score"], metrics["time/tokens_per_second"])
            if last or (every.sample_every and number % every.sample_every == 0):
                run.log_samples(number, samples)
            if last or halted or (every.save_every and number % every.save_every == 0):
                store.save(number, trainer.state, trainer.extra(), metrics=metrics)
            if halted and not last:
                raise Interrupted(stop.signal_received or 15)
    return metrics


def _first_update(trainer: Trainer, store: CheckpointStore, run: Run) -> int:
    """The number of updates done before: 0, or that of the newest checkpoint, to which trainer and log go back."""
    if not run.resumed:
        return 0
    done = store.latest_step() or 0
    if done:
        trainer.restore(*store.restore(done, trainer.state))
    run.rewind(done if done else -1)
    return done


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """`size` rows: the last ones repeat row 0 where there are fewer, and are cut off again."""
    missing = size - len(array)
    return array if not missing else np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
