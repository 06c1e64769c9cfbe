"""Proximal policy optimization for language models, with a critic.

One update:

    sample completions -> score them (policy, reference, critic) -> reward
    -> KL penalty, GAE, whitening -> epochs x minibatches of the clipped loss
    -> KL controller -> log, save

With one optimizer step a rollout, that step's own forward passes are the scores of policy and critic.

Sources: arXiv:1707.06347 (PPO), arXiv:1909.08593 and arXiv:2009.01325 (on language
models); the details follow "The N implementation details of RLHF with PPO" (2023).
"""

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import numpy as np

from jaxalign.errors import UserError
from jaxalign.host_memory import on_device
from jaxalign.rollout import Completions, Engine, join_rows
from jaxalign.rollout.trajectory import Rows
from jaxalign.runs import Given, Live
from jaxalign.training.core.own_loss import check_own_loss
from jaxalign.training.core.packing import packing_of
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.step import make_update
from jaxalign.training.core.stopwatch import Stopwatch
from jaxalign.training.rl.actor_critic import ActorCritic, build
from jaxalign.training.rl.gae_inputs import Scored, advantages_of, final_scores, judged
from jaxalign.training.rl.kl_controller import negative_streak, next_coefficient
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.on_policy_run import OnPolicyRun, fit_on_policy
from jaxalign.training.rl.ppo_config import PPOConfig
from jaxalign.training.rl.ppo_step import make_ppo_loss, ppo_counts
from jaxalign.training.rl.rollout_engine import sampler_logps
from jaxalign.training.rl.rollout_metrics import rollout_metrics

__all__ = ["PPOConfig", "train_ppo"]


@dataclass(kw_only=True)
class Trainer(OnPolicyTrainer):
    """The live objects of one PPO run; `coefficient` and `negative` are saved too."""

    models: ActorCritic
    reference: Any
    coefficient: float = 0.0
    negative: int = 0

    def __post_init__(self) -> None:
        config = self.config
        self.coefficient = config.kl.coefficient
        make_advantages = functools.partial(
            advantages_of, kl=config.kl, loss=config.loss, whiten_rewards=config.reward.whiten
        )
        update = functools.partial(
            make_update,
            make_ppo_loss(
                self.models, config.loss, config.sampling.temperature, make_advantages, self.run.given.loss
            ),
            ppo_counts,
            self.optimizer,
            accumulation_steps=config.train.accumulation_steps,
            accept=self._within_limit if config.loss.ratio_limit else None,
        )
        self._update, self._warm_up = update(), update(learning="critic")
        self._score = jax.jit(self._score_rows, static_argnames="learners")
        self._advantages = jax.jit(make_advantages)

    @property
    def one_step(self) -> bool:
        """Whether a rollout has one optimizer step, on all of it at once, and nothing is asked of the policy before."""
        train = self.config.train
        return train.epochs * train.minibatches * train.accumulation_steps == 1 and not (
            self.config.importance_cap
        )

    def update(self, number: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its passes; returns metrics and a few samples as rows."""
        watch = Stopwatch()
        completions, request = self.sample(number)
        watch.sampled = time.perf_counter()
        rewards = judged(self.reward, request, completions)
        raw = np.asarray(rewards.scores) + np.asarray(rewards.token_rewards).sum(1)
        assert rewards.valid is not None and rewards.token_rewards is not None
        if not rewards.valid.any():
            raise UserError(f"update {number}: no reward applies to any of the {len(raw)} completions")
        rows = join_rows(request.prompt_ids, completions, multiple=16)
        token_rewards = rows.from_completion(rewards.token_rewards)
        # Rows to which no reward applies count nowhere.
        rows = replace(rows, mask=rows.mask & rewards.valid[:, None])
        asked = not self.one_step or self.must_check(number)
        found = self._scored(rows, learners=asked)
        gaps = self.check_logps(number, rows, found["logps"], completions) if asked else {}
        outcome = {
            "scores": final_scores(self.config.reward, rewards, completions, self.moments),
            "token_rewards": np.where(rows.mask, token_rewards, 0.0),
            "truncated": np.array([reason == "length" for reason in completions.finish_reason]),
        }
        metrics: dict[str, float] = {}
        if self.one_step:
            data = self._unjudged(rows, found, outcome, completions)
        else:
            data, metrics = self._judged(rows, found, outcome)
        watch.scored = time.perf_counter()
        warming = number <= self.config.critic.warmup_updates
        data["policy_weight"] = np.full(len(raw), 0.0 if warming else 1.0, np.float32)
        if cap := self.config.importance_cap:
            weights = self.weights(cap, rows, data["old_logps"], data["mask"], completions)
            data["weights"] = weights
        metrics |= self.passes(number, data, self._warm_up if warming else self._update)
        if self.one_step:
            metrics["rollout/logp_gap"] = metrics.pop("rollout/logp_gap_max")
            if not asked:
                self.check_gaps(number, metrics)
        metrics |= rollout_metrics(completions, rewards, raw)
        metrics |= {
            "objective/kl_coefficient": self.coefficient,
            **gaps,
            **watch.metrics(int(completions.lengths.sum())),
        }
        if not self.config.kl.measured:
            # There is no reference: what stands for its log-probs says nothing.
            del metrics["objective/kl"], metrics["objective/kl_per_token"]
            return metrics, self.samples(request, raw)
        kl = metrics["objective/kl"]
        self.negative, warning = negative_streak(self.negative, kl)
        if warning:
            self.run.warn(f"update {number}: {warning}")
        self.coefficient = next_coefficient(self.config.kl, self.coefficient, kl, len(raw))
        return metrics, self.samples(request, raw)

    def held_out_kl(self, rows: Rows) -> np.ndarray | None:
        """See `OnPolicyTrainer`."""
        if not self.config.kl.measured:
            return None
        found = self._scored(rows, learners=True)
        return (found["logps"] - found["ref_logps"]).sum(1)

    def _scored(self, rows: Rows, *, learners: bool) -> dict[str, np.ndarray]:
        """What policy and critic (`learners`) and the reference say of the rows: fields of `Scored`."""
        if not learners and not self.config.kl.measured:
            return {}
        # On the device for as long as this takes.
        reference = on_device(self.reference)

        def score(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return self._score(self.state.params, self.frozen, reference, batch, learners=learners)

        return self.score_rows(rows, score)

    def _score_rows(self, params, frozen, reference, batch, *, learners: bool) -> dict[str, jax.Array]:
        tokens, lengths, mask = batch["tokens"], batch["lengths"], batch["mask"]
        options = {"temperature": self.config.sampling.temperature, "packing": packing_of(batch)}
        found = {}
        if learners:
            scores, values, after = self.models.score(params, frozen, tokens, lengths, mask, **options)
            found |= {
                "logps": scores.logps,
                "entropy": scores.entropy,
                "values": values,
                "next_values": after,
            }
        if self.config.kl.measured:
            found["ref_logps"] = self.models.reference_logps(reference, tokens, lengths, mask, **options)
        return found

    def _judged(
        self, rows: Rows, found: dict[str, np.ndarray], outcome: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The rollout as several steps read it, and its metrics; `outcome` is what rewards made of it."""
        found = {"ref_logps": found["logps"]} | found
        scored = Scored(tokens=rows.tokens, lengths=rows.lengths, mask=rows.mask, **found)
        judged = self._advantages(scored, **outcome, coefficient=np.float32(self.coefficient))
        data, metrics = jax.device_get(judged)
        return dict(data), {name: float(value) for name, value in metrics.items()}

    def _unjudged(
        self,
        rows: Rows,
        found: dict[str, np.ndarray],
        outcome: dict[str, np.ndarray],
        completions: Completions,
    ) -> dict[str, np.ndarray]:
        """The rollout as its only step reads it, which finds the rest by itself (see `make_ppo_loss`)."""
        data = {
            "tokens": rows.tokens,
            "lengths": rows.lengths,
            "mask": rows.mask,
            "sampler_logps": sampler_logps(rows, completions),
            "coefficient": np.full(len(rows.lengths), self.coefficient, np.float32),
        }
        if self.config.kl.measured:
            data["ref_logps"] = found["ref_logps"]
        return data | outcome

    def _within_limit(self, metrics: Mapping[str, jax.Array]) -> jax.Array:
        return metrics["policy/ratio_mean"] <= self.config.loss.ratio_limit

    def extra(self) -> dict[str, Any]:
        """What the checkpoint holds beside arrays."""
        return {**super().extra(), "kl_coefficient": self.coefficient, "negative": self.negative}

    def restore(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """The inverse of saving `state` with `extra()`."""
        super().restore(state, extra)
        self.coefficient = float(extra["kl_coefficient"])
        self.negative = int(extra["negative"])


def train_ppo(
    config: PPOConfig,
    *,
    policy: Any = None,
    reward: Any = None,
    tokenizer: Any = None,
    engine: Engine | None = None,
    loss: Any = None,
    **live: Unpack[Live],
) -> TrainResult:
    """Trains a policy against a reward with proximal policy optimization (PPO).

    Args:
      config: see `PPOConfig`.
      policy: a live model to use in place of `config.model`; needs `tokenizer`.
      reward: a live reward (see `jaxalign.rewards`) or scalar model to use in place of `config.reward`.
      tokenizer: the policy's tokenizer.
      engine: the engine that samples, in place of `config.rollout.engine` (see `jaxalign.rollout.Engine`).
      loss: function to use in place of the clipped policy loss: loss(logps[B, T], old_logps[B, T], advantages[B, T],
        mask[B, T]) -> [B, T].
      live: train_dataset, eval_dataset, optimizer, callbacks and trackers; see `jaxalign.runs.Given`. `optimizer` is
        used for both policy and critic, each with its own state, or is {"policy": ..., "critic": ...}.

    Returns:
      The run folder, the last record of metrics and the model.

    Raises:
      UserError: an invalid configuration, file, row or reward; the message is one line.
    """
    tokens = ("B", "T")
    arrays = {"logps": tokens, "old_logps": tokens, "advantages": tokens, "mask": tokens}
    unread = ("clip_low", "clip_high", "dual_clip")
    loss = check_own_loss(loss, arrays, tokens, config=config.loss, unread=unread)
    given = Given(
        loss=loss,
        others={"policy": policy, "reward": reward, "tokenizer": tokenizer, "engine": engine},
        **live,
    )

    def begin(run: OnPolicyRun, start: Any, words: Any) -> Trainer:
        parts = build(config, start, reward, run.mesh, key=run.fold(1), tokenizer=words, run=run.run)
        reference = run.offloaded(parts.reference, parts.reward, parts.frozen["policy"])
        own = run.parts(
            "ppo",
            parts.models.policy,
            start.config,
            words,
            trained=parts.trained,
            frozen=parts.frozen,
            optimizer=parts.optimizer,
            schedules=parts.schedules,
        )
        return Trainer(models=parts.models, reference=reference, reward=parts.reward, **own)

    return fit_on_policy("ppo", config, given, begin)
