"""Online direct preference optimization: a preference loss on pairs that the policy itself draws.

One update:

    sample completions -> a reward or a judge makes one pair a prompt -> score them (policy, reference)
    -> epochs x minibatches of the preference loss -> log, save

A prompt whose completions tie (equal scores, equal tokens, no opinion of the judge) gives no pair.

Sources: arXiv:2402.04792 (two completions and a judge); arXiv:2401.10020, section 2.4 (the best and the worst of
several, ties left out; there in rounds of whole data sets).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import jax
import numpy as np
from jaxtyping import Float

from jaxalign import models
from jaxalign.arrays import AnyArray
from jaxalign.errors import ConfigError, UserError
from jaxalign.host_memory import on_device
from jaxalign.rewards import RewardRequest, evaluate_judge, load_function
from jaxalign.rollout import Completions, Engine, Sampler, join_rows
from jaxalign.runs import Given, Live
from jaxalign.training.core.batch import valid_count
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.preference.config import DPOLossConfig
from jaxalign.training.preference.objectives import (
    PAIR,
    PreferenceBatch,
    check_pair_loss,
    completion_sums,
    loss_of_rows,
    scored_rows,
    whole_batch_statistics,
)
from jaxalign.training.rl.on_policy_run import OnPolicyRun, TrainResult, fit_on_policy
from jaxalign.training.rl.online_dpo_config import JudgeSource, OnlineDPOConfig
from jaxalign.training.rl.policy_trainer import PolicyTrainer, policy_trainer
from jaxalign.training.rl.rollout_metrics import completion_metrics, step_metrics

__all__ = ["JudgeSource", "OnlineDPOConfig", "train_online_dpo"]

# Folded into an update's key, beside the parts of its rollout (0, 1, ...) and its epochs (1_000_003 and on).
REFERENCE_SAMPLES, SHOWN_ORDER = 2_000_003, 3_000_017


@dataclass(frozen=True)
class Pairs:
    """One pair a prompt, P of them, as rows of the rollout.

    Attributes:
      chosen: int [P].
      rejected: int [P]; the same row as `chosen` where there is no pair.
      valid: bool [P].
    """

    chosen: np.ndarray
    rejected: np.ndarray
    valid: np.ndarray


def best_and_worst(scores: np.ndarray, valid: np.ndarray, group: int) -> Pairs:
    """The best against the worst of each group of consecutive rows, by their scores.

    Args:
      scores: float32 [P * group].
      valid: bool [P * group], rows that have a score; a group with fewer than two gives no pair.
      group: completions a prompt.
    """
    scored, known = scores.reshape(-1, group), valid.reshape(-1, group)
    start = np.arange(len(scored)) * group
    best = start + np.where(known, scored, -np.inf).argmax(1)
    worst = start + np.where(known, scored, np.inf).argmin(1)
    differ = (known.sum(1) > 1) & (scores[best] > scores[worst])
    return Pairs(best, np.where(differ, worst, best), differ)


def preferred(preference: np.ndarray) -> Pairs:
    """The completion that a judge prefers against the other; `preference` [P] is its opinion of the first of two."""
    start = np.arange(len(preference)) * 2
    chosen = start + (preference < 0.5)
    differ = preference != 0.5
    return Pairs(chosen, np.where(differ, 2 * start + 1 - chosen, chosen), differ)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SampledPairs(PreferenceBatch):
    """Pairs of the policy's own samples; `ref_logps` is there for a loss with a reference.

    Attributes:
      old_logps: log-probs of the tokens under the policy that sampled, nats.
    """

    old_logps: Float[AnyArray, "B 2 T"]


def make_pair_loss(
    policy: CausalPolicy,
    config: DPOLossConfig,
    temperature: float,
    own: Callable[..., Any] | None = None,
):
    """Builds the loss function of `make_update` for `SampledPairs`. For `own` see `objectives.row_terms`."""

    def loss(params: Any, frozen: Any, batch: SampledPairs, key: Any, counts: jax.Array):
        del key  # dropout is off: the policy is the one that sampled
        base = {"base": frozen["policy"]}
        rows, scores, mask = scored_rows(
            policy, None, config, params["policy"], base, batch, None, temperature=temperature
        )
        total, metrics = loss_of_rows(config, rows, scores, mask, batch, counts, own)
        old = batch.old_logps.reshape(mask.shape)
        return total, {f"pairs/{n}": x for n, x in metrics.items()} | step_metrics(scores, old, mask)

    return loss


@dataclass(kw_only=True)
class Trainer(PolicyTrainer):
    """The live objects of one run; `judge` is None where there is a reward."""

    judge: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        config, temperature = self.config, self.config.sampling.temperature
        num_microbatches, spec = config.train.accumulation_steps, config.loss.spec
        loss = make_pair_loss(self.policy, config.loss, temperature, self.run.given.loss)
        self._step = self.make_step(loss, counts=valid_count)
        self._coupled = num_microbatches > 1 and bool(spec.statistic)
        self._with_statistics = whole_batch_statistics(
            self.policy, None, config.loss, num_microbatches, temperature=temperature
        )
        self._sums = jax.jit(
            lambda logps, mask: completion_sums(logps, mask, (len(mask) // 2, 2), config.loss.length_alpha)
        )
        self._reference_sampler = Sampler(models.merge(self.reference_definition, self.reference))

    def update(self, number: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its passes; returns metrics and a few pairs as rows."""
        completions, request = self.sample(number)
        answers = self._reference_answers(number, request)
        self.watch.end_sampling()
        rows = join_rows(request.prompt_ids, completions, multiple=self.row_multiple)
        scored, gaps = self.score_completions(number, rows, completions)
        logps, ref_logps, entropy = scored.logps, scored.ref_logps, scored.entropy
        assert logps is not None and ref_logps is not None and entropy is not None
        scores = None
        if self.judge is None:
            pairs, metrics, scores = self._rewarded(number, completions, request)
        else:
            pairs, metrics = self._judged(number, request, answers)
            metrics |= completion_metrics(completions)
        pairs = _without_equal(pairs, request)
        counted = int(pairs.valid.sum())
        order = np.stack([pairs.chosen, pairs.rejected], axis=1)  # [P, 2]
        sums = None
        if self.config.loss.spec.reference:
            of_rows = ref_logps[order].reshape(2 * len(order), -1)
            sums = np.asarray(self._sums(of_rows, rows.mask[order.ravel()]))
        batch = SampledPairs(
            tokens=rows.tokens[order],
            lengths=rows.lengths[order],
            mask=rows.mask[order],
            old_logps=logps[order],
            ref_logps=sums,
            desirable=np.tile(PAIR, (len(order), 1)),
            valid=pairs.valid,
        )
        if counted:
            metrics |= self.passes(number, batch, self._update, counted=pairs.valid)
        else:
            self.run.warn(
                f"update {number}: skipped, because the completions of all {len(order)} prompts tie"
            )
        metrics |= {
            "objective/kl": float((logps - ref_logps).sum() / len(logps)),
            "objective/entropy": float(np.where(rows.mask, entropy, 0.0).sum() / rows.mask.sum()),
            "rollout/pairs": float(counted),
            "rollout/ties": float(len(order) - counted),
            **gaps,
            **self.watch.metrics(int(completions.lengths.sum())),
        }
        if scores is not None and counted:
            metrics["objective/score_chosen"] = float(scores[pairs.chosen[pairs.valid]].mean())
            metrics["objective/score_rejected"] = float(scores[pairs.rejected[pairs.valid]].mean())
        return metrics, self._pair_samples(request, pairs, scores)

    def _update(self, state: Any, frozen: Any, batch: SampledPairs, key: jax.Array):
        if self._coupled:
            base = {"base": frozen["policy"]}
            batch = self._with_statistics(state.params["policy"], base, batch)
        return self._step(state, frozen, batch, key)

    # --- pairs ------------------------------------------------------------------------------

    def _rewarded(
        self, number: int, completions: Completions, request: RewardRequest
    ) -> tuple[Pairs, dict[str, float], np.ndarray]:
        """Pairs by reward; metrics; the rewards before any shaping, [N]."""
        rewards = self.rewarded(request, completions)
        if not rewards.valid.any():
            raise UserError(
                f"update {number}: no reward applies to any of the {len(rewards.valid)} completions"
            )
        scores = rewards.scores + rewards.token_sums
        pairs = best_and_worst(scores, rewards.valid, self.config.sampling.num_samples)
        return pairs, self.rollout_metrics(completions, rewards), rewards.raw

    def _judged(
        self, number: int, request: RewardRequest, answers: list[str]
    ) -> tuple[Pairs, dict[str, float]]:
        """Pairs by the judge's preference, and how often the policy's samples win against the reference's."""
        count, against = len(request.prompts) // 2, len(answers)
        # One call for both: a judge may be slow to ask, and batch by itself.
        asked = [2 * i for i in (*range(count), *range(against))]
        verdicts = evaluate_judge(
            self.judge,
            [request.prompts[i] for i in asked],
            [request.completions[i] for i in asked],
            [*request.completions[1::2], *answers],
            columns={name: [values[i] for i in asked] for name, values in request.columns.items()},
            key=jax.random.fold_in(jax.random.fold_in(self.key, number), SHOWN_ORDER),
        )
        metrics = {f"judge/{name}": value for name, value in verdicts.metrics.items()}
        if against:
            wins = np.sign(verdicts.preference[count:] - 0.5) / 2 + 0.5
            metrics["objective/score"] = float(wins.mean())
        return preferred(verdicts.preference[:count]), metrics

    def _reference_answers(self, number: int, request: RewardRequest) -> list[str]:
        """The reference's completions of the first prompts, for the judge; none without a judge."""
        count = min(self.config.judge.reference_prompts, self.config.train.prompts)
        if self.judge is None or not count:
            return []
        key = jax.random.fold_in(jax.random.fold_in(self.key, number), REFERENCE_SAMPLES)
        return self._by_reference(list(request.prompt_ids[: 2 * count : 2]), key)

    def held_out_scores(self, request: RewardRequest, key: jax.Array) -> dict[str, np.ndarray]:
        """See `OnPolicyTrainer`; with a judge, how often it prefers the policy's completion to the reference's."""
        if self.judge is None:
            return super().held_out_scores(request, key)
        if not self.config.judge.reference_prompts:
            return {}
        verdicts = evaluate_judge(
            self.judge,
            request.prompts,
            request.completions,
            self._by_reference(list(request.prompt_ids), jax.random.fold_in(key, REFERENCE_SAMPLES)),
            columns=request.columns,
            key=jax.random.fold_in(key, SHOWN_ORDER),
        )
        return {"win_rate": np.sign(verdicts.preference - 0.5) / 2 + 0.5}

    def _by_reference(self, prompts: list[Any], key: jax.Array) -> list[str]:
        """One completion a prompt by the reference."""
        self._reference_sampler.update(on_device(self.reference))
        done = self._reference_sampler.generate(
            prompts,
            key=key,
            **self.config.sampling.arguments(num_samples=1, stop_tokens=self.generator.stop_tokens),
        )
        self._reference_sampler.update(self.reference)
        return done.texts(self.tokenizer)

    def _pair_samples(
        self, request: RewardRequest, pairs: Pairs, scores: np.ndarray | None
    ) -> list[dict[str, Any]]:
        """The first pairs as rows of samples.jsonl."""
        rows = []
        for place in np.flatnonzero(pairs.valid)[: self.config.run.sample_rows]:
            good, bad = int(pairs.chosen[place]), int(pairs.rejected[place])
            row: dict[str, Any] = {
                "prompt": request.prompts[good],
                "chosen": request.completions[good],
                "rejected": request.completions[bad],
            }
            if scores is not None:
                row |= {"chosen_score": float(scores[good]), "rejected_score": float(scores[bad])}
            for name, values in request.shown.items():
                row |= {f"chosen_{name}": values[good], f"rejected_{name}": values[bad]}
            rows.append(row)
        return rows


def _without_equal(pairs: Pairs, request: RewardRequest) -> Pairs:
    """A completion against itself teaches nothing, whatever was said of the two."""
    ids = request.completion_ids
    equal = [list(ids[a]) == list(ids[b]) for a, b in zip(pairs.chosen, pairs.rejected, strict=True)]
    return Pairs(pairs.chosen, pairs.rejected, pairs.valid & ~np.asarray(equal))


def train_online_dpo(
    config: OnlineDPOConfig,
    *,
    policy: Any = None,
    reward: Any = None,
    judge: Any = None,
    tokenizer: Any = None,
    engine: Engine | None = None,
    loss: Any = None,
    **live: Unpack[Live],
) -> TrainResult:
    """Trains a policy on pairs of its own samples, ranked by a reward or a judge (online DPO).

    Args:
      config: see `OnlineDPOConfig`.
      policy: a live model to use in place of `config.model`; needs `tokenizer`.
      reward: a live reward (see `jaxalign.rewards`) or scalar model to use in place of `config.reward`.
      judge: a live judge (see `jaxalign.rewards.judge`) to use in place of `config.judge.function`.
      tokenizer: the policy's tokenizer.
      engine: the engine that samples, in place of `config.rollout.engine` (see `jaxalign.rollout.Engine`).
      loss: as for `train_dpo`.
      live: train_dataset, eval_dataset, eval_reward, optimizer, callbacks and trackers; see `jaxalign.runs.Given`.

    Returns:
      The run folder, the last record of metrics and the model. `objective/score` is the mean reward of all samples;
        with a judge, the policy's win rate over the reference (a tie is half a win).

    Raises:
      UserError: an invalid configuration, file, row, reward or verdict; the message is one line.
    """

    loss = check_pair_loss(loss, config.loss)
    given = Given.of(
        train_online_dpo,
        live,
        loss=loss,
        others={"policy": policy, "reward": reward, "judge": judge, "tokenizer": tokenizer, "engine": engine},
    )

    def begin(run: OnPolicyRun, start: Any, words: Any) -> Trainer:
        judging = judge is not None or bool(config.judge.function)
        if judging and reward is not None:
            raise ConfigError(
                "judge and reward: pass one of them; a judge compares completions instead of scoring them"
            )
        if judging:
            try:
                config.check_judged()
            except ValueError as error:
                raise ConfigError(str(error)) from None
            compares = judge or load_function(config.judge.function, kind="judge")
            return policy_trainer(Trainer, "online-dpo", run, start, words, reward=None, judge=compares)
        if reward is None and config.reward == RewardSource():
            raise ConfigError("reward: expected reward.model, reward.functions or judge.function, got none")
        source = run.reward(reward, start, words)
        return policy_trainer(Trainer, "online-dpo", run, start, words, reward=source)

    return fit_on_policy("online-dpo", config, given, begin)
