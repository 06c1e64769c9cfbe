"""BCO: binary classifier optimization, of pairs and of labeled completions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.arrays import Scalar, check_range, check_shapes, float32
from jaxalign.losses.margins import labelled_log_ratio, pair_log_ratios


def bco_pair_loss(
    policy_chosen_logps: Float[Array, " B"],
    policy_rejected_logps: Float[Array, " B"],
    ref_chosen_logps: Float[Array, " B"],
    ref_rejected_logps: Float[Array, " B"],
    *,
    beta: Scalar,
    delta: Scalar = 0.0,
) -> Float[Array, " B"]:
    """Binary classifier optimization of a chosen and a rejected completion: one loss per pair.

    loss = -log_sigmoid(r_chosen - delta) - log_sigmoid(-(r_rejected - delta)),  r = beta * (policy - ref)

    Args:
      policy_*_logps, ref_*_logps, beta: as in `dpo_loss`.
      delta: the reward shift, as in `bco_loss`; 0 for none.

    Returns:
      float32, unreduced; 2 log 2 wherever policy equals reference and delta is 0.

    Raises:
      AssertionError: the four shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2404.04656.
    """
    check_range("beta", beta, 0.0, open_low=True)
    chosen, rejected = pair_log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    shift = jax.lax.stop_gradient(jnp.asarray(delta, jnp.float32))
    return -jax.nn.log_sigmoid(beta * chosen - shift) - jax.nn.log_sigmoid(shift - beta * rejected)


def bco_loss(
    policy_logps: Float[Array, " B"],
    ref_logps: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    *,
    beta: Scalar,
    delta: Scalar,
    desirable_weight: Scalar | Float[Array, " B"] = 1.0,
    undesirable_weight: Scalar | Float[Array, " B"] = 1.0,
) -> Float[Array, " B"]:
    """Binary classifier optimization: one loss per completion, which is either desirable or not.

    d = beta * (policy - ref) - delta
    loss = desirable_weight * -log_sigmoid(d) where desirable, undesirable_weight * -log_sigmoid(-d) elsewhere

    Args:
      policy_logps, ref_logps, desirable, beta: as in `kto_loss`.
      delta: the reward shift, in units of the reward beta * (policy - ref): a running mean of the rewards
        over both labels and all batches so far, which the caller keeps; no gradient.
      desirable_weight, undesirable_weight: not negative, no gradient; scalars, or one per row, such as the
        paper's ratio of prompt densities on undesirable completions.

    Returns:
      float32, unreduced.

    Raises:
      AssertionError: shapes differ, or the labels are not bool.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2404.04656.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("desirable_weight", desirable_weight, 0.0)
    check_range("undesirable_weight", undesirable_weight, 0.0)
    ratio = labelled_log_ratio(policy_logps, ref_logps, desirable)
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    check_shapes(policy_logps=policy_logps, **{name: w for name, w in weights.items() if jnp.ndim(w)})
    weight = jax.lax.stop_gradient(
        jnp.where(desirable, float32(desirable_weight), float32(undesirable_weight))
    )
    d = beta * ratio - jax.lax.stop_gradient(jnp.asarray(delta, jnp.float32))
    return weight * -jax.nn.log_sigmoid(jnp.where(desirable, d, -d))
