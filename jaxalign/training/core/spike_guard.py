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

    Source: after ZClip, arXiv:2504.02507, which clips where this skips. Mean and variance weigh all steps alike until
    that gives the newest less than 3%, and from then on exponentially.
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


def skipped(before: Any, after: Any) -> dict[str, jax.Array]:
    """The metric `spike` of a step: 1 where a guarded part of the parameters skipped it; empty where none is guarded.

    Args:
      before, after: states of the optimizer.
    """
    counts = [
        [state.skipped for state in jax.tree.leaves(tree, is_leaf=_is_guard) if _is_guard(state)]
        for tree in (before, after)
    ]
    new = [there > was for was, there in zip(*counts, strict=True)]
    return {"spike": jnp.stack(new).any().astype(jnp.float32)} if new else {}


def _is_guard(x: Any) -> bool:
    return isinstance(x, SpikeState)
