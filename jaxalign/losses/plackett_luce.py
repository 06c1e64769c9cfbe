"""Reward-model loss of a ranking of several candidates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real, Shaped

from jaxalign.arrays import check_range, check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def plackett_luce_loss(
    rewards: Real[Array, "B K"],
    ranking: Int[Array, "B K"],
    mask: Shaped[Array, "B K"] | None = None,
    *,
    top: int | Int[Array, ""] | None = None,
) -> Float[Array, " B"]:
    """Plackett-Luce: one loss per ranking, a sequence of choices among the remaining candidates.

    x_i = rewards[ranking_i]
    loss = sum_{i < top} (logsumexp_{j >= i} x_j - x_i)

    Args:
      rewards: a score per candidate; any dtype, computed in float32.
      ranking: indices of the candidates, best first, each at most once, in [0, K).
      mask: places of the ranking that hold a candidate; None for all. Other places may hold
        anything; a candidate that is not listed plays no part, and its score may be NaN.
      top: how many first places are in order, 1 or more; the rest is only known to be worse.
        None for all.

    Returns:
      float32, unreduced; a sum over places, log K! where all K scores are equal. K = 2 is
      `bradley_terry_loss`, top = 1 is `best_of_n_loss` of the first place; 0 where nothing is
      ranked.

    Raises:
      AssertionError: shapes differ, or not [B, K].
      ValueError: a concrete top below 1.

    Source: R. L. Plackett, "The analysis of permutations" (1975).
    """
    check_range("top", top, 1.0)
    check_rank(2, rewards=rewards)
    check_shapes(rewards=rewards, ranking=ranking, mask=mask)
    mask = as_mask(mask, ranking)
    x = jnp.take_along_axis(float32(rewards), jnp.where(mask, ranking, 0), axis=-1)
    x = masked(x, mask)
    places = jnp.arange(x.shape[-1])
    # Those after a place, and the place itself even where it is masked: an empty logsumexp would be -inf.
    rest = ((places > places[:, None]) & mask[:, None, :]) | jnp.eye(len(places), dtype=bool)
    normalizer = jax.nn.logsumexp(jnp.broadcast_to(x[:, None, :], rest.shape), axis=-1, where=rest)
    counted = mask if top is None else mask & (places < top)
    return jnp.sum(masked(normalizer - x, counted), axis=-1)
