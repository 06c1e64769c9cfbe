"""Completions cut at the length limit: masked out, or penalized."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank
from jaxalign.masking import as_mask


def overlong_mask(mask: Shaped[Array, "B T"], truncated: Shaped[Array, " B"]) -> Bool[Array, "B T"]:
    """The mask without rows that were cut at the length limit.

    Args:
      mask: tokens that contribute.
      truncated: True for a row that was cut (a finish reason of "length").

    Returns:
      bool; the reductions count neither tokens nor rows that it leaves out. Group statistics still take
      these rows' rewards, unless their mask leaves them out as well.

    Raises:
      AssertionError: incompatible shapes.

    Source: arXiv:2503.14476, section 3.4 (overlong filtering).
    """
    check_rank(1, truncated=truncated)
    check_rank(2, mask=mask)
    if mask.shape[:1] != truncated.shape:
        raise AssertionError(f"truncated has shape {truncated.shape}, but mask has shape {mask.shape}")
    return as_mask(mask, mask) & ~as_mask(truncated, truncated)[:, None]


def overlong_penalty(
    lengths: Real[Array, " B"], *, max_length: Scalar, buffer: Scalar, penalty: Scalar = 1.0
) -> Float[Array, " B"]:
    """DAPO's soft penalty for long completions; add it to the reward.

    result = penalty * clip((max_length - buffer - lengths) / buffer, -1, 0)

    0 up to max_length - buffer, then falling in a line to -penalty at max_length, and there it stays.

    Args:
      lengths: tokens of each completion.
      max_length: tokens; from here on the whole penalty is due.
      buffer: tokens over which it falls; positive, at most max_length.
      penalty: how much, in units of the reward; not negative.

    Returns:
      float32, 0 or less; no gradient.

    Raises:
      AssertionError: lengths is not [B].
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2503.14476, eq. 13.
    """
    check_range("max_length", max_length, 0.0, open_low=True)
    top = max_length if isinstance(max_length, (int, float)) else float("inf")
    check_range("buffer", buffer, 0.0, top, open_low=True)
    check_range("penalty", penalty, 0.0)
    check_rank(1, lengths=lengths)
    limit, width, scale = (jnp.asarray(x, jnp.float32) for x in (max_length, buffer, penalty))
    over = (jax.lax.stop_gradient(jnp.asarray(lengths).astype(jnp.float32)) - (limit - width)) / width
    return scale * jnp.clip(-over, -1.0, 0.0)
