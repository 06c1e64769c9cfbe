"""GRPO and its relatives: the KL, the level of the ratio, the denominator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


MASK = jnp.asarray([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
WIDE = {"clip_low": 1.0, "clip_high": 9.0}


def arrays(seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 3)
    old = -jax.random.exponential(keys[0], MASK.shape)
    return old + 0.3 * jax.random.normal(keys[1], MASK.shape), old, jax.random.normal(keys[2], MASK.shape[:1])


def test_without_a_kl_a_token_level_loss_is_ppos():
    logps, old, advantages = arrays()
    options = {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 2.0}
    np.testing.assert_array_equal(
        losses.grpo_loss(logps, old, advantages, MASK, **options),
        losses.ppo_policy_loss(logps, old, advantages, MASK, **options),
    )


def test_the_kl_by_hand():
    # r = e^0.5, d = ref - logps = 1; no advantage.
    logps, old, ref = f([-2.0]), f([-2.5]), f([-1.0])
    k3 = np.e - 1 - 1
    plain = losses.grpo_loss(logps, old, f(0), ref_logps=ref, beta=0.1)
    np.testing.assert_allclose(plain, [[0.1 * k3]], rtol=1e-6)
    corrected = losses.grpo_loss(logps, old, f(0), ref_logps=ref, beta=0.1, correct_kl=True)
    np.testing.assert_allclose(corrected, [[0.1 * np.exp(0.5) * k3]], rtol=1e-6)


@pytest.mark.long
def test_only_the_corrected_kl_has_the_gradient_of_the_kl():
    logits, old = f(0.3, -1.0, 2.0), jax.nn.log_softmax(f(0.0, 0.5, 1.5))
    ref = jax.nn.log_softmax(f(1.0, 0.0, 0.5))

    def exact(logits):
        logps = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logps) * (logps - ref))

    def expected(logits, correct):
        # Tokens are sampled from the old policy.
        loss = losses.grpo_loss(
            jax.nn.log_softmax(logits)[None],
            old[None],
            f(0),
            ref_logps=ref[None],
            beta=1.0,
            correct_kl=correct,
        )
        return jnp.sum(jnp.exp(old) * loss)

    np.testing.assert_allclose(expected(logits, True), exact(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(expected)(logits, True), jax.grad(exact)(logits), atol=1e-6)
    assert np.abs(jax.grad(expected)(logits, False) - jax.grad(exact)(logits)).max() > 0.1


def test_weights_scale_the_policys_part_and_not_the_kl():
    logps, old, advantages = arrays()
    kl = losses.grpo_loss(logps, old, 0 * advantages, MASK, ref_logps=old, beta=0.2)
    policy = losses.grpo_loss(logps, old, advantages, MASK)
    both = losses.grpo_loss(
        logps, old, advantages, MASK, ref_logps=old, beta=0.2, weights=jnp.full(MASK.shape, 3.0)
    )
    np.testing.assert_allclose(both, 3 * policy + kl, rtol=1e-5, atol=1e-6)


def test_a_beta_without_a_reference_is_refused():
    logps, old, advantages = arrays()
    with pytest.raises(ValueError, match=r"beta = 0\.1 needs ref_logps"):
        losses.grpo_loss(logps, old, advantages, beta=0.1)


def test_gspo_by_hand():
    # log-ratios 0.3 and -0.1: s = e^0.1, inside the clip; each token has half the gradient.
    def total(logps, **options):
        return losses.gspo_loss(logps, f([-1, -1]), f(2), **options).sum()

    logps, s = f([-0.7, -1.1]), np.exp(0.1)
    value, gradient = jax.value_and_grad(lambda x: total(x, **WIDE))(logps)
    np.testing.assert_allclose(value, -2 * s, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-2 * s / 2, -2 * s / 2]], rtol=1e-6)
    # The paper's clip is far narrower: the row is clipped as a whole.
    value, gradient = jax.value_and_grad(total)(logps)
    np.testing.assert_allclose(value, -2 * (1 + 4e-4), rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)


def test_with_one_advantage_a_row_gspo_token_is_gspo_in_value_and_gradient():
    logps, old, advantages = arrays()
    options = {"clip_low": 0.05, "clip_high": 0.05}

    def of_tokens(logps):
        loss = losses.grpo_loss(logps, old, advantages, MASK, importance_level="sequence_token", **options)
        return losses.sequence_mean(loss, MASK)

    def of_rows(logps):
        return losses.gspo_loss(logps, old, advantages, MASK, **options).sum() / 2  # two rows have tokens

    for one, other in zip(
        jax.value_and_grad(of_tokens)(logps), jax.value_and_grad(of_rows)(logps), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_gspo_token_gives_each_token_the_gradient_of_its_own_advantage():
    logps, s = f([-0.7, -1.1]), np.exp(0.1)

    def total(logps):
        loss = losses.grpo_loss(logps, f([-1, -1]), f([2, -3]), importance_level="sequence_token", **WIDE)
        return loss.sum()

    np.testing.assert_allclose(jax.grad(total)(logps), [[-2 * s, 3 * s]], rtol=1e-6)


def test_of_one_token_all_levels_are_the_same():
    logps, old, advantages = (x[:, :1] if x.ndim == 2 else x for x in arrays())

    def gradient(level):
        return jax.grad(lambda x: losses.grpo_loss(x, old, advantages, importance_level=level).sum())(logps)

    for level in ("sequence", "sequence_token"):
        np.testing.assert_allclose(gradient(level), gradient("token"), rtol=1e-6)


def test_the_variants_are_grpo_with_their_denominator():
    logps, old, advantages = arrays()
    same = {"clip_low": 0.2, "clip_high": 0.2}
    loss = np.asarray(losses.grpo_loss(logps, old, advantages, MASK))
    total = loss.sum()
    np.testing.assert_allclose(losses.bnpo_loss(logps, old, advantages, MASK), total / 4, rtol=1e-6)
    np.testing.assert_allclose(
        losses.dapo_loss(logps, old, advantages, MASK, **same, count=10.0), total / 10, rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.dr_grpo_loss(logps, old, advantages, MASK, length=8.0), total / 8 / 2, rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.sequence_mean(jnp.asarray(loss), MASK), (loss[0].sum() / 3 + loss[1, 0]) / 2, rtol=1e-6
    )


def test_dapos_upper_clip_is_wider():
    # A ratio of 1.25 lies between 1.2 and 1.28: it still has a gradient.
    logps = f([np.log(1.25)])
    assert jax.grad(lambda x: losses.dapo_loss(x, f([0]), f(1)))(logps) == -np.float32(1.25)
    assert jax.grad(lambda x: losses.bnpo_loss(x, f([0]), f(1)))(logps) == 0
