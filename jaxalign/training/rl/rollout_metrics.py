"""What is logged of a rollout, and of the optimizer steps on it, whatever the algorithm."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.rewards import Rewards
from jaxalign.rollout import Completions
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.scoring import TokenScores
from jaxalign.training.core.step import Metrics, mean_of
from jaxalign.training.rl.collapse import repetition


def rollout_counts(batch: TokenRows) -> dict[str, jax.Array]:
    """Counted tokens and counted rows of the whole minibatch, float32: the count function of `make_update`."""
    mask = batch.mask
    return {"tokens": jnp.sum(mask, dtype=jnp.float32), "rows": jnp.sum(mask.any(1), dtype=jnp.float32)}


def step_metrics(scores: TokenScores, old_logps: jax.Array, mask: jax.Array) -> Metrics:
    """How far an optimizer step finds the policy from the one that sampled; all [B, T]."""
    log_ratio = jnp.where(mask, scores.logps - old_logps, 0.0)
    ratio = jnp.exp(log_ratio)
    return {
        "policy/approx_kl": mean_of(ratio - 1 - log_ratio, mask),
        "policy/ratio_mean": mean_of(ratio, mask),
        "policy/ratio_max": (jnp.max(jnp.where(mask, ratio, 0.0)), jnp.ones(())),
        "policy/entropy": mean_of(scores.entropy, mask),
        **scores.router_metrics,
    }


def sampler_gaps(scores: TokenScores, sampler_logps: jax.Array, mask: jax.Array) -> Metrics:
    """How far the sampler's log-probs are from those of a step that is the only one on its rollout; all [B, T]."""
    gap = jnp.abs(jnp.where(mask, scores.logps - sampler_logps, 0.0))
    return {
        "rollout/logp_gap_max": (gap.max(), jnp.ones(())),
        "rollout/logp_gap_mean": mean_of(gap, mask),
    }


def rollout_metrics(completions: Completions, rewards: Rewards, scores: np.ndarray) -> dict[str, float]:
    """What a rollout looked like; scores are the rewards before any shaping, [N]."""
    valid = rewards.valid
    assert valid is not None
    return {
        "objective/score": float(scores[valid].mean()),
        "objective/score_std": float(scores[valid].std()),
        **completion_metrics(completions),
        "rollout/valid_rows": float(valid.mean()),
        **{f"reward/{name}": float(value) for name, value in rewards.metrics.items()},
    }


def completion_metrics(completions: Completions) -> dict[str, float]:
    """Mean length in tokens, how far completions repeat themselves, and the share that ended by themselves."""
    return {
        "rollout/length": float(completions.lengths.mean()),
        "rollout/repetition": repetition(completions),
        "rollout/stop_rate": float(np.mean([r == "stop" for r in completions.finish_reason])),
    }
