"""Evaluation by generation: the model in training answers held-out prompts, and the answers are scored.

    prompts -> `sampling.num_samples` answers each -> rewards, judge, KL -> `answer_measures.MEASURES`

Every evaluation of a run draws by the same random numbers, so that two of them differ by the weights alone. Training
reads none of these numbers: its bits are the same with and without.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxalign.data import Example, collate_prompts
from jaxalign.errors import UserError
from jaxalign.processes import by_first
from jaxalign.rewards import RewardRequest, WeightedMix, evaluate_judge, evaluate_reward
from jaxalign.rollout import Completions, join_rows
from jaxalign.rollout.trajectory import Rows
from jaxalign.runs import Run, records
from jaxalign.training.core.answer_measures import Answers, measured
from jaxalign.training.core.eval_config import GenerateEvalConfig
from jaxalign.training.core.generator import Generator

# How its metrics are called, and what its rows in samples.jsonl say that they come from.
PREFIX, SOURCE = "eval/generate/", "eval.generate"
# (trained leaves, rows of prompts with completions) -> [N], nats.
RowKL = Callable[[Any, Rows], np.ndarray | None]
# (request, key) -> [N] by name, as `Answers.rewards`; "win_rate" is what a judge says.
Scores = Callable[[RewardRequest, jax.Array], dict[str, np.ndarray]]


def answer_request(
    batch: Mapping[str, Any],
    completions: Completions,
    tokenizer: Any,
    *,
    copies: int,
    update: int = 0,
    updates: int = 0,
) -> RewardRequest:
    """What a reward is asked about so many completions of each prompt of a batch; see `data.collate_prompts`."""
    return RewardRequest(
        prompts=[t for t in batch["prompt_texts"] for _ in range(copies)],
        completions=completions.texts(tokenizer),
        prompt_ids=[list(p) for p in batch["prompts"] for _ in range(copies)],
        completion_ids=completions.token_lists(),
        columns={k: [v for v in values for _ in range(copies)] for k, values in batch["columns"].items()},
        width=completions.tokens.shape[1],
        messages=[m for m in batch["messages"] for _ in range(copies)],
        update=update,
        updates=updates,
    )


def scores_of(reward: Any, request: RewardRequest) -> dict[str, np.ndarray]:
    """Rewards [N] before any shaping, NaN where none applies: the whole under "", and each part of a mix by name."""
    if not isinstance(reward, WeightedMix):
        return {"": _row_sums(evaluate_reward(reward, request))}
    parts = reward.parts(request)
    whole = {"": _row_sums(reward.mixed(parts, request))}
    return whole | {name: _row_sums(part) for name, part in parts.items()}


def _row_sums(rewards: Any) -> np.ndarray:
    sums = np.asarray(rewards.scores, np.float64)
    if rewards.token_rewards is not None:
        sums = sums + np.asarray(rewards.token_rewards, np.float64).sum(1)
    return np.where(np.asarray(rewards.valid), sums, np.nan)


@dataclass(kw_only=True)
class GenerateEvaluation:
    """One evaluation by generation, for the whole run.

    Attributes:
      config: what is asked for.
      run: the run folder.
      examples: the prompts.
      generator: samples from the model in training; with `config.sampling` in place of its own.
      key: source of all randomness.
      tokenizer: of the model.
      scores: what rewards say; None where there are none.
      judge: see `jaxalign.rewards.judge`; None for none.
      kl: of rows, from the reference; None where there is none. Read where answers are sampled from the model's own
        distribution (`GenerateEvalConfig.own_distribution`).
      row_multiple: of the width of rows, see `join_rows`.
      updates: optimizer steps in all.
      tag: columns that its rows have in samples.jsonl, where a run has several such evaluations.
    """

    config: GenerateEvalConfig
    run: Run
    examples: Sequence[Example]
    generator: Generator
    key: jax.Array
    tokenizer: Any
    scores: Scores | None = None
    judge: Any = None
    kl: RowKL | None = None
    row_multiple: int = 16
    updates: int = 0
    tag: Mapping[str, str] = field(default_factory=dict)
    _first: list[str] | None = None

    def __call__(self, trained: Any, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Answers, measured.

        Args:
          trained: the trained leaves, as the generator takes them.
          step: optimizer steps so far.

        Returns:
          Metrics by name, without `PREFIX`, and all answers as rows of samples.jsonl.

        Raises:
          UserError: a reward or judge that gives what it must not, or a metric that is named and cannot be measured.
        """
        copies, seed = self.config.sampling.num_samples, self.run.config.seed
        batch = collate_prompts(self.examples, range(len(self.examples)))
        with _own_draws(seed, step):
            completions = self._completions(trained, batch["prompts"])
            request = answer_request(
                batch, completions, self.tokenizer, copies=copies, update=step + 1, updates=self.updates
            )
            rewards = self.scores(request, self.key) if self.scores else {}
            wins = rewards.pop("win_rate", None)
            if self.judge is not None:
                wins = self._wins(request, step)
        kl = None
        if self.kl is not None and self.config.own_distribution:
            kl = self.kl(trained, join_rows(request.prompt_ids, completions, multiple=self.row_multiple))
        stopped = np.array([reason == "stop" for reason in completions.finish_reason])
        answers = Answers(
            samples=copies,
            texts=request.completions,
            lengths=completions.lengths,
            stopped=stopped,
            rewards=rewards,
            kl=kl,
            wins=wins,
        )
        found = measured(answers, self.config.metrics, seed=seed)
        return {"prompts": float(len(self.examples))} | found, self._rows(request, rewards)

    def _completions(self, trained: Any, prompts: Sequence[Sequence[int]]) -> Completions:
        sampling = self.config.sampling
        stops = self.generator.eos_ids if sampling.stop_tokens is None else sampling.stop_tokens
        engine = self.generator.refresh(trained)
        done = engine.generate(prompts, key=self.key, **sampling.arguments(stop_tokens=stops))
        # Merged weights are a copy, which training has no use for.
        self.generator.release()
        return done

    def _wins(self, request: RewardRequest, step: int) -> np.ndarray:
        """[N]: 1 where the judge prefers an answer to the first evaluation's, 0.5 for a tie, 0 else."""
        if self._first is None:
            self._first = by_first(self._answers_of_first) or list(request.completions)
        if len(self._first) != len(request.completions):
            raise UserError(
                f"{self.run.folder / 'samples.jsonl'}: expected {len(request.completions)} answers of the first "
                f"evaluation, against which eval.generate.judge compares, found {len(self._first)}"
            )
        if self._first == list(request.completions):  # the first: nothing to compare
            return np.full(len(self._first), 0.5)
        verdicts = evaluate_judge(
            self.judge,
            request.prompts,
            request.completions,
            self._first,
            columns=request.columns,
            key=jax.random.fold_in(self.key, step),
        )
        return np.sign(verdicts.preference - 0.5) / 2 + 0.5

    def _answers_of_first(self) -> list[str]:
        """What a run that resumes has answered at its first evaluation; none where there was none."""
        rows = [
            row
            for row in records.read(self.run.folder / "samples.jsonl")
            if row.get("source") == SOURCE and all(row.get(k) == v for k, v in self.tag.items())
        ]
        return [row["completion"] for row in rows if row["step"] == rows[0]["step"]]

    def _rows(self, request: RewardRequest, rewards: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        copies = self.config.sampling.num_samples
        rows = []
        for index, (prompt, completion) in enumerate(zip(request.prompts, request.completions, strict=True)):
            row: dict[str, Any] = {"source": SOURCE, **self.tag, "number": index // copies}
            row |= {"sample": index % copies} if copies > 1 else {}
            row |= {name: values[index] for name, values in request.shown.items()}
            row |= {"prompt": prompt, "completion": completion}
            # NaN: no reward applies.
            row |= {
                f"score/{name}" if name else "score": None
                if np.isnan(values[index])
                else float(values[index])
                for name, values in rewards.items()
            }
            rows.append(row)
        return rows


@contextmanager
def _own_draws(seed: int, step: int) -> Iterator[None]:
    """Python's and NumPy's own randomness by seed and step, for rewards that draw; as it was when it ends."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(f"{seed} {step}")
    np.random.seed(np.random.SeedSequence([seed % 2**32, step]).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
