"""Value discrimination: the value after the chosen token should exceed that after the rejected one (LLMDoctor, stage
2)."""

import jax
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range, check_shapes, float32


def value_discrimination_loss(
    preferred_log_values: Float[Array, "..."],
    rejected_log_values: Float[Array, "..."],
    *,
    margin: Scalar,
) -> Float[Array, "..."]:
    """Hinge on log-values: one loss per pair of next tokens.

    loss = max(0, margin - (preferred - rejected))

    Args:
      preferred_log_values: log V of the state after the preferred token; any float dtype, computed
        in float32.
      rejected_log_values: log V of the state after the rejected token, at the same prefix: where
        the two responses first part. A pinned terminal state is not for comparison.
      margin: gamma, nats, not negative.

    Returns:
      float32, the same shape, unreduced; the margin where the two are equal.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete margin out of range.

    Source: arXiv:2601.10416, there on V; on log V the hinge neither underflows nor depends on the
    scale of the flow.
    """
    check_range("margin", margin, 0.0)
    check_shapes(preferred_log_values=preferred_log_values, rejected_log_values=rejected_log_values)
    return jax.nn.relu(margin - (float32(preferred_log_values) - float32(rejected_log_values)))
