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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import numpy as np

from jaxalign.errors import UserError
from jaxalign.host_memory import on_device
from jaxalign.models.flops import Pass
from jaxalign.rewards import RewardRequest
from jaxalign.rollout import Completions, Engine, join_rows
from jaxalign.rollout.trajectory import Rows, sampler_logps
from jaxalign.runs import Given, Live
from jaxalign.training.core.batch import TokenBatch
from jaxalign.training.core.state import TrainState
from jaxalign.training.rl.actor_critic import ActorCritic, build
from jaxalign.training.rl.gae_inputs import Outcome, RolloutScores, advantages_of
from jaxalign.training.rl.kl_controller import negative_streak, next_coefficient
from jaxalign.training.rl.on_policy import OnPolicyTrainer, ShapedRewards
from jaxalign.training.rl.on_policy_run import OnPolicyRun, TrainResult, fit_on_policy
from jaxalign.training.rl.ppo_config import PPOConfig
from jaxalign.training.rl.ppo_step import (
    PPOBatch,
    PPORollout,
    check_policy_loss,
    make_ppo_loss,
    make_single_step_ppo_loss,
)

__all__ = ["PPOConfig", "train_ppo"]


@dataclass(frozen=True)
class Rollout:
    """Completions and what they earned, on the host.

    Attributes:
      completions: what was sampled.
      rows: prompts with completions; rows to which no reward applies count nowhere.
      outcome: rewards as the algorithm reads them.
      policy_weight: float32 [N], 0 while only the critic learns.
    """

    completions: Completions
    rows: Rows
    outcome: Outcome
    policy_weight: np.ndarray


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
        advantages = functools.partial(
            advantages_of, kl=config.kl, loss=config.loss, whiten_rewards=config.reward.whiten
        )
        own, temperature = self.run.given.loss, config.sampling.temperature
        if self.one_step:
            self._learn = self._learn_in_one_step
            loss = make_single_step_ppo_loss(self.models, config.loss, temperature, advantages, own)
        else:
            self._learn = self._learn_in_several_steps
            loss = make_ppo_loss(self.models, config.loss, temperature, own)
        accept = self._within_limit if config.loss.ratio_limit else None
        self._update = self.make_step(loss, accept=accept)
        self._warm_up = self.make_step(loss, accept=accept, learning="critic")
        self._score, self._score_reference = jax.jit(self._scores_of), jax.jit(self._reference_logps_of)
        self._advantages = jax.jit(advantages)

    @property
    def one_step(self) -> bool:
        """Whether the only optimizer step of a rollout, on all of it at once, can score it."""
        train = self.config.train
        return train.epochs * train.minibatches * train.accumulation_steps == 1 and not (
            self.config.importance_cap
        )

    def learning_passes(self, number: int) -> list[Pass]:
        """See `OnPolicyTrainer`."""
        policy, *critic = self.models.training_passes
        if number <= self.config.critic.warmup_updates:
            policy = replace(policy, learns="nothing", adapter=0)
        return [policy, *critic]

    def update(self, number: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its passes; returns metrics and a few samples as rows."""
        completions, request = self.sample(number)
        self.watch.end_sampling()
        rewards = self.rewarded(request, completions)
        rollout = self._rollout(number, request, completions, rewards)
        step = self._warm_up if number <= self.config.critic.warmup_updates else self._update
        metrics = self._learn(number, rollout, step)
        metrics |= self.rollout_metrics(completions, rewards)
        metrics["objective/kl_coefficient"] = self.coefficient
        samples = self.samples(request, rewards.raw)
        if not metrics["policy/steps"]:
            return metrics, samples
        if not self.config.kl.measured:
            # Without a reference its log-probs are the policy's.
            del metrics["objective/kl"], metrics["objective/kl_per_token"]
            return metrics, samples
        kl = metrics["objective/kl"]
        self.negative, warning = negative_streak(self.negative, kl)
        if warning:
            self.run.warn(f"update {number}: {warning}")
        self.coefficient = next_coefficient(self.config.kl, self.coefficient, kl, len(rewards.raw))
        return metrics, samples

    def _rollout(
        self, number: int, request: RewardRequest, completions: Completions, rewards: ShapedRewards
    ) -> Rollout:
        valid = rewards.valid
        if not valid.any():
            raise UserError(f"update {number}: no reward applies to any of the {len(valid)} completions")
        rows = join_rows(request.prompt_ids, completions, multiple=self.row_multiple)
        rows = replace(rows, mask=rows.mask & valid[:, None])
        token_rewards = rows.from_completion(np.asarray(rewards.rewards.token_rewards))
        outcome = Outcome(
            scores=rewards.scores,
            token_rewards=np.where(rows.mask, token_rewards, 0.0),
            truncated=np.array([reason == "length" for reason in completions.finish_reason]),
        )
        warming = number <= self.config.critic.warmup_updates
        return Rollout(completions, rows, outcome, np.full(len(valid), 0.0 if warming else 1.0, np.float32))

    def _learn_in_several_steps(self, number: int, rollout: Rollout, step: Any) -> dict[str, float]:
        """Scores the rollout, then takes epochs x minibatches of steps on it."""
        rows, completions = rollout.rows, rollout.completions
        scores = self._scored(rows)
        gaps = self.check_logps(number, rows, scores.logps, completions)
        advantages, returns, objective = jax.device_get(
            self._advantages(scores, rows.mask, rollout.outcome, np.float32(self.coefficient))
        )
        weights = np.ones(rows.mask.shape, np.float32)
        if cap := self.config.importance_cap:
            weights = self.weights(cap, rows, scores.logps, rows.mask, completions)
        batch = PPOBatch(
            tokens=rows.tokens,
            lengths=rows.lengths,
            mask=rows.mask,
            old_logps=scores.logps,
            old_values=scores.values,
            advantages=advantages,
            returns=returns,
            weights=weights,
            policy_weight=rollout.policy_weight,
        )
        objective = {name: float(value) for name, value in objective.items()}
        return objective | self.passes(number, batch, step) | gaps

    def _learn_in_one_step(self, number: int, rollout: Rollout, step: Any) -> dict[str, float]:
        """Takes one step on the rollout, which scores it by itself."""
        rows, completions = rollout.rows, rollout.completions
        gaps, ref_logps = {}, None
        if checked := self.must_check(number):
            scores = self._scored(rows)
            gaps = self.check_logps(number, rows, scores.logps, completions)
            ref_logps = scores.ref_logps if self.config.kl.measured else None
        elif self.config.kl.measured:
            ref_logps = self._reference_logps(rows)
        batch = PPORollout(
            tokens=rows.tokens,
            lengths=rows.lengths,
            mask=rows.mask,
            outcome=rollout.outcome,
            sampler_logps=sampler_logps(rows, completions),
            ref_logps=ref_logps,
            coefficient=np.full(len(rows.lengths), self.coefficient, np.float32),
            policy_weight=rollout.policy_weight,
        )
        return self.single_step(number, batch, step, checked=checked) | gaps

    def held_out_kl(self, rows: Rows) -> np.ndarray | None:
        """See `OnPolicyTrainer`."""
        if not self.config.kl.measured:
            return None
        scores = self._scored(rows)
        return (scores.logps - scores.ref_logps).sum(1)

    def _scored(self, rows: Rows) -> RolloutScores:
        """What policy, critic and reference say of the rows, on the host."""
        # On the device for as long as this takes.
        reference = on_device(self.reference)
        params, frozen = self.state.params, self.frozen
        return self.score_rows(rows, lambda batch: self._score(params, frozen, reference, batch))

    def _reference_logps(self, rows: Rows) -> np.ndarray:
        reference = on_device(self.reference)
        return self.score_rows(rows, lambda batch: self._score_reference(reference, batch))

    def _scores_of(self, params: Any, frozen: Any, reference: Any, batch: TokenBatch) -> RolloutScores:
        temperature = self.config.sampling.temperature
        scores, values, after = self.models.score(params, frozen, batch, temperature=temperature)
        measured = self.config.kl.measured
        return RolloutScores(
            logps=scores.logps,
            ref_logps=self._reference_logps_of(reference, batch) if measured else scores.logps,
            values=values,
            entropy=scores.entropy,
            next_values=after,
        )

    def _reference_logps_of(self, reference: Any, batch: TokenBatch) -> jax.Array:
        return self.models.reference_logps(reference, batch, temperature=self.config.sampling.temperature)

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
      live: train_dataset, eval_dataset, eval_reward, optimizer, callbacks and trackers; see `jaxalign.runs.Given`.
        `optimizer` is used for both policy and critic, each with its own state, or is {"policy": ..., "critic": ...}.

    Returns:
      The run folder, the last record of metrics and the model.

    Raises:
      UserError: an invalid configuration, file, row or reward; the message is one line.
    """
    given = Given.of(
        train_ppo,
        live,
        loss=check_policy_loss(loss, config.loss),
        others={"policy": policy, "reward": reward, "tokenizer": tokenizer, "engine": engine},
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
