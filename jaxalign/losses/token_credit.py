"""Token rewards from one frozen model under two instructions (LLMDoctor, stage 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import Scalar, check_leading, check_range, check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def token_importance(
    positive_logps: Float[Array, "B T"],
    negative_logps: Float[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    temperature: Scalar = 1.0,
    epsilon: Scalar = 1e-6,
) -> Float[Array, "B T"]:
    """Token importance: how much a token's log-prob depends on the instruction (positive or negative).

    D_t = |positive_t - negative_t|
    S_t = tanh(D_t / (mean_j D_j + epsilon) / temperature)

    Args:
      positive_logps: log-probs of a completion's tokens under the positive instruction, nats; any
        float dtype, computed in float32; no gradient.
      negative_logps: of the same tokens under the negative instruction; no gradient.
      mask: the completion's tokens, over which each row's mean is taken; None for all.
      temperature: tau, positive: the larger, the more even and small the importances.
      epsilon: nats, not negative, added to the mean. D is divided by its own mean; only epsilon keeps rows whose
        log-probs hardly differ from getting as much importance as others.

    Returns:
      float32 in [0, 1] (1 only by rounding); 0 where masked and where the log-probs are equal.

    Raises:
      AssertionError: shapes differ, or not [B, T].
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2601.10416.
    """
    check_range("temperature", temperature, 0.0, open_low=True)
    check_range("epsilon", epsilon, 0.0)
    check_rank(2, positive_logps=positive_logps)
    check_shapes(positive_logps=positive_logps, negative_logps=negative_logps, mask=mask)
    mask = as_mask(mask, positive_logps)
    faces = masked(float32(positive_logps), mask), masked(float32(negative_logps), mask)
    difference = jnp.abs(jax.lax.stop_gradient(faces[0] - faces[1]))
    count = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
    scale = jnp.sum(difference, axis=1, keepdims=True) / jnp.maximum(count, 1.0) + epsilon
    # epsilon may be 0, and so may every difference.
    return jnp.tanh(difference / jnp.where(scale > 0, scale, 1.0) / temperature)


def token_rewards(
    importance: Float[Array, "B T"],
    preferred: Shaped[Array, " B"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    threshold: Scalar,
) -> Float[Array, "B T"]:
    """Token rewards: importance above a threshold, with the sign of the completion's label.

    r_t = (+1 if preferred else -1) * S_t * [S_t > threshold]

    Args:
      importance: S, of `token_importance`; no gradient.
      preferred: True for chosen completions, one per row; bool, or 0 and 1.
      mask: tokens that contribute; None for all.
      threshold: theta, in [0, 1]. As S is relative to the row's mean, 0.1 keeps most tokens, and 0.5
        about half.

    Returns:
      float32 in [-1, 1]; 0 where masked.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete threshold out of range.

    Source: arXiv:2601.10416.
    """
    check_range("threshold", threshold, 0.0, 1.0)
    check_rank(2, importance=importance)
    check_rank(1, preferred=preferred)
    check_shapes(importance=importance, mask=mask)
    check_leading(1, importance=importance, preferred=preferred)
    importance = jax.lax.stop_gradient(masked(float32(importance), as_mask(mask, importance)))
    sign = jnp.where(as_mask(preferred, preferred), 1.0, -1.0)
    return jnp.where(importance > threshold, sign[:, None] * importance, 0.0)
