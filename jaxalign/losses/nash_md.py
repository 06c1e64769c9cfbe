"""Nash-MD: a game against a mixture of the policy and its reference."""

import jax
from jaxtyping import Array, Float

from jaxalign.arrays import Scalar, check_range, float32
from jaxalign.losses.margins import check_vectors


def nash_md_loss(
    policy_logps: Float[Array, " B"],
    ref_logps: Float[Array, " B"],
    probability: Float[Array, " B"],
    *,
    beta: Scalar,
) -> Float[Array, " B"]:
    """Nash mirror descent: REINFORCE on the probability of beating the mixture, minus a KL penalty.

    loss = beta * stop_gradient(policy - ref) * policy - (probability - 0.5) * policy

    The gradient is that of the method; the value has no meaning of its own. 0.5 is a control variate.

    Args:
      policy_logps: log p(completion | prompt) of the policy's own sample, summed over its tokens, in nats.
      ref_logps: the same under the frozen reference; no gradient.
      probability: chance that this sample is preferred to the mixture's, in [0, 1]; no gradient.
      beta: strength of the KL penalty; positive.

    Returns:
      float32, unreduced. The KL term is the unbiased estimate for whole sequences. TRL multiplies and sums
      token by token, which leaves out what a token does to the ratios after it; the two agree on
      completions of one token.

    Raises:
      AssertionError: shapes differ.
      ValueError: a concrete beta out of range.

    Source: arXiv:2312.00886.
    """
    check_range("beta", beta, 0.0, open_low=True)
    check_vectors(policy_logps=policy_logps, ref_logps=ref_logps, probability=probability)
    policy = float32(policy_logps)
    ratio = policy - float32(ref_logps)
    return jax.lax.stop_gradient(beta * ratio - (float32(probability) - 0.5)) * policy
