"""KTO: preferences without pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxalign.arrays import Scalar, check_range, check_shapes, float32
from jaxalign.losses.margins import labelled_log_ratio, log_ratio
from jaxalign.masking import as_mask, masked, masked_mean


def kto_loss(
    policy_logps: Float[Array, " B"],
    ref_logps: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    *,
    beta: Scalar,
    kl: Scalar,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Float[Array, " B"]:
    """Kahneman-Tversky optimization: one loss per completion, which is either desirable or not.

    d = beta * ((policy - ref) - kl)
    loss = desirable_weight * (1 - sigmoid(d)) where desirable, undesirable_weight * (1 - sigmoid(-d)) elsewhere

    Args:
      policy_logps: log p(completion | prompt), summed over completion tokens, in nats.
      ref_logps: the same under the frozen reference; no gradient.
      desirable: bool, the label of each completion.
      beta: strength of the penalty that keeps the policy close to the reference; positive.
      kl: estimate of KL(policy || reference) over the whole batch in nats, see `kto_kl`; not negative, no
        gradient.
      desirable_weight, undesirable_weight: lambda_D and lambda_U in the paper; not negative.

    Returns:
      float32, unreduced; in [0, weight].

    Raises:
      AssertionError: shapes differ, or the labels are not bool.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2402.01306, eq. 7; the loss is lambda - v there.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_range("kl", kl, 0.0)
    check_range("desirable_weight", desirable_weight, 0.0)
    check_range("undesirable_weight", undesirable_weight, 0.0)
    ratio = labelled_log_ratio(policy_logps, ref_logps, desirable)
    d = beta * (ratio - jax.lax.stop_gradient(jnp.asarray(kl, jnp.float32)))
    weight = jnp.where(desirable, float32(desirable_weight), float32(undesirable_weight))
    return weight * jax.nn.sigmoid(jnp.where(desirable, -d, d))


def kto_kl(
    policy_logps: Float[Array, " B"],
    ref_logps: Float[Array, " B"],
    mask: Shaped[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """The batch's estimate of KL(policy || reference), an argument of `kto_loss`.

    kl = max(mean(policy - ref), 0)

    The log-probs are those of *mismatched* pairs: each prompt with the completion of another prompt of the
    batch, x_i with y_(i+1). The completions of a data set are not samples of the policy; as answers to a
    prompt they do not belong to, they at least say nothing about the label that is being learned. The
    estimate is biased and cheap. Pass the whole batch: because of the clip at 0, estimates of parts cannot be
    averaged.

    Args:
      policy_logps: log p(completion of another prompt | prompt), summed over completion tokens, in nats.
      ref_logps: the same under the frozen reference.
      mask: rows that contribute; None for all.

    Returns:
      float32 scalar, not negative, without gradient; 0 if everything is masked.

    Raises:
      AssertionError: shapes differ.

    Source: arXiv:2402.01306.
    """
    check_shapes(policy_logps=policy_logps, ref_logps=ref_logps, mask=mask)
    mask = as_mask(mask, policy_logps)
    ratio = log_ratio(masked(policy_logps, mask), masked(ref_logps, mask))
    return jax.lax.stop_gradient(jnp.maximum(masked_mean(ratio, mask), 0.0))
