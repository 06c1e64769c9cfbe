"""EXO: the reverse KL divergence from the policy's choice to the labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range
from jaxalign.losses.margins import preference_margin


def exo_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    label_smoothing: Scalar,
) -> Float[Array, " B"]:
    """Efficient exact optimization on pairs (EXO-pref): one loss per pair.

    q = sigmoid(m),  m as in `dpo_loss`
    loss = KL((q, 1 - q) || (1 - s, s)) = q * (log q - log(1 - s)) + (1 - q) * (log(1 - q) - log s)

    DPO is the same divergence the other way round. The loss is 0, its least, at m = log((1 - s) / s), and
    turns around beyond it.

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.
      label_smoothing: s, chance that a label is flipped, in (0, 0.5); the divergence is infinite at 0. The
        paper's choice is 1e-3.

    Returns:
      float32, unreduced, not negative; -log(2 sqrt(s (1 - s))) wherever policy equals reference.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2402.00856, eq. 16.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("label_smoothing", label_smoothing, 0.0, 0.5, open_low=True, open_high=True)
    m = beta * preference_margin(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    smoothing = jnp.asarray(label_smoothing, jnp.float32)
    right = jax.nn.sigmoid(m) * (jax.nn.log_sigmoid(m) - jnp.log1p(-smoothing))
    return right + jax.nn.sigmoid(-m) * (jax.nn.log_sigmoid(-m) - jnp.log(smoothing))
