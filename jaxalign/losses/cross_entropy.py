"""Supervised next-token loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxalign.arrays import Scalar, check_leading, check_range, check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def cross_entropy_loss(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    label_smoothing: Scalar = 0.0,
    z_loss: Scalar = 0.0,
) -> Float[Array, "B T"]:
    """Cross-entropy of each target token.

    loss = (1 - s) * -log p(target) + s * mean_v(-log p(v)) + z * logsumexp(logits)^2

    Args:
      logits: any float dtype, computed in float32.
      targets: token ids in [0, V); masked entries may hold anything.
      mask: tokens that contribute; None for all.
      label_smoothing: s, in [0, 1].
      z_loss: z, not negative; keeps logits small (PaLM, arXiv:2204.02311, section 5).

    Returns:
      float32 nats, unreduced; 0 where masked.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete hyper-parameter out of range.

    Source: label smoothing as in arXiv:1512.00567, section 7, over all V classes.
    """
    check_range("label_smoothing", label_smoothing, 0.0, 1.0)
    check_range("z_loss", z_loss, 0.0)
    check_rank(3, logits=logits)
    check_shapes(targets=targets, mask=mask)
    check_leading(2, targets=targets, logits=logits)
    mask = as_mask(mask, targets)
    logits = masked(float32(logits), mask[..., None])
    targets = jnp.where(mask, targets, 0)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    logps = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - normalizer
    mean_logps = jnp.mean(logits, axis=-1) - normalizer
    loss = token_cross_entropy(logps, mean_logps, normalizer, label_smoothing=label_smoothing, z_loss=z_loss)
    return masked(loss, mask)


def token_cross_entropy(
    logps: Float[Array, "..."],
    mean_logps: Float[Array, "..."],
    logsumexp: Float[Array, "..."],
    *,
    label_smoothing: Scalar,
    z_loss: Scalar,
) -> Float[Array, "..."]:
    """`cross_entropy_loss` from statistics of the logits, as `linear_logprobs` returns them.

    Args:
      logps: log p(target), nats.
      mean_logps: mean over the vocabulary of log p.
      logsumexp: of the logits.
      label_smoothing, z_loss: as in `cross_entropy_loss`.

    Returns:
      float32 nats, of the shape of the arguments.
    """
    loss = -(1.0 - label_smoothing) * logps - label_smoothing * mean_logps
    if isinstance(z_loss, (int, float)) and not z_loss:
        return loss
    return loss + z_loss * jnp.square(logsumexp)
