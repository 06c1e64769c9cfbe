"""Doctors of another vocabulary: what they read of a patient's tokens, and what they say of them.

A map finds some of the patient's tokens, M, in the doctor's vocabulary (`models.vocabulary`). To the others the doctor
is neutral. With s the sum of beta_i * g_i over the doctors of one map (g_i as in `models.guided`),

    s(y) = log(sum over x in M of patient(x)^alpha * exp(s(x)) / sum over x in M of patient(x)^alpha)    for y not in M

(plausible x alone): the weight that they give the tokens of M on the patient's average. Under them the odds of M to
the rest stay those of patient^alpha, exactly, for both sums grow by exp(s(y)). With doctors of several maps that holds
for each map alone. How g_i is normalized, over M or over all that the doctor has, does not matter: a constant in s on M
is the same constant off M, and none in pi.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.masking import NEGATIVE


def read(tokens: Int[Array, "*B"], part: Mapping[str, Any]) -> Int[Array, "*B"]:
    """The patient's tokens as the doctor's."""
    if "vocabulary" not in part:
        return tokens
    ids = part["vocabulary"][tokens]
    return jnp.where(ids >= 0, ids, part["unknown"])


def translated(
    logits: Float[Array, "*B W"], vocabulary: Int[Array, " V"] | None, size: int
) -> Float[Array, "*B size"]:
    """A doctor's logits by the patient's tokens; of no meaning where it has no such token."""
    if vocabulary is None:
        return logits[..., :size]
    # Finite: what doctor and reference both rule out is then a ratio of 1, and an average over it a number.
    return jnp.clip(logits[..., jnp.maximum(vocabulary[:size], 0)], NEGATIVE, -NEGATIVE)


@dataclass(frozen=True)
class Spoken:
    """What the doctors of one map say so far.

    Attributes:
      known: bool [V], the patient's tokens that the map has.
      terms: float32 [*B, V], sum of exponent times logits; of the known alone it means something.
      weighed: bool, whether any exponent is not 0.
    """

    known: Bool[Array, " V"]
    terms: Float[Array, "*B V"]
    weighed: Bool[Array, ""]

    def neutral(self, base: Float[Array, "*B V"], plausible: Bool[Array, "*B V"]) -> Float[Array, "*B V"]:
        """The terms, and for the unknown the log of their average of exp(terms) under the weights exp(base)."""
        counted = self.known & plausible
        before, after = (
            jax.nn.logsumexp(jnp.where(counted, x, NEGATIVE), axis=-1, keepdims=True)
            for x in (base, base + self.terms)
        )
        # Where all weights are 0 rounding must not say otherwise.
        return jnp.where(self.known, self.terms, jnp.where(self.weighed, after - before, 0.0))
