"""From logits to a token: truncation without a sort, and inverse-CDF sampling in two levels.

`jax.random.categorical` draws a number per vocabulary entry, which costs more than the
rest of a decode step at large vocabularies; here one uniform number per row is enough.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.models import exact

LANES = 128
_BISECTIONS = 32


@dataclass(frozen=True)
class SamplerFeatures:
    """What a program of sampling must provide for; what no row needs is left out of it.

    Attributes:
      sampled: some row has a temperature above 0.
      greedy: some row has temperature 0.
      top_k: some row has a top-k; each of these costs passes over all logits, so each is there only where asked for.
      top_p: some row has a top-p below 1.
      min_p: some row has a min-p.
      exact: tokens and log-probs do not depend on the batch, and are a training pass's to the bit.
    """

    sampled: bool = True
    greedy: bool = True
    top_k: bool = True
    top_p: bool = True
    min_p: bool = True
    exact: bool = False

    @property
    def truncated(self) -> bool:
        """Whether some row is sampled from fewer than all tokens."""
        return self.top_k or self.top_p or self.min_p


def row_uniforms(
    key: jax.Array, row_ids: Int[Array, " B"], positions: Int[Array, " B"]
) -> Float[Array, " B"]:
    """One uniform number in [0, 1) per row: a function of (key, row id, position), not of the batch."""

    def draw(row: jax.Array, position: jax.Array):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), position))

    return jax.vmap(draw)(row_ids, positions)


def sample(probabilities: Float[Array, "B V"], uniforms: Float[Array, " B"]) -> Int[Array, " B"]:
    """The token at which the running sum of (unnormalized) probabilities passes u * total.

    Two levels: find the block of 128 tokens, then the token in it. A token of probability
    0 is never drawn.
    """
    rows, vocabulary = probabilities.shape
    pad = -vocabulary % LANES
    blocks = jnp.pad(probabilities, ((0, 0), (0, pad))).reshape(rows, -1, LANES)
    masses = blocks.sum(-1)
    sums = jnp.cumsum(masses, axis=-1)
    target = uniforms[:, None] * sums[:, -1:]
    block = _first_possible(masses, (sums <= target).sum(-1))
    before = jnp.where(
        block > 0, jnp.take_along_axis(sums, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0
    )
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    running = jnp.cumsum(inside, axis=-1) + before[:, None]
    lane = _first_possible(inside, (running <= target).sum(-1))
    return (block * LANES + lane).astype(jnp.int32)


def _first_possible(weights: Float[Array, "B n"], index: Int[Array, " B"]) -> Int[Array, " B"]:
    """The first entry at or after `index` that has weight, else the last one that has.

    Rounding of running sums may point at an entry of weight 0, or past the end.
    """
    columns = jnp.arange(weights.shape[-1])[None, :]
    possible = weights > 0
    after = jnp.where(possible & (columns >= index[:, None]), columns, weights.shape[-1]).min(-1)
    last = jnp.where(possible, columns, 0).max(-1)
    return jnp.where(after < weights.shape[-1], after, last)


def kept_tokens(
    logits: Float[Array, "B V"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
    features: SamplerFeatures = SamplerFeatures(),
) -> Bool[Array, "B V"]:
    """The tokens left after top-k, then top-p among those, then min-p; at least one.

    top_k 0, top_p 1 and min_p 0 leave all; `features` says which of them any row has. Ties at a threshold
    are all kept. Thresholds are found by bisection over logits, so nothing is sorted.
    """
    vocabulary = logits.shape[-1]
    top = logits.max(-1)
    keep = jnp.ones(logits.shape, bool)
    if features.top_k:
        k = jnp.where(top_k > 0, jnp.minimum(top_k, vocabulary), vocabulary)
        keep = _fewest(lambda kept: kept.sum(-1) >= k, logits, top) | (k >= vocabulary)[:, None]
    if features.top_p:
        probabilities = jnp.where(keep, jnp.exp(logits - top[:, None]), 0.0)
        wanted = top_p * probabilities.sum(-1)
        enough = _fewest(lambda kept: jnp.where(kept, probabilities, 0.0).sum(-1) >= wanted, logits, top)
        keep &= enough | (top_p >= 1.0)[:, None]
    if features.min_p:
        least = top + jnp.log(jnp.maximum(min_p, 1e-30))
        keep &= (logits >= least[:, None]) | (min_p <= 0)[:, None]
    return keep


def _fewest(
    enough: Callable[[Bool[Array, "B V"]], Bool[Array, " B"]], logits: jax.Array, top: jax.Array
) -> jax.Array:
    """The largest logits of each row, bool [B, V]: the fewest, with their ties, that are `enough`.

    Bisection over the float32 numbers themselves (their bits in order), so it ends exact.
    """

    def ordered(x: Float[Array, " B"]):
        bits = jax.lax.bitcast_convert_type(x, jnp.int32)
        return jnp.where(bits < 0, jnp.int32(-(2**31)) - bits, bits)

    def number(bits: Int[Array, " B"]):
        return jax.lax.bitcast_convert_type(
            jnp.where(bits < 0, jnp.int32(-(2**31)) - bits, bits), jnp.float32
        )

    low, high = ordered(jnp.minimum(logits.min(-1), -1e-30)), ordered(top)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]):
        low, high = bounds
        # Midpoint rounded up without overflow; low always holds, high + 1 never does.
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        holds = enough(logits >= number(middle)[:, None])
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return _at_least(logits, number(low))


def _at_least(x: Float[Array, "B V"], threshold: Float[Array, " B"]) -> Bool[Array, "B V"]:
    """x >= threshold, of the very array that a loop before has read.

    In a loop too, whose operands a compiler must have in memory. Elsewhere it may compute them once more and round them
    another way (a sum over several models, say), and a number would be lost when it is compared with itself.
    """

    def turn(_: jax.Array, state: tuple[jax.Array, jax.Array]):
        # The second turn compares with the threshold: with a constant one, the loop would be moved away.
        reached, _ = state
        return threshold, x >= reached[:, None]

    return jax.lax.fori_loop(0, 2, turn, (jnp.full_like(threshold, jnp.inf), jnp.zeros(x.shape, bool)))[1]


def next_token(
    logits: Float[Array, "B V"],
    uniforms: Float[Array, " B"],
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
    *,
    features: SamplerFeatures,
) -> tuple[Int[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Samples one token a row.

    Args:
      logits: float32.
      uniforms: one number in [0, 1) per row.
      temperature: 0 is greedy (log-probs are then those of temperature 1).
      top_k, top_p, min_p: per row; each is read only where `features` has it.
      features: static.

    Returns:
      (tokens, logps under the temperature-scaled policy, logps under the distribution
      really sampled from; 0 where greedy).
    """
    next_of = partial(_next_token, features=features)
    rows = (logits, uniforms, temperature, top_k, top_p, min_p)
    if not features.exact:
        return next_of(*rows)
    tokens, _, sampled = exact.tiled(next_of, *rows)
    greedy = temperature <= 0
    logps = exact.logps(logits, tokens, jnp.where(greedy, 1.0, temperature))
    return tokens, logps, sampled if features.truncated else jnp.where(greedy, 0.0, logps)


def _next_token(
    logits: jax.Array,
    uniforms: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
    *,
    features: SamplerFeatures,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    greedy = temperature <= 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None] if features.sampled else logits
    top = scaled.max(-1)
    weights = jnp.exp(scaled - top[:, None])
    normalizer = top + jnp.log(weights.sum(-1))
    if features.truncated and features.sampled:
        kept = kept_tokens(scaled, top_k, top_p, min_p, features)
        weights = jnp.where(kept, weights, 0.0)
    tokens = sample(weights, uniforms) if features.sampled else jnp.zeros(top.shape, jnp.int32)
    if features.greedy:
        tokens = jnp.where(greedy, _first_top(scaled), tokens)
    raw = jnp.take_along_axis(scaled, tokens[:, None], axis=1)[:, 0]
    logps = raw - normalizer
    sampled = logps
    if features.truncated:  # of fewer tokens: not less likely, whatever rounding says
        sampled = jnp.maximum(raw - (top + jnp.log(weights.sum(-1))), logps)
    return tokens, logps, jnp.where(greedy, 0.0, sampled)


def _first_top(x: Float[Array, "B V"]) -> Int[Array, " B"]:
    """argmax: a plain minimum over columns, which XLA's CPU backend vectorizes, where the maximum is.

    Both in one loop, for the reason that `_at_least` gives.
    """
    vocabulary = x.shape[-1]
    columns = jnp.arange(vocabulary, dtype=jnp.int32)[None, :]

    def turn(_: jax.Array, state: tuple[jax.Array, jax.Array]):
        top, _ = state
        # Where all is NaN nothing equals the maximum: the last token, not one outside the vocabulary.
        return x.max(-1), jnp.where(x >= top[:, None], columns, vocabulary - 1).min(-1)

    start = (jnp.full(x.shape[0], jnp.inf, x.dtype), jnp.zeros(x.shape[0], jnp.int32))
    return jax.lax.fori_loop(0, 2, turn, start)[1]
