"""Distillation on logits: forward and reverse KL, and the generalized Jensen-Shannon divergence between them."""

import jax
import jax.numpy as jnp
from jax import core as jax_core
from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import Scalar, check_leading, check_range, check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def forward_kl_loss(
    student_logits: Float[Array, "B T V"],
    teacher_logits: Float[Array, "B T V"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    temperature: Scalar = 1.0,
) -> Float[Array, "B T"]:
    """KL(teacher || student) of each token's distribution: the student covers all modes of the teacher.

    p = softmax(logits / temperature);  loss = sum_v p_teacher * (log p_teacher - log p_student)

    Args:
      student_logits: any float dtype, computed in float32; finite where they count.
      teacher_logits: over the same vocabulary; no gradient.
      mask: tokens that contribute; None for all.
      temperature: positive, of both. The loss is not multiplied by its square, as arXiv:1503.02531
        suggests for a mix with another loss.

    Returns:
      float32 nats, unreduced; 0 where the two agree and where masked.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete temperature that is not positive.

    Source: arXiv:1503.02531, section 2, less the teacher's entropy, which is constant.
    """
    student, teacher, mask = _logps(student_logits, teacher_logits, mask, temperature)
    return masked(_kl(teacher, student), mask)


def reverse_kl_loss(
    student_logits: Float[Array, "B T V"],
    teacher_logits: Float[Array, "B T V"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    temperature: Scalar = 1.0,
) -> Float[Array, "B T"]:
    """KL(student || teacher) of each token's distribution: the student concentrates on modes of the teacher.

    p = softmax(logits / temperature);  loss = sum_v p_student * (log p_student - log p_teacher)

    Args:
      student_logits, teacher_logits, mask, temperature: as in `forward_kl_loss`.

    Returns:
      float32 nats, unreduced; 0 where the two agree and where masked.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete temperature that is not positive.

    Source: arXiv:2306.08543; here exact at each token, not by policy gradient.
    """
    student, teacher, mask = _logps(student_logits, teacher_logits, mask, temperature)
    return masked(_kl(student, teacher), mask)


def generalized_jsd_loss(
    student_logits: Float[Array, "B T V"],
    teacher_logits: Float[Array, "B T V"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    beta: Scalar,
    temperature: Scalar = 1.0,
) -> Float[Array, "B T"]:
    """Generalized Jensen-Shannon divergence of each token's distribution.

    m = beta * p_teacher + (1 - beta) * p_student
    loss = beta * KL(p_teacher || m) + (1 - beta) * KL(p_student || m)
    at the ends: beta = 0 is KL(teacher || student), beta = 1 is KL(student || teacher)

    The ends are the limits of loss / beta and loss / (1 - beta), not of the loss, which goes to 0
    there: a beta close to an end gives a much smaller loss than the end itself.

    Args:
      student_logits, teacher_logits, mask, temperature: as in `forward_kl_loss`.
      beta: weight of the teacher in the mixture, in [0, 1].

    Returns:
      float32 nats, unreduced; between the ends never above log 2; 0 where the two agree and where
      masked.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete hyper-parameter out of range.

    Source: arXiv:2306.13649, eq. 1; the ends as in TRL's GKD.
    """
    check_range("beta", beta, 0.0, 1.0)
    traced = isinstance(beta, jax_core.Tracer)
    if not traced and float(beta) in (0.0, 1.0):
        end = reverse_kl_loss if float(beta) else forward_kl_loss
        return end(student_logits, teacher_logits, mask, temperature=temperature)
    student, teacher, mask = _logps(student_logits, teacher_logits, mask, temperature)
    beta = jnp.asarray(beta, jnp.float32)
    at_end = (beta <= 0.0) | (beta >= 1.0)
    loss = _jsd(student, teacher, jnp.where(at_end, 0.5, beta))
    if traced:
        loss = jnp.where(at_end, jnp.where(beta > 0.5, _kl(student, teacher), _kl(teacher, student)), loss)
    return masked(loss, mask)


def _logps(student_logits, teacher_logits, mask, temperature) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checked log-probs of student and teacher (uniform where masked), and the bool mask."""
    check_range("temperature", temperature, 0.0, open_low=True)
    check_rank(3, student_logits=student_logits)
    check_shapes(student_logits=student_logits, teacher_logits=teacher_logits)
    check_leading(2, student_logits=student_logits, mask=mask)
    mask = as_mask(mask, student_logits[..., 0])
    student = masked(float32(student_logits), mask[..., None])
    teacher = jax.lax.stop_gradient(masked(float32(teacher_logits), mask[..., None]))
    return jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature), mask


def _kl(p, q) -> jax.Array:
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def _jsd(student, teacher, beta) -> jax.Array:
    # log(m / p_student) and log(m / p_teacher) from d = log(p_teacher / p_student) by expm1 of -|d|: exactly 0
    # where d is 0, and the larger of the two probabilities never meets a cancellation.
    d = teacher - student
    above = d > 0
    shared = jnp.log1p(jnp.where(above, 1.0 - beta, beta) * jnp.expm1(jnp.where(above, -d, d)))
    over_student = shared + jnp.where(above, d, 0.0)
    over_teacher = shared - jnp.where(above, 0.0, d)
    by_token = beta * jnp.exp(teacher) * over_teacher + (1.0 - beta) * jnp.exp(student) * over_student
    return -jnp.sum(by_token, axis=-1)
