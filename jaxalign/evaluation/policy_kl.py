"""How far a policy is from a reference on its own samples: KL and entropy, over the whole vocabulary and as sampled."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxalign import models
from jaxalign.buckets import bucket, width_bucket
from jaxalign.evaluation.likelihood import WHOLE_LOGITS
from jaxalign.evaluation.metrics.divergence import token_entropy, token_kl
from jaxalign.models.composite import ModelDefinition
from jaxalign.models.layers import Params


class PolicyKL(NamedTuple):
    """Of N samples, float64 [N].

    Attributes:
      kl: sum over a sample's tokens of KL(policy || reference) of the next token, over the vocabulary, nats. Its mean
        over samples is an unbiased estimate of the KL of sequences, with less variance than `sampled_kl`.
      sampled_kl: log p(sample) - log p_reference(sample), nats; its mean estimates the same.
      entropy: mean over the tokens of the policy's entropy, nats.
    """

    kl: np.ndarray
    sampled_kl: np.ndarray
    entropy: np.ndarray


def policy_kl(
    policy: Any,
    reference: Any,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 8,
) -> PolicyKL:
    """The distances of a policy, which sampled at temperature 1, from a reference.

    Args:
      policy, reference: causal language models (or patients with doctors) with one vocabulary.
      rows: N pairs of a prompt's token ids and a sample's, at least one each.
      batch_size: rows at once, at most.

    Raises:
      ValueError: vocabularies of different sizes, or a row without prompt or sample.
    """
    size = int(policy.config.vocab_size)
    if size != int(reference.config.vocab_size):
        raise ValueError(f"vocabularies of {size} and {reference.config.vocab_size} tokens")
    if not all(len(prompt) and len(sample) for prompt, sample in rows):
        raise ValueError("expected at least one token in each prompt and each sample")
    (definition, params), (ref_definition, ref_params) = models.split(policy), models.split(reference)
    found = PolicyKL(*(np.zeros(len(rows)) for _ in PolicyKL._fields))
    order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
    start = 0
    while start < len(order):
        width = width_bucket(sum(map(len, rows[order[start]])))
        count = max(1, min(batch_size, WHOLE_LOGITS // (2 * width * size)))
        places = order[start : start + count]
        tokens = np.zeros((bucket(len(places), per_octave=1), width), np.int32)
        lengths, mask = np.ones(len(tokens), np.int32), np.zeros(tokens.shape, bool)
        for i, place in enumerate(places):
            prompt, sample = rows[place]
            end = len(prompt) + len(sample)
            tokens[i, :end], lengths[i] = [*prompt, *sample], end
            mask[i, len(prompt) : end] = True
        values = _distances(definition, ref_definition, params, ref_params, tokens, lengths, mask[:, 1:])
        for column, value in zip(found, values, strict=True):
            column[places] = np.asarray(value, np.float64)[: len(places)]
        start += len(places)
    return found


@partial(jax.jit, static_argnames=("definition", "ref_definition"))
def _distances(
    definition: ModelDefinition,
    ref_definition: ModelDefinition,
    params: Params,
    ref_params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    mask: Bool[Array, "B U"],
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    ours, theirs = (
        models.merge(d, p)(tokens, lengths=lengths)[:, :-1].astype(jnp.float32)
        for d, p in ((definition, params), (ref_definition, ref_params))
    )

    def chosen(logits: Float[Array, "B U V"]) -> Float[Array, "B U"]:
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.where(mask, logps, 0.0)

    counts = jnp.maximum(mask.sum(1), 1)
    return (
        token_kl(ours, theirs, mask).sum(1),
        (chosen(ours) - chosen(theirs)).sum(1),
        token_entropy(ours, mask).sum(1) / counts,
    )
