"""Contrastive loss on representations: InfoNCE with the other rows as negatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, float32


def info_nce_loss(
    anchors: Float[Array, "B D"],
    positives: Float[Array, "B D"],
    *,
    temperature: Scalar = 0.07,
    negatives: Float[Array, "N D"] | None = None,
) -> Float[Array, " B"]:
    """InfoNCE: which of all positives belongs to this anchor?

    s_ij = <a_i, k_j> / temperature,  a, k of length 1,  k = positives, then negatives
    loss_i = logsumexp_j s_ij - s_ii

    Args:
      anchors, positives: pairs, row by row; any float dtype, computed in float32. A vector of
        length 0 stays 0: it is alike to nothing.
      temperature: positive.
      negatives: further ones for every anchor: a queue, or the positives of the rows of the global
        batch that are not here; with these a micro-batch has the loss of the whole. Gradients
        reach them too: stop them for a queue.

    Returns:
      float32 nats, unreduced; log(B + N) where all are alike. One way only: for the symmetric loss,
      average with anchors and positives swapped.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete temperature that is not positive.

    Source: arXiv:1807.03748, eq. 4, with the normalization and temperature of arXiv:1911.05722, eq. 1.
    """
    check_range("temperature", temperature, 0.0, open_low=True)
    check_rank(2, anchors=anchors)
    check_shapes(anchors=anchors, positives=positives)
    a, keys = _unit(anchors), _unit(positives)
    if negatives is not None:
        check_rank(2, negatives=negatives)
        if negatives.shape[1] != anchors.shape[1]:
            raise AssertionError(
                f"negatives has shape {negatives.shape}, but anchors has shape {anchors.shape}"
            )
        keys = jnp.concatenate([keys, _unit(negatives)])
    # Full float32: accelerators would round the factors to fewer bits, and 1 / temperature magnifies that.
    scores = jnp.einsum("bd,nd->bn", a, keys, precision=jax.lax.Precision.HIGHEST) / temperature
    return jax.nn.logsumexp(scores, axis=-1) - jnp.diagonal(scores)


def _unit(x) -> jax.Array:
    x = float32(x)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
