"""How much of a rollout the losses of GRPO and its relatives clip: what each really clips, and at its own bounds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxalign.losses.ratios import exp_ratio, log_ratios, row_means

Clipped = Callable[[jax.Array, jax.Array, jax.Array, tuple[float, float]], jax.Array]
"""(log-ratios[B, T], advantages[B, T], mask[B, T], clip) -> bool: tokens [B, T] or rows [B] that are clipped."""


def clipped_of(
    clipped: Clipped,
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    clip: tuple[float, float],
) -> tuple[jax.Array, jax.Array]:
    """(what is clipped, what counts), of tokens [B, T] or of rows [B]; all arguments are [B, T]."""
    found = clipped(log_ratios(logps, old_logps, mask), advantages, mask, clip)
    return found, mask if found.ndim == 2 else mask.any(1)


def of_tokens(d: jax.Array, advantages: jax.Array, mask: jax.Array, clip: tuple[float, float]) -> jax.Array:
    """Tokens whose ratio lies outside the clip."""
    del advantages, mask
    return _outside(exp_ratio(d), clip)


def of_weights(d: jax.Array, advantages: jax.Array, mask: jax.Array, clip: tuple[float, float]) -> jax.Array:
    """Tokens whose weight is held at the cap (CISPO)."""
    del advantages, mask
    return exp_ratio(d) > clip[1]


def of_log_ratios(
    d: jax.Array, advantages: jax.Array, mask: jax.Array, clip: tuple[float, float]
) -> jax.Array:
    """Tokens whose log-ratio is cut before the geometric mean: above where A > 0, else below (GMPO)."""
    del mask
    return jnp.where(advantages > 0, d > clip[1], d < -clip[0])


def of_row_means(
    d: jax.Array, advantages: jax.Array, mask: jax.Array, clip: tuple[float, float]
) -> jax.Array:
    """Rows whose ratio, the geometric mean of the tokens', lies outside the clip (GSPO)."""
    del advantages
    return _outside(exp_ratio(row_means(d, mask)), clip)


def of_row_products(
    d: jax.Array, advantages: jax.Array, mask: jax.Array, clip: tuple[float, float]
) -> jax.Array:
    """Rows whose ratio, the product of the tokens', lies outside the clip (RLOO)."""
    del advantages, mask
    return _outside(exp_ratio(jnp.sum(d, axis=1)), clip)


def _outside(ratio: jax.Array, clip: tuple[float, float]) -> jax.Array:
    return (ratio < 1 - clip[0]) | (ratio > 1 + clip[1])
