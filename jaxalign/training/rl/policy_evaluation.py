"""The policy on prompts that it never learns from: reward, KL from the reference and length, each with an interval."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.data import Example, collate_prompts
from jaxalign.rewards import RewardRequest, evaluate_reward
from jaxalign.rollout import Completions, join_rows
from jaxalign.rollout.trajectory import Rows
from jaxalign.training.core.answer_measures import with_interval
from jaxalign.training.core.eval_prompts import spread
from jaxalign.training.core.generate_evaluation import answer_request, scores_of
from jaxalign.training.core.generate_setup import HELD_OUT, Generated, generate_evaluation, logged
from jaxalign.training.core.generator import Generator
from jaxalign.training.core.open_run import OpenRun
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.state import TrainState


class Evaluated(ABC):
    """What an evaluation asks of a trainer; `on_policy.OnPolicyTrainer` has the rest."""

    config: Any
    tokenizer: Any
    reward: Any
    state: TrainState
    key: jax.Array
    generator: Generator
    held_out: Sequence[Example]
    policy: CausalPolicy
    frozen: Any
    row_multiple: int

    def request_of(
        self, batch: Mapping[str, Any], completions: Completions, number: int, copies: int
    ) -> RewardRequest:
        """What a reward is asked about so many completions of each prompt of a batch."""
        updates = self.config.train.updates
        return answer_request(
            batch, completions, self.tokenizer, copies=copies, update=number, updates=updates
        )

    def held_out_scores(self, request: RewardRequest, key: jax.Array) -> dict[str, np.ndarray]:
        """Rewards of held-out completions before any shaping, NaN where none applies; `key` is for draws of its own."""
        del key
        rewards = evaluate_reward(self.reward, request)
        scores = np.asarray(rewards.scores) + np.asarray(rewards.token_rewards).sum(1)
        return {"score": np.where(np.asarray(rewards.valid), scores, np.nan)}

    @abstractmethod
    def held_out_kl(self, rows: Rows) -> np.ndarray | None:
        """[N]: the KL from the reference, nats a row; None where the trainer has none."""


def evaluate_policy(trainer: Evaluated, number: int) -> dict[str, float]:
    """One completion of each held-out prompt, `train.eval_prompts` of them at most, and what is found of them.

    The same prompts and random numbers serve all evaluations of a run, and nothing of its training depends on them.

    Args:
      trainer: as it is now.
      number: of the update that it has done last.

    Returns:
      `eval/score` (the reward before any shaping; with a judge `eval/win_rate` against the reference's completions),
      `eval/kl` (nats a completion, where the trainer has a reference), `eval/length` (tokens) and `eval/stop_rate`:
      each a mean with its `_low` and `_high` (95%, bootstrap over prompts; rows to which no reward applies are left
      out); `eval/prompts`; and `time/eval_seconds`. Nothing where there are no prompts.

    Raises:
      UserError: a reward or judge that gives what it must not.
    """
    examples = spread(trainer.held_out, trainer.config.train.eval_prompts)
    if not examples:
        return {}
    began = time.perf_counter()
    parts: list[dict[str, np.ndarray]] = []
    # No more rows at once than a rollout has.
    size = trainer.config.train.prompts * trainer.config.sampling.num_samples
    engine = trainer.generator.refresh(trainer.state.params["policy"])
    for start in range(0, len(examples), size):
        key = jax.random.fold_in(jax.random.fold_in(trainer.key, HELD_OUT), start)
        chosen = examples[start : start + size]
        batch = collate_prompts(chosen, range(start, start + len(chosen)))
        completions = engine.generate(
            batch["prompts"],
            key=key,
            **trainer.config.sampling.arguments(num_samples=1, stop_tokens=trainer.generator.stop_tokens),
        )
        request = trainer.request_of(batch, completions, number + 1, 1)
        part = trainer.held_out_scores(request, key)
        kl = trainer.held_out_kl(join_rows(request.prompt_ids, completions, multiple=trainer.row_multiple))
        if kl is not None:
            part["kl"] = kl
        part["length"] = completions.lengths
        part["stop_rate"] = np.array([reason == "stop" for reason in completions.finish_reason])
        parts.append(part)
    metrics = {"eval/prompts": float(len(examples)), "time/eval_seconds": time.perf_counter() - began}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        metrics |= with_interval(f"eval/{name}", values, seed=trainer.config.run.seed)
    return metrics


def generated(opened: OpenRun, trainer: Evaluated) -> Generated | None:
    """The evaluation by generation that `eval.generate` asks for in place of `evaluate_policy`; None where it does not.

    Where it names no reward, the trainer's scores the answers, before any shaping; with a judge in its place, the win
    rate is against the reference's answers. The KL is from the trainer's reference.
    """
    config = opened.config
    if not config.eval.generate.every:
        return None

    def scores(request: RewardRequest, key: jax.Array) -> dict[str, np.ndarray]:
        if trainer.reward is None:
            return trainer.held_out_scores(request, key)
        return scores_of(trainer.reward, request)

    def kl(trained: Any, rows: Rows) -> np.ndarray | None:
        del trained  # the state's, which the trainer has
        return trainer.held_out_kl(rows) if config.measures_kl else None

    evaluation = generate_evaluation(
        opened,
        trainer.policy,
        trainer.frozen["policy"],
        trainer.tokenizer,
        trainer.held_out,
        updates=config.train.updates,
        generator=trainer.generator,
        scores=scores,
        kl=kl,
    )
    return logged(opened.run, lambda state, step: evaluation(state.params["policy"], step))
