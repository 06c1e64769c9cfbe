"""Measures on a policy's samples: length, KL to a reference, perplexity."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign import models
from jaxalign.data import Example, collate_demonstrations, eval_batches, packed
from jaxalign.evaluation.perplexity import perplexity as perplexity_of
from jaxalign.models.composite import Model, ModelDefinition
from jaxalign.models.layers import Params
from jaxalign.rollout import Completions, join_rows
from jaxalign.rollout.trajectory import Rows
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.scoring import score_tokens

# (parameters, batch of rows) -> log-probs [B, T] of its counted tokens, nats.
Scorer = Callable[[Any, Mapping[str, Any]], np.ndarray]


def make_scorer(definition: ModelDefinition, *, temperature: float = 1.0) -> Scorer:
    """How to score batches (tokens, mask [B, T], lengths [B], perhaps valid [B]) with a model's parameters.

    Rows are packed, and the vocabulary head is applied to unmasked tokens alone.
    """

    @jax.jit
    def score(params: Params, rows: TokenRows) -> jax.Array:
        return score_tokens(models.merge(definition, params), rows, temperature=temperature).logps

    def scored(params: Params, batch: Mapping[str, Any]) -> np.ndarray:
        names = [name for name in ("tokens", "lengths", "mask", "valid") if name in batch]
        columns = packed({name: np.asarray(batch[name]) for name in names})
        return np.asarray(score(params, TokenRows.of(columns)))

    return scored


def token_logps(score: Scorer, params: Params, rows: Rows, *, batch_size: int = 64) -> np.ndarray:
    """float32 [N, T]: log-prob of each unmasked token, nats; 0 elsewhere."""
    count = len(rows.lengths)
    # Fillers keep the shape, so that one program serves all batches.
    done = [score(params, rows.batch(start, batch_size)) for start in range(0, count, batch_size)]
    return np.concatenate(done)[:count]


def summed_logps(score: Scorer, params: Params, rows: Rows, *, batch_size: int = 64) -> np.ndarray:
    """float64 [N]: summed log-prob of the unmasked tokens of each row, nats."""
    return token_logps(score, params, rows, batch_size=batch_size).astype(np.float64).sum(1)


def sequence_kl(
    policy: Model,
    reference: Model,
    prompts: Sequence[Sequence[int]],
    completions: Completions,
    *,
    temperature: float = 1.0,
) -> np.ndarray:
    """[N]: log p(completion) - log p_ref(completion) of the policy's own samples, nats; its mean estimates the KL."""
    rows = join_rows(prompts, completions)
    ours, theirs = (
        summed_logps(make_scorer(definition, temperature=temperature), params, rows)
        for definition, params in map(models.split, (policy, reference))
    )
    return ours - theirs


def perplexity(model: Model, examples: Sequence[Example], *, batch_size: int = 64) -> float:
    """exp of the mean negative log-likelihood per completion token, over held-out demonstrations."""
    definition, params = models.split(model)
    score = make_scorer(definition)
    batches = eval_batches(examples, batch_size, collate_demonstrations)
    return perplexity_of(lambda batch: score(params, batch), batches).value
