"""Samples of a policy and what can be said of them: length, KL to a reference, perplexity."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.data import Example, collate_demonstrations, eval_batches
from jaxalign.rollout import Completions, join_rows
from jaxalign.training.scoring import score_tokens


def row_logps(model: Any, tokens: np.ndarray, lengths: np.ndarray, mask: np.ndarray, *, temperature: float = 1.0,
              batch_size: int = 64) -> np.ndarray:  # fmt: skip
    """float64 [N]: summed log-prob of the counted tokens of each row, nats."""
    logps = token_logps(model, tokens, lengths, mask, temperature=temperature, batch_size=batch_size)
    return logps.astype(np.float64).sum(1)


def token_logps(model: Any, tokens: np.ndarray, lengths: np.ndarray, mask: np.ndarray, *, temperature: float = 1.0,
                batch_size: int = 64) -> np.ndarray:  # fmt: skip
    """float32 [N, T]: log-prob of each counted token, nats; 0 elsewhere."""
    definition, params = models.split(model)

    @jax.jit
    def score(params, tokens, lengths, mask):
        return score_tokens(
            models.merge(definition, params), tokens, lengths, mask, temperature=temperature
        ).logps

    done = []
    for start in range(0, len(tokens), batch_size):
        part = [np.asarray(x[start : start + batch_size]) for x in (tokens, lengths, mask)]
        missing = batch_size - len(part[0])
        part = [np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x for x in part]
        done.append(np.asarray(score(params, *map(jnp.asarray, part)))[: batch_size - missing])
    return np.concatenate(done)


def sequence_kl(
    policy: Any,
    reference: Any,
    prompts: Sequence[Sequence[int]],
    completions: Completions,
    *,
    temperature: float = 1.0,
) -> np.ndarray:
    """[N]: log p(completion) - log p_ref(completion) of the policy's own samples, nats; its mean estimates the KL."""
    rows = join_rows(prompts, completions)
    arguments = (rows.tokens, rows.lengths, rows.mask)
    ours = row_logps(policy, *arguments, temperature=temperature)
    return ours - row_logps(reference, *arguments, temperature=temperature)


def perplexity(model: Any, examples: Sequence[Example], *, batch_size: int = 64) -> float:
    """exp of the mean negative log-likelihood a completion token, over held-out demonstrations."""
    total = count = 0.0
    for batch in eval_batches(examples, batch_size, collate_demonstrations):
        valid = batch["valid"]
        logps = row_logps(model, batch["tokens"], batch["lengths"], batch["mask"], batch_size=batch_size)
        total += float(logps[valid].sum())
        count += float(batch["mask"][valid].sum())
    return float(np.exp(-total / max(count, 1.0)))
