"""How far the model in training has moved from a frozen one, by what it writes itself."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.mesh import row_shards
from jaxalign.processes import fetch
from jaxalign.rollout.trajectory import Rows
from jaxalign.training.core import setup
from jaxalign.training.core.batch import TokenBatch
from jaxalign.training.core.scoring import CausalPolicy, score_tokens


def make_row_kl(
    policy: CausalPolicy,
    frozen: Any,
    reference: tuple[Any, Any],
    mesh: Mesh,
    *,
    temperature: float,
    batch_size: int,
) -> Callable[[Any, Rows], np.ndarray]:
    """A function of (trained leaves, rows of prompts with sampled completions) that gives the log-ratio of each row.

    log p(completion | prompt) - log p_ref(completion | prompt), nats, summed over a completion's tokens

    Its mean over completions that the policy sampled estimates KL(policy || reference) of whole completions, without
    bias (k1). Both are scored by the same forward pass, at the same temperature.

    Args:
      policy: how to score with the model in training.
      frozen: its leaves that are not trained.
      reference: static part and leaves of the frozen model, from `models.split`.
      mesh: the devices.
      temperature: at which the completions were sampled; positive.
      batch_size: rows at once, rounded up to what the devices share evenly.

    Source: Schulman, "Approximating KL divergence" (2020), k1.
    """
    definition, leaves = reference

    @jax.jit
    def ratios(trained: Any, frozen: Any, leaves: Any, batch: TokenBatch) -> jax.Array:
        ours = policy.score(trained, frozen, batch, temperature=temperature)
        theirs = score_tokens(models.merge(definition, leaves), batch, temperature=temperature)
        return (ours.logps - theirs.logps).sum(1)

    def row_kl(trained: Any, rows: Rows) -> np.ndarray:
        count, shards = len(rows.lengths), row_shards(mesh)
        size = -(-min(batch_size, count) // shards) * shards
        batches = [
            setup.on_mesh(rows.batch(start, size), TokenBatch, mesh) for start in range(0, count, size)
        ]
        # Fetched when all are under way, so that the device does not wait for the host in between.
        parts = fetch([ratios(trained, frozen, leaves, batch) for batch in batches])
        return np.concatenate(parts)[:count].astype(np.float64)

    return row_kl
