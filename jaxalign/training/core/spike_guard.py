"""Skips optimizer steps whose gradient is far larger than those before: a bad batch, not a direction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Steps that only gather statistics, and the decay of mean and variance after them (arXiv:2504.02507, table 1).
WARMUP = 25
DECAY = 0.97
# Of the mean, the least standard deviation: steps that hardly differ make no spike of one that differs a little more.
LEAST = 0.01


class SpikeState(NamedTuple):
    """Statistics of the gradient's norm, and the state of the transformation that is guarded.

    Attributes:
      mean, variance: float32, of the norms so far, recent ones weighing more.
      steps: int32, norms that they are of.
      skipped: int32, steps that were skipped.
      inner: the guarded transformation's state.
    """

    mean: jax.Array
    variance: jax.Array
    steps: jax.Array
    skipped: jax.Array
    inner: Any


def without_spikes(
    inner: optax.GradientTransformation, zscore: float
) -> optax.GradientTransformationExtraArgs:
    """The transformation, which leaves parameters and its own state as they are where the gradient is a spike.

    A spike is a norm of more than `zscore` standard deviations above the mean, after 25 steps. It enters the
    statistics as the largest norm that is none, so that a level that stays is soon the new one.

    Source: the statistics of ZClip, arXiv:2504.02507, which clips where this skips. The mean weighs all steps alike
    until that gives the newest less than 3%.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> SpikeState:
        zero, count = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        return SpikeState(zero, zero, count, count, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, SpikeState]:
        norm = optax.global_norm(updates).astype(jnp.float32)
        deviation = jnp.maximum(jnp.sqrt(state.variance), LEAST * state.mean)
        limit = state.mean + zscore * deviation
        spike = (state.steps >= WARMUP) & (norm > limit)
        steps = state.steps + 1
        weight = jnp.maximum(1 / steps.astype(jnp.float32), 1 - DECAY)
        change = jnp.where(spike, limit, norm) - state.mean
        changes, after = inner.update(updates, state.inner, params, **extra)
        changes = jax.tree.map(lambda x: jnp.where(spike, jnp.zeros_like(x), x), changes)
        return changes, SpikeState(
            state.mean + weight * change,
            (1 - weight) * (state.variance + weight * change**2),
            steps,
            state.skipped + spike.astype(jnp.int32),
            jax.tree.map(lambda new, old: jnp.where(spike, old, new), after, state.inner),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def skipped_spikes(opt_state: Any) -> dict[str, jax.Array]:
    """The metric `spikes`, steps skipped so far (of all parts that are guarded); empty where none is guarded."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, SpikeState))
    counts = [state.skipped for state in found if isinstance(state, SpikeState)]
    return {"spikes": jnp.asarray(sum(counts), jnp.float32)} if counts else {}
