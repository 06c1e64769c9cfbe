import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses

STUDENT, TEACHER = np.asarray([1 / 2, 1 / 2]), np.asarray([1 / 4, 3 / 4])
LOGITS = tuple(jnp.log(jnp.asarray(p, jnp.float32))[None, None] for p in (STUDENT, TEACHER))


def kl(p, q):
    return np.sum(p * np.log(p / q))


def test_forward_and_reverse_by_hand():
    forward = 1 / 4 * np.log(1 / 2) + 3 / 4 * np.log(3 / 2)
    reverse = 1 / 2 * np.log(2) + 1 / 2 * np.log(2 / 3)
    np.testing.assert_allclose(losses.forward_kl_loss(*LOGITS), [[forward]], rtol=1e-5)
    np.testing.assert_allclose(losses.reverse_kl_loss(*LOGITS), [[reverse]], rtol=1e-5)


def test_temperature_divides_both_logits_and_does_not_scale_the_loss():
    # Temperature 1/2 squares the probabilities: 1/2, 1/2 and 1/10, 9/10.
    loss = losses.forward_kl_loss(*LOGITS, temperature=0.5)
    np.testing.assert_allclose(loss, [[kl(np.asarray([0.1, 0.9]), STUDENT)]], rtol=1e-5)


def test_beta_weighs_the_teacher_in_the_mixture():
    mixture = 0.2 * TEACHER + 0.8 * STUDENT
    expected = 0.2 * kl(TEACHER, mixture) + 0.8 * kl(STUDENT, mixture)
    np.testing.assert_allclose(losses.generalized_jsd_loss(*LOGITS, beta=0.2), [[expected]], rtol=1e-5)


def test_half_is_symmetric_and_the_ends_are_the_two_divergences():
    one = losses.generalized_jsd_loss(*LOGITS, beta=0.5)
    np.testing.assert_allclose(one, losses.generalized_jsd_loss(*LOGITS[::-1], beta=0.5), rtol=1e-5)
    forward, reverse = losses.forward_kl_loss(*LOGITS), losses.reverse_kl_loss(*LOGITS)
    np.testing.assert_array_equal(losses.generalized_jsd_loss(*LOGITS, beta=0), forward)
    np.testing.assert_array_equal(losses.generalized_jsd_loss(*LOGITS, beta=1), reverse)


def test_a_traced_beta_may_be_at_an_end():
    traced = jax.jit(lambda beta: losses.generalized_jsd_loss(*LOGITS, beta=beta))
    for beta in (0.0, 0.2, 1.0):
        np.testing.assert_allclose(traced(beta), losses.generalized_jsd_loss(*LOGITS, beta=beta), rtol=1e-5)


def test_the_ends_are_limits_of_the_loss_over_its_small_weight():
    forward, reverse = losses.forward_kl_loss(*LOGITS), losses.reverse_kl_loss(*LOGITS)
    for beta, end in ((0.01, forward), (0.99, reverse)):
        near = losses.generalized_jsd_loss(*LOGITS, beta=beta)
        np.testing.assert_allclose(near / 0.01, end, rtol=0.05)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_agreement_is_exactly_zero_with_no_gradient(beta):
    logits = 3 * jax.random.normal(jax.random.key(0), (2, 3, 50))

    def loss(x):
        return losses.generalized_jsd_loss(x, logits, beta=beta)

    np.testing.assert_array_equal(loss(logits), 0)
    np.testing.assert_allclose(jax.grad(lambda x: loss(x).sum())(logits), 0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradient_moves_the_student_to_the_teacher(beta):
    gradient = jax.grad(lambda x: losses.generalized_jsd_loss(x, LOGITS[1], beta=beta).sum())(LOGITS[0])
    # The teacher has more of the second token.
    assert gradient[0, 0, 1] < 0 < gradient[0, 0, 0]


def test_opposite_certainties_reach_log_two():
    # The mixture halves both: 0.5 log 2 + 0.5 log 2, with no loss of digits at 10^4 nats.
    far = jnp.asarray([[[0.0, -1e4]]]), jnp.asarray([[[-1e4, 0.0]]])
    np.testing.assert_allclose(losses.generalized_jsd_loss(*far, beta=0.5), [[np.log(2)]], rtol=1e-6)
    np.testing.assert_allclose(losses.forward_kl_loss(*far), [[1e4]], rtol=1e-6)
