"""The divergence of teacher and student at each token, from their hidden states, some tokens at a time.

Both distributions over the whole vocabulary are needed at once, so the tokens are split, not the vocabulary. What lies
beyond a pass's limit is computed again in the backward pass.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from jaxalign.kernels.matmul import product
from jaxalign.logprobs import token_logprobs
from jaxalign.losses.distillation import forward_kl_loss, generalized_jsd_loss, reverse_kl_loss
from jaxalign.mesh import constrained
from jaxalign.models.layers import softcap
from jaxalign.training.core.scoring import whole_logits_limit
from jaxalign.training.distill.config import DistillLossConfig

# float32 logits of one model in a chunk: enough tokens for fast products.
CHUNK_BYTES = 64 << 20


class TokenDivergences(NamedTuple):
    """Per-token statistics, each float32 [B, T] and 0 where masked.

    Attributes:
      loss: the divergence that is trained on, nats.
      kl: KL(teacher || student) at temperature 1, nats; no gradient, like all that follow.
      nll: -log p(target) under the student, nats.
      teacher_nll: the same under the teacher.
      agreement: 1.0 where both have the same most probable token.
    """

    loss: Float[Array, "B T"]
    kl: Float[Array, "B T"]
    nll: Float[Array, "B T"]
    teacher_nll: Float[Array, "B T"]
    agreement: Float[Array, "B T"]


def token_divergences(
    student: Any,
    teacher: Any,
    student_hidden: Float[Array, "B T D"],
    teacher_hidden: Float[Array, "B T E"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    config: DistillLossConfig,
    vocabulary: int,
) -> TokenDivergences:
    """Divergences at each token.

    Args:
      student, teacher: `Transformer`s, for their vocabulary heads.
      student_hidden, teacher_hidden: states that predict the targets; a gradient reaches the student's and its head.
      targets: token ids.
      mask: tokens that count.
      config: which divergence.
      vocabulary: token ids below it count, of both; rows of a head beyond are padding.
    """
    divergence = {
        "jsd": partial(generalized_jsd_loss, beta=config.beta),
        "forward_kl": forward_kl_loss,
        "reverse_kl": reverse_kl_loss,
    }[config.name]
    student_logits, teacher_logits = (_logits_of(model, vocabulary) for model in (student, teacher))

    def of_tokens(
        ours: jax.Array, theirs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> TokenDivergences:
        p, q = student_logits(ours), jax.lax.stop_gradient(teacher_logits(theirs))
        loss = divergence(p, q, mask, temperature=config.temperature)
        p = jax.lax.stop_gradient(p)
        kl = loss if (config.name, config.temperature) == ("forward_kl", 1.0) else forward_kl_loss(p, q, mask)
        others = (-token_logprobs(p, targets), -token_logprobs(q, targets), p.argmax(-1) == q.argmax(-1))
        return TokenDivergences(loss, kl, *(jnp.where(mask, x, 0).astype(jnp.float32) for x in others))

    arrays = (student_hidden, teacher_hidden, jnp.where(mask, targets, 0), mask)
    rows, width = targets.shape
    column = 4 * rows * vocabulary
    if 2 * width * column <= whole_logits_limit() and student.config.remat == "none":
        return of_tokens(*arrays)
    size = max(1, min(width, CHUNK_BYTES // column))
    chunks = -(-width // size)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * size - width), *[(0, 0)] * (x.ndim - 2)])
        return rearrange(x, "b (c t) ... -> c b t ...", c=chunks)

    done = jax.lax.map(lambda chunk: jax.checkpoint(of_tokens)(*chunk), jax.tree.map(split, arrays))
    return jax.tree.map(lambda x: rearrange(x, "c b t -> b (c t)")[:, :width], done)


def _logits_of(model: Any, vocabulary: int) -> Any:
    """hidden [B, T, D] -> logits [B, T, vocabulary], float32; the head is laid out once for all calls."""
    options, mesh = model.head_options, model.config.mesh
    head = constrained(model.head, ("vocab", None), mesh)[:vocabulary]
    bias = None if options["bias"] is None else options["bias"][:vocabulary].astype(jnp.float32)

    def logits(hidden: jax.Array) -> jax.Array:
        out = product("btd,vd->btv", hidden, head, dtype=options["product_dtype"])
        return softcap(out if bias is None else out + bias, model.config.final_softcap)

    return logits
