"""Group relative policy optimization and its relatives: policy gradients without a critic.

One update:

    sample groups of completions -> reward -> (more prompts while all rewards of a group are equal)
    -> score them (policy, and reference if the loss reads it) -> advantages -> epochs x minibatches of the loss
    -> log, save

GRPO, Dr. GRPO, DAPO, GSPO, CISPO, GMPO, RLOO, REINFORCE and REINFORCE++ differ in three choices, see
`recipes.RL_RECIPES`: how rewards become advantages (`grpo_advantages.ADVANTAGES`), which function of the ratio is
the loss, and what it is divided by.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.rollout import Engine, join_rows
from jaxalign.rollout.trajectory import Rows, sampler_logps
from jaxalign.runs import Given, Live
from jaxalign.training.rl.group_rollout import Rollout, in_loss, sample_rollout
from jaxalign.training.rl.grpo_advantages import RewardedRows, of_rows
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig
from jaxalign.training.rl.grpo_step import (
    GRPOBatch,
    GRPORollout,
    check_advantages,
    check_policy_loss,
    make_grpo_loss,
    make_single_step_grpo_loss,
)
from jaxalign.training.rl.on_policy_run import OnPolicyRun, TrainResult, fit_on_policy
from jaxalign.training.rl.policy_trainer import PolicyScores, PolicyTrainer, policy_trainer

__all__ = ["GRPOConfig", "train_grpo"]


def advantages_of(
    config: GRPOLossConfig, rows: RewardedRows, own: Callable[..., jax.Array] | None = None
) -> jax.Array:
    """Advantages [N, T] of a whole rollout, by `config.advantages` or by the user's function."""
    if config.beta and config.recipe.kl_in_score:
        assert rows.logps is not None and rows.ref_logps is not None
        # The k1 estimate of the whole completion, of which the baseline takes its part.
        kl = jnp.sum(jnp.where(rows.mask, rows.logps - rows.ref_logps, 0.0), axis=1)
        rows = replace(rows, scores=rows.scores - config.beta * kl)
    return of_rows(own)(rows) if own else config.advantage.function(rows)


class Trainer(PolicyTrainer):
    """The live objects of one run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config, temperature = self.config, self.config.sampling.temperature
        length, own = config.sampling.max_new_tokens, self.run.given.loss
        own_advantages = self.run.given.others.get("advantages")
        if self.one_step:
            self._learn, make_loss = self._learn_in_one_step, make_single_step_grpo_loss
        else:
            self._learn, make_loss = self._learn_in_several_steps, make_grpo_loss
        self._update = self.make_step(make_loss(self.policy, config.loss, temperature, length, own))
        self._advantages = jax.jit(lambda rows: advantages_of(config.loss, rows, own_advantages))

    def update(self, number: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its passes; returns metrics and a few samples as rows."""
        rollout, sampling_metrics = sample_rollout(self, number)
        self.watch.end_sampling()
        rows, counted = self._rows_of(rollout)
        metrics = self._learn(number, rollout, rows, counted)
        metrics |= self.rollout_metrics(rollout.completions, rollout.rewards) | sampling_metrics
        metrics["rollout/counted_rows"] = float(counted.mean())
        return metrics, self.samples(rollout.request, rollout.rewards.raw)

    def _learn_in_several_steps(
        self, number: int, rollout: Rollout, rows: Rows, counted: np.ndarray
    ) -> dict[str, float]:
        """Scores the rollout, then takes epochs x minibatches of steps on it."""
        completions, cap = rollout.completions, self.config.importance_cap
        scores, gaps = self.score_completions(number, rows, completions)
        assert scores.logps is not None
        mask = rows.mask & counted[:, None]
        weights = np.ones(mask.shape, np.float32)
        if cap:
            weights = self.weights(cap, rows, scores.logps, mask, completions)
        batch = GRPOBatch(
            tokens=rows.tokens,
            lengths=rows.lengths,
            mask=mask,
            old_logps=scores.logps,
            advantages=self._advantages_of(rollout, rows, mask, scores),
            weights=weights,
            ref_logps=scores.ref_logps,
        )
        return self.passes(number, batch, self._update) | gaps | _objective(scores, mask)

    def _learn_in_one_step(
        self, number: int, rollout: Rollout, rows: Rows, counted: np.ndarray
    ) -> dict[str, float]:
        """Takes one step on the rollout, whose own forward pass scores it before it moves the policy."""
        completions, mask = rollout.completions, rows.mask & counted[:, None]
        if checked := self.must_check(number):
            ref_logps = self.score_completions(number, rows, completions)[0].ref_logps
        else:
            ref_logps = self.reference_logps(rows)
        batch = GRPORollout(
            tokens=rows.tokens,
            lengths=rows.lengths,
            mask=mask,
            sampler_logps=sampler_logps(rows, completions),
            advantages=self._advantages_of(rollout, rows, mask, PolicyScores(ref_logps=ref_logps)),
            ref_logps=ref_logps,
        )
        metrics = self.single_step(number, batch, self._update, checked=checked)
        if metrics["policy/steps"]:
            metrics["objective/entropy"] = metrics["policy/entropy"]
        return metrics

    def _advantages_of(
        self, rollout: Rollout, rows: Rows, mask: np.ndarray, scores: PolicyScores
    ) -> np.ndarray:
        """Advantages [N, T] of the rows, 0 outside the mask.

        A group without differences has advantage 0 already; its KL and entropy terms stay.
        """
        step_rewards, steps = (rows.from_completion(x) for x in (rollout.step_rewards, rollout.steps))
        arrays: dict[str, Any] = {
            "scores": rollout.scores,
            "valid": rollout.rewards.valid,
            "mask": rows.mask,
            "logps": scores.logps,
            "ref_logps": scores.ref_logps,
            "step_rewards": step_rewards,
            "steps": steps,
        }
        rewarded = RewardedRows(**arrays, group=self.group, beta=self.config.loss.beta)
        return np.where(mask, np.asarray(self._advantages(rewarded)), 0.0)

    def _rows_of(self, rollout: Rollout) -> tuple[Rows, np.ndarray]:
        """Prompts with completions, masked where no reward applies; and bool [N], the rows that the loss reads."""
        rows = join_rows(rollout.request.prompt_ids, rollout.completions, multiple=self.row_multiple)
        rows = replace(rows, mask=rows.mask & rollout.rewards.valid[:, None])
        return rows, in_loss(self.config.loss, rollout.completions, rollout.rewards) & rows.mask.any(1)

    @classmethod
    def reads_reference(cls, config: GRPOConfig) -> bool:
        """Only for the KL to it."""
        return bool(config.loss.beta)

    @property
    def one_step(self) -> bool:
        """Whether the only optimizer step of a rollout can score it by its own forward pass.

        The old log-probs are then the new ones, without their gradient. Importance weights, and a KL in the rewards
        (RLOO, REINFORCE++), need them before the step.
        """
        train, loss = self.config.train, self.config.loss
        before = self.config.importance_cap or (loss.beta and loss.kl_in_reward)
        return train.epochs * train.minibatches == 1 and not before

    @property
    def group(self) -> int:
        """Completions a prompt."""
        return self.config.sampling.num_samples


def _objective(scores: PolicyScores, mask: np.ndarray) -> dict[str, float]:
    """Entropy a counted token, and the KL a counted row where there is a reference."""
    assert scores.entropy is not None
    metrics = {"objective/entropy": float(scores.entropy.sum(where=mask) / max(mask.sum(), 1))}
    if scores.ref_logps is not None:
        kl = (scores.logps - scores.ref_logps).sum(where=mask)
        metrics["objective/kl"] = float(kl / max(int(mask.any(1).sum()), 1))
    return metrics


def train_grpo(
    config: GRPOConfig,
    *,
    policy: Any = None,
    reward: Any = None,
    tokenizer: Any = None,
    engine: Engine | None = None,
    loss: Any = None,
    advantages: Any = None,
    **live: Unpack[Live],
) -> TrainResult:
    """Trains a policy against a reward with GRPO or a related policy-gradient method.

    Args:
      config: see `GRPOConfig`.
      policy: a live model to use in place of `config.model`; needs `tokenizer`.
      reward: a live reward (see `jaxalign.rewards`) or scalar model to use in place of `config.reward`.
      tokenizer: the policy's tokenizer.
      engine: the engine that samples, in place of `config.rollout.engine` (see `jaxalign.rollout.Engine`).
      loss: function to use in place of the one that `config.loss.name` selects; it receives the same arrays and none
        of the options. For grpo: loss(logps[B, T], old_logps[B, T], advantages[B, T], mask[B, T]) -> [B, T].
      advantages: function to use in place of `config.loss.advantages`, called on a whole rollout:
        advantages(rewards[B], group_size, mask[B]) -> [B], such as `losses.gpg_advantages`. The group_size
        completions of a prompt are consecutive; mask is True for completions with a reward.
      live: train_dataset, eval_dataset, eval_reward, optimizer, callbacks and trackers; see `jaxalign.runs.Given`.

    Returns:
      The run folder, the last record of metrics and the model.

    Raises:
      UserError: an invalid configuration, file, row or reward; the message is one line.
    """

    loss, advantages = check_policy_loss(loss, config.loss), check_advantages(advantages, config.loss)
    given = Given.of(
        train_grpo,
        live,
        loss=loss,
        others={
            "policy": policy,
            "reward": reward,
            "tokenizer": tokenizer,
            "engine": engine,
            "advantages": advantages,
        },
    )

    def begin(run: OnPolicyRun, start: Any, words: Any) -> Trainer:
        source = run.reward(reward, start, words, by_step=config.loss.advantage.steps)
        return policy_trainer(Trainer, "grpo", run, start, words, reward=source)

    return fit_on_policy("grpo", config, given, begin)
