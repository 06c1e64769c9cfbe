"""Building blocks of the preference losses: log-ratios, margins, the smoothed logistic loss, powers of a ratio."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.arrays import Scalar, check_floating, check_rank, check_shapes, float32

LARGEST_EXPONENT = 80.0
"""exp(80) is 5.5e34: far beyond use, and still finite when it is scaled, subtracted and divided."""


def check_vectors(**logps: Any) -> None:
    """Checks that each argument holds one float per row, with the same number of rows.

    Raises:
      AssertionError: naming the argument.
    """
    check_shapes(**logps)
    check_rank(1, **logps)
    check_floating(**logps)


def check_labels(**labels: Any) -> None:
    """Checks that each argument holds bools: labels of -1 and 1 would both be True.

    Raises:
      AssertionError: naming the argument.
    """
    for name, value in labels.items():
        if jnp.result_type(value) != jnp.bool_:
            raise AssertionError(f"{name}: expected dtype bool, got {jnp.result_type(value)}")


def log_ratio(policy_logps: Float[Array, " B"], ref_logps: Float[Array, " B"]) -> Float[Array, " B"]:
    """policy - reference, in nats, float32; no gradient to the reference.

    Raises:
      AssertionError: not two float vectors of one length.
    """
    check_vectors(policy_logps=policy_logps, ref_logps=ref_logps)
    return float32(policy_logps) - jax.lax.stop_gradient(float32(ref_logps))


def labelled_log_ratio(
    policy_logps: Float[Array, " B"], ref_logps: Float[Array, " B"], desirable: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """`log_ratio` of labeled completions.

    Raises:
      AssertionError: shapes differ, or a dtype is wrong.
    """
    check_shapes(policy_logps=policy_logps, ref_logps=ref_logps, desirable=desirable)
    check_labels(desirable=desirable)
    return log_ratio(policy_logps, ref_logps)


def pair_log_ratios(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """(policy - reference of chosen, policy - reference of rejected), in nats, float32.

    The reference gets no gradient. Policy and reference of one completion lie close together, so these
    differences hardly round.

    Raises:
      AssertionError: not four float vectors of one length.
    """
    check_vectors(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    chosen = log_ratio(policy_chosen_logps, ref_chosen_logps)
    return chosen, log_ratio(policy_rejected_logps, ref_rejected_logps)


def preference_margin(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
) -> Float[Array, " B"]:
    """(policy_chosen - ref_chosen) - (policy_rejected - ref_rejected), in nats, float32.

    Raises:
      AssertionError: not four float vectors of one length.
    """
    chosen, rejected = pair_log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return chosen - rejected


def smoothed_logistic(m: Float[Array, " B"], label_smoothing: Scalar) -> Float[Array, " B"]:
    """-(1 - s) * log_sigmoid(m) - s * log_sigmoid(-m): logistic loss where labels are flipped with chance s."""
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(m) - label_smoothing * jax.nn.log_sigmoid(-m)


def power_score(log_t: Float[Array, " B"], power: Scalar) -> Float[Array, " B"]:
    """(t^power - 1) / power of a ratio or probability given by its log; log t at power 0 (Box and Cox, 1964).

    Exponents above 80 nats count as 80, and have no gradient. Within 1e-6 of 0 the power counts as 0.
    """
    power = jnp.asarray(power, jnp.float32)
    flat = jnp.abs(power) < 1e-6
    divisor = jnp.where(flat, 1.0, power)
    # expm1, not exp(x) - 1: a small power would lose every digit.
    bent = jnp.expm1(jnp.minimum(divisor * log_t, LARGEST_EXPONENT)) / divisor
    return jnp.where(flat, log_t, bent)
