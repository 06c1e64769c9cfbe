"""The entropy bonus of a policy loss."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import Scalar, check_shapes, float32
from jaxalign.masking import as_mask, masked


def entropy_bonus(
    entropy: Float[Array, "..."], mask: Shaped[Array, "..."] | None = None, *, coefficient: Scalar
) -> Float[Array, "..."]:
    """The term of a loss that rewards entropy.

    loss = -coefficient * entropy

    Added to a loss per token before its reduction, it has that loss's denominator. TRL instead takes
    `token_mean` of it whatever the loss's reduction: reduce it apart and add the scalars.

    Args:
      entropy: of the next-token distribution in full, nats (`linear_logprobs` gives it). -logps of the
        sampled token has the same mean, but not the gradient.
      mask: tokens that contribute; None for all.
      coefficient: any number; a negative one punishes entropy.

    Returns:
      float32, the same shape; 0 where masked.

    Raises:
      AssertionError: shapes differ.
    """
    check_shapes(entropy=entropy, mask=mask)
    return -jnp.asarray(coefficient, jnp.float32) * masked(float32(entropy), as_mask(mask, entropy))
