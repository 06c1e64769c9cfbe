"""Exact entropy of a policy and KL to its reference at each token, from logits over the whole vocabulary.

`losses.kl.kl_penalty` estimates the KL from sampled tokens alone (k1, k3). The exact one has no sampling error at a
token; over sequences it is still an average over the prefixes that were sampled. From hidden states, without the logits
in memory, `logprobs.linear_logprobs` has the entropy.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import Scalar, check_leading, check_range, check_shapes, float32
from jaxalign.losses.distillation import reverse_kl_loss
from jaxalign.masking import NEGATIVE, as_mask, masked, masked_mean


def token_entropy(
    logits: Float[Array, "*T V"], mask: Shaped[Array, "*T"] | None = None, *, temperature: Scalar = 1.0
) -> Float[Array, "*T"]:
    """Entropy of each token's distribution.

    p = softmax(logits / temperature);  H = -sum_v p_v log p_v

    Args:
      logits: any float dtype, computed in float32; -inf for tokens that are excluded, not all of them.
      mask: tokens that count; None for all. Logits of others may be anything.
      temperature: positive.

    Returns:
      float32 nats, in [0, log V]; 0 where masked.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete temperature that is not positive.
    """
    check_range("temperature", temperature, 0.0, open_low=True)
    check_leading(jnp.ndim(logits) - 1, logits=logits, mask=mask)
    mask = as_mask(mask, logits[..., 0])
    logps = jax.nn.log_softmax(_finite(logits, mask) / temperature)
    return masked(-jnp.sum(jnp.exp(logps) * logps, axis=-1), mask)


def token_kl(
    logits: Float[Array, "*T V"],
    ref_logits: Float[Array, "*T V"],
    mask: Shaped[Array, "*T"] | None = None,
    *,
    temperature: Scalar = 1.0,
) -> Float[Array, "*T"]:
    """KL(policy || reference) of each token's distribution.

    p = softmax(logits / temperature), q likewise;  KL = sum_v p_v (log p_v - log q_v)

    Args:
      logits: of the policy; any float dtype, computed in float32; -inf for tokens that are excluded.
      ref_logits: of the reference, over the same vocabulary; no gradient.
      mask: tokens that count; None for all. Logits of others may be anything.
      temperature: positive, of both.

    Returns:
      float32 nats, not negative but for rounding; 0 where masked, inf where the reference excludes a token that the
      policy does not.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete temperature that is not positive.
    """
    check_shapes(logits=logits, ref_logits=ref_logits)
    check_leading(jnp.ndim(logits) - 1, logits=logits, mask=mask)
    shape, vocabulary = jnp.shape(logits)[:-1], jnp.shape(logits)[-1]
    mask = as_mask(mask, logits[..., 0])
    policy, reference = _finite(logits, mask), _finite(ref_logits, mask)
    ours, theirs = (x.reshape(1, -1, vocabulary) for x in (policy, reference))
    kl = reverse_kl_loss(ours, theirs, mask.reshape(1, -1), temperature=temperature).reshape(shape)
    excluded = jnp.any((policy > NEGATIVE) & (reference <= NEGATIVE), axis=-1)
    return jnp.where(excluded, jnp.inf, kl)


def mean_entropy(
    logits: Float[Array, "*T V"], mask: Shaped[Array, "*T"] | None = None, *, temperature: Scalar = 1.0
) -> Float[Array, ""]:
    """Mean of `token_entropy` over the tokens that count, nats a token; 0 if none does."""
    values = token_entropy(logits, mask, temperature=temperature)
    return masked_mean(values, as_mask(mask, values))


def mean_kl(
    logits: Float[Array, "*T V"],
    ref_logits: Float[Array, "*T V"],
    mask: Shaped[Array, "*T"] | None = None,
    *,
    temperature: Scalar = 1.0,
) -> Float[Array, ""]:
    """Mean of `token_kl` over the tokens that count, nats a token; 0 if none does."""
    values = token_kl(logits, ref_logits, mask, temperature=temperature)
    return masked_mean(values, as_mask(mask, values))


def _finite(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """float32, 0 where masked; NEGATIVE for what is excluded, whose probability is 0 and whose log is a number."""
    found = masked(float32(logits), mask[..., None])
    return jnp.where(jnp.isneginf(found), NEGATIVE, found)
