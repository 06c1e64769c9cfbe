"""From a configuration to the evaluation by generation of a run."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxalign.data import Example
from jaxalign.errors import ConfigError
from jaxalign.mesh import length_shards
from jaxalign.rewards import RewardRequest, load_function
from jaxalign.runs import Given, Run
from jaxalign.training.core.eval_prompts import eval_prompts
from jaxalign.training.core.generate_evaluation import PREFIX, GenerateEvaluation, RowKL, Scores, scores_of
from jaxalign.training.core.generator import Generator
from jaxalign.training.core.open_run import OpenRun
from jaxalign.training.core.reference_kl import make_row_kl
from jaxalign.training.core.reward_source import build_reward
from jaxalign.training.core.scoring import CausalPolicy

# (the run's state, step) -> metrics and rows for samples.jsonl.
Generated = Callable[[Any, int], tuple[dict[str, float], list[dict[str, Any]]]]
# Folded into the run's key: no other purpose has these random numbers.
HELD_OUT = 4_000_037


def generate_evaluation(
    opened: OpenRun,
    policy: CausalPolicy,
    frozen: Any,
    tokenizer: Any,
    held_out: Sequence[Example],
    *,
    updates: int,
    reference: tuple[Any, Any] | None = None,
    generator: Generator | None = None,
    scores: Scores | None = None,
    kl: RowKL | None = None,
    tag: Mapping[str, str] | None = None,
) -> GenerateEvaluation:
    """The evaluation that `config.eval.generate` asks for.

    Args:
      opened: the open run.
      policy: how the trained leaves make a model.
      frozen: its leaves that are not trained.
      tokenizer: the model's.
      held_out: rows that are not trained on.
      updates: optimizer steps in all.
      reference: static part and leaves of the model that the KL is from; None takes the base model under LoRA, and
        without LoRA measures no KL.
      generator: who samples; None makes one.
      scores: what rewards say where neither the configuration names one nor the call has an `eval_reward`.
      kl: see `GenerateEvaluation`; in place of `reference`.
      tag: see `GenerateEvaluation`.

    Raises:
      UserError: no prompts, or a reward or judge that cannot be loaded.
    """
    config, run, mesh = opened.config, opened.run, opened.mesh
    asked, shape = config.eval.generate, policy.definition.config
    rows = eval_prompts(run, asked, config.data, held_out, tokenizer, shape, seed=config.run.seed)
    size = _batch_size(config.train)
    if reference is None and policy.lora is not None:
        reference = policy.definition, frozen
    if kl is None and reference is not None and asked.own_distribution:
        temperature = asked.sampling.temperature
        kl = make_row_kl(policy, frozen, reference, mesh, temperature=temperature, batch_size=size)
    live = run.given.eval_reward
    if asked.rewarded or live is not None:
        vocabulary = shape.vocab_size
        reward, _ = build_reward(
            asked.reward,
            live,
            mesh=mesh,
            run=run,
            batch_size=size,
            vocabulary=vocabulary,
            tokenizer=tokenizer,
        )
        scores = partial(_scored, reward)
    key = opened.fold(HELD_OUT)
    return GenerateEvaluation(
        config=asked,
        run=run,
        examples=rows,
        generator=generator or Generator(policy, frozen, asked.sampling, tokenizer, key),
        key=key,
        tokenizer=tokenizer,
        scores=scores,
        judge=load_function(asked.judge, kind="judge") if asked.judge else None,
        kl=kl,
        row_multiple=max(16, length_shards(mesh)),
        updates=updates,
        tag=tag or {},
    )


def _scored(reward: Any, request: RewardRequest, key: jax.Array) -> dict[str, np.ndarray]:
    del key  # rewards draw by Python's and NumPy's random numbers, if at all
    return scores_of(reward, request)


def _batch_size(train: Any) -> int:
    """Rows that are scored at once."""
    if hasattr(train, "score_batch_size"):
        return train.score_batch_size
    return train.eval_batch_size or train.batch_size


def logged(run: Run, evaluate: Generated) -> Generated:
    """The same with metrics by the names under which they are logged, and the seconds that it took.

    Raises:
      ConfigError: from the first evaluation, where `run.best_metric` is one of these names and was not measured.
    """

    def evaluated(state: Any, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        began = time.perf_counter()
        found, rows = evaluate(state, step)
        found = {PREFIX + name: value for name, value in found.items()}
        best = run.config.best_metric
        if not step and best.startswith(PREFIX) and best not in found:
            raise ConfigError(f"run.best_metric={best}: expected one of {', '.join(sorted(found))}")
        return found | {"time/generate_seconds": time.perf_counter() - began}, rows

    return evaluated


def check_generates(config: Any, given: Given) -> None:
    """Raises ConfigError where `run.best_metric` or an `eval_reward` needs an evaluation by generation, and none is."""
    asked, best = getattr(config, "eval", None), config.run.best_metric
    if asked is not None and asked.generate.every:
        return
    named = f"run.best_metric={best}" if best.startswith(PREFIX) else ""
    if named or given.eval_reward is not None:
        textless = "" if asked is not None else ", which reward models do not have: they write no text"
        raise ConfigError(f"{named or 'eval_reward'} needs eval.generate.every above 0{textless}")
