"""DiscoPOP: the log-ratio modulated loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range
from jaxalign.losses.margins import preference_margin


def discopop_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    tau: Scalar = 0.05,
) -> Float[Array, " B"]:
    """Logistic loss below a margin of 0 and exponential loss above, blended over a width tau.

    w = sigmoid(m / tau),  m as in `dpo_loss`
    loss = (1 - w) * -log_sigmoid(m) + w * exp(-m)

    Not convex: for tau below about 0.1 the slope around m = 0 is positive.

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.
      tau: positive; the paper's choice is 0.05.

    Returns:
      float32, unreduced; (1 + log 2) / 2 wherever policy equals reference.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2406.08414, eq. 5.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("tau", tau, 0.0, open_low=True)
    m = beta * preference_margin(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    # One exponent for w * exp(-m), where 0 * inf would be NaN; it is above 0 only if tau > 1, and clipped at 20.
    exponential = jnp.exp(jnp.minimum(jax.nn.log_sigmoid(m / tau) - m, 20.0))
    return exponential - jax.nn.sigmoid(-m / tau) * jax.nn.log_sigmoid(m)
