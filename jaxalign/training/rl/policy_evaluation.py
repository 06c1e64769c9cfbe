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
from jaxalign.training.core.generator import Generator
from jaxalign.training.core.state import TrainState
from jaxalign.uncertainty import bootstrap_interval

# Folded into the run's key, beside the numbers of updates: every evaluation draws by the same random numbers.
HELD_OUT = 4_000_037


class Evaluated(ABC):
    """What an evaluation asks of a trainer; `on_policy.OnPolicyTrainer` has the rest."""

    config: Any
    tokenizer: Any
    reward: Any
    state: TrainState
    key: jax.Array
    generator: Generator
    held_out: Sequence[Example]
    row_multiple: int

    def request_of(
        self, batch: Mapping[str, Any], completions: Completions, number: int, copies: int
    ) -> RewardRequest:
        """What a reward is asked about so many completions of each prompt of a batch."""
        return RewardRequest(
            prompts=[t for t in batch["prompt_texts"] for _ in range(copies)],
            completions=completions.texts(self.tokenizer),
            prompt_ids=[list(p) for p in batch["prompts"] for _ in range(copies)],
            completion_ids=completions.token_lists(),
            columns={k: [v for v in values for _ in range(copies)] for k, values in batch["columns"].items()},
            width=completions.tokens.shape[1],
            messages=[m for m in batch["messages"] for _ in range(copies)],
            update=number,
            updates=self.config.train.updates,
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
        values = np.concatenate([part[name] for part in parts]).astype(np.float64)
        values = values[~np.isnan(values)]
        if len(values):
            low, high = bootstrap_interval(values, seed=trainer.config.run.seed)
            metrics |= {
                f"eval/{name}": float(values.mean()),
                f"eval/{name}_low": low,
                f"eval/{name}_high": high,
            }
    return metrics


def spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many examples, evenly from all of them."""
    count = min(most, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]
