"""Exact entropy and KL against float64, and against the sampled estimates of the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.evaluation.metrics.divergence import mean_entropy, mean_kl, token_entropy, token_kl
from jaxalign.losses.kl import kl_penalty

T, V = 6, 11
MASK = np.array([1, 1, 0, 1, 0, 1], bool)


def draws(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def softmax(logits, temperature=1.0):
    x = np.asarray(logits, np.float64) / temperature
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(T, V), (3, T, V), (V,)])
def test_entropy_and_kl_are_those_of_float64(shape, temperature):
    logits, ref = draws(*shape), draws(*shape, seed=1)
    p, q = softmax(logits, temperature), softmax(ref, temperature)
    entropy, kl = -(p * np.log(p)).sum(-1), (p * np.log(p / q)).sum(-1)
    options = {"temperature": temperature}
    np.testing.assert_allclose(token_entropy(logits, **options), entropy, rtol=1e-5)
    np.testing.assert_allclose(token_kl(logits, ref, **options), kl, rtol=1e-5)
    assert float(mean_entropy(logits, **options)) == pytest.approx(entropy.mean(), rel=1e-5)
    assert float(mean_kl(logits, ref, **options)) == pytest.approx(kl.mean(), rel=1e-5)


def test_a_hand_worked_kl():
    # p = (1/2, 1/2), q = (1/4, 3/4); the other way round it is another.
    p, q = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
    assert float(token_kl(p, q)[0]) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-5)
    assert float(token_kl(q, p)[0]) == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5), rel=1e-5)
    assert float(token_entropy(p)[0]) == pytest.approx(np.log(2))


def test_masked_tokens_do_not_count_whatever_they_hold():
    logits, ref = draws(T, V), draws(T, V, seed=1)
    broken, broken_ref = logits.copy(), ref.copy()
    broken[~MASK], broken_ref[~MASK] = np.nan, np.inf
    for found, plain in (
        (token_entropy(broken, MASK), token_entropy(logits)),
        (token_kl(broken, broken_ref, MASK), token_kl(logits, ref)),
    ):
        np.testing.assert_allclose(found, np.where(MASK, plain, 0), rtol=1e-6)
    kept = token_kl(logits[MASK], ref[MASK])
    assert float(mean_kl(broken, broken_ref, MASK)) == pytest.approx(float(kept.mean()), rel=1e-5)
    kept = token_entropy(logits[MASK])
    assert float(mean_entropy(broken, MASK)) == pytest.approx(float(kept.mean()), rel=1e-5)
    assert float(mean_kl(broken, broken_ref, np.zeros(T, bool))) == 0


def test_excluded_tokens_have_no_probability():
    logits, ref = draws(T, V), draws(T, V, seed=1)
    cut = logits.copy()
    cut[:, 7:] = -np.inf
    np.testing.assert_allclose(token_entropy(cut), token_entropy(logits[:, :7]), rtol=1e-6)
    p, q = softmax(logits[:, :7]), softmax(ref)[:, :7]
    np.testing.assert_allclose(token_kl(cut, ref), (p * np.log(p / q)).sum(-1), rtol=1e-5)
    cut_ref = ref.copy()
    cut_ref[:, 7:] = -np.inf
    np.testing.assert_allclose(token_kl(cut, cut_ref), token_kl(logits[:, :7], ref[:, :7]), rtol=1e-5)
    # What the reference cannot say, the policy may not.
    assert np.isposinf(token_kl(logits, cut_ref)).all()
    assert np.isposinf(token_kl(logits, cut_ref, MASK)).tolist() == MASK.tolist()


def test_the_ends_of_both_measures():
    logits = draws(T, V)
    assert np.abs(token_kl(logits, logits + 3)).max() < 1e-6
    np.testing.assert_allclose(token_entropy(np.zeros((T, V))), np.log(V), rtol=1e-6)
    sure = np.zeros((1, V), np.float32)
    sure[0, 2] = 200
    assert float(token_entropy(sure)[0]) == 0
    assert float(token_kl(sure, np.zeros((1, V)))[0]) == pytest.approx(np.log(V), rel=1e-6)


def test_jit_and_vmap_give_the_same():
    logits, ref, mask = draws(3, T, V), draws(3, T, V, seed=1), jnp.asarray([MASK] * 3)
    plain = token_kl(logits, ref, mask)
    np.testing.assert_allclose(jax.jit(token_kl)(logits, ref, mask), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(token_kl)(logits, ref, mask), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(mean_entropy)(logits, mask), mean_entropy(logits, mask), rtol=1e-5)
    low = jnp.asarray(logits, jnp.bfloat16)
    assert token_entropy(low).dtype == token_kl(low, low).dtype == jnp.float32


def test_sampled_estimates_have_the_exact_kl_as_their_mean():
    logits, ref = draws(V, scale=1.0), draws(V, seed=1, scale=1.0)
    tokens = jax.random.categorical(jax.random.key(0), jnp.asarray(logits), shape=(40_000,))
    logps, ref_logps = (jax.nn.log_softmax(x)[tokens] for x in (logits, ref))
    exact = float(token_kl(logits, ref))
    for name in ("k1", "k3"):
        assert float(kl_penalty(logps, ref_logps, estimator=name).mean()) == pytest.approx(exact, rel=0.03)
    assert float(-logps.mean()) == pytest.approx(float(token_entropy(logits)), rel=0.02)


def test_shapes_and_temperatures_that_cannot_be_are_refused():
    with pytest.raises(AssertionError, match="ref_logits"):
        token_kl(draws(T, V), draws(T, V + 1))
    with pytest.raises(AssertionError, match="mask"):
        token_kl(draws(T, V), draws(T, V), MASK[:-1])
    with pytest.raises(AssertionError, match="mask"):
        token_entropy(draws(T, V), MASK[:-1])
    with pytest.raises(ValueError, match="temperature"):
        token_entropy(draws(T, V), temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        token_kl(draws(T, V), draws(T, V), temperature=-1.0)
