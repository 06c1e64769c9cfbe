"""How much of a rollout the losses of GRPO and its relatives clip: what each really clips, and at its own bounds."""

import jax
import jax.numpy as jnp

from jaxalign.losses.ratios import exp_ratio, log_ratios, row_means
from jaxalign.training.grpo_config import GRPOLossConfig
from jaxalign.training.step import Metrics, mean_of


def clip_fraction(
    config: GRPOLossConfig, logps: jax.Array, old_logps: jax.Array, advantages: jax.Array, mask: jax.Array
) -> Metrics:
    """`policy/clip_fraction`; nothing where the loss has no clip. All arguments are [B, T].

    gspo, rloo           rows whose ratio (geometric mean of the tokens', and their product) lies outside the clip
    gmpo                 tokens whose log-ratio is cut before the geometric mean: above where A > 0, else below
    cispo                tokens whose weight is held at the cap
    reinforce            nothing
    others               tokens whose ratio lies outside the clip
    """
    low, high = config.recipe.clip
    d = log_ratios(logps, old_logps, mask)
    if config.name == "reinforce":
        return {}
    if config.name in ("gspo", "rloo"):
        ratio = exp_ratio(row_means(d, mask) if config.name == "gspo" else jnp.sum(d, axis=1))
        return {"policy/clip_fraction": mean_of(_outside(ratio, low, high), mask.any(1))}
    if config.name == "gmpo":
        clipped = jnp.where(advantages > 0, d > high, d < -low)
    elif config.name == "cispo":
        clipped = exp_ratio(d) > high
    else:
        clipped = _outside(exp_ratio(d), low, high)
    return {"policy/clip_fraction": mean_of(clipped, mask)}


def _outside(ratio: jax.Array, low: float, high: float) -> jax.Array:
    return (ratio < 1 - low) | (ratio > 1 + high)
