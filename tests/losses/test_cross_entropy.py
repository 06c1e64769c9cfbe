import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from jaxalign.losses.cross_entropy import token_cross_entropy

# One token of two, with probabilities 1/4 and 3/4; the normalizer is log 4.
LOGITS = jnp.log(jnp.asarray([[[1.0, 3.0]]]))
FIRST = jnp.asarray([[0]])


def test_value_by_hand():
    np.testing.assert_allclose(losses.cross_entropy_loss(LOGITS, FIRST), [[np.log(4)]], rtol=1e-6)


def test_smoothing_mixes_in_the_mean_over_the_vocabulary():
    loss = losses.cross_entropy_loss(LOGITS, FIRST, label_smoothing=0.5)
    uniform = -(np.log(1 / 4) + np.log(3 / 4)) / 2
    np.testing.assert_allclose(loss, [[0.5 * np.log(4) + 0.5 * uniform]], rtol=1e-6)


def test_z_loss_adds_the_squared_normalizer():
    loss = losses.cross_entropy_loss(LOGITS, FIRST, z_loss=0.1)
    np.testing.assert_allclose(loss, [[np.log(4) + 0.1 * np.log(4) ** 2]], rtol=1e-6)


def test_a_constant_on_the_logits_changes_only_the_z_loss():
    moved = LOGITS + 100.0
    np.testing.assert_allclose(losses.cross_entropy_loss(moved, FIRST), [[np.log(4)]], rtol=1e-5)
    with_z = losses.cross_entropy_loss(moved, FIRST, z_loss=1.0)
    np.testing.assert_allclose(with_z, [[np.log(4) + (100 + np.log(4)) ** 2]], rtol=1e-6)


def test_gradient_is_probability_less_one_at_the_target():
    gradient = jax.grad(lambda x: losses.cross_entropy_loss(x, FIRST).sum())(LOGITS)
    np.testing.assert_allclose(gradient, [[[1 / 4 - 1, 3 / 4]]], rtol=1e-6)


def test_fully_smoothed_is_smallest_at_equal_logits():
    gradient = jax.grad(lambda x: losses.cross_entropy_loss(x, FIRST, label_smoothing=1.0).sum())(0 * LOGITS)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_targets_out_of_the_vocabulary_do_not_matter_where_masked():
    logits = jnp.concatenate([LOGITS, LOGITS], axis=1)
    loss = losses.cross_entropy_loss(logits, jnp.asarray([[0, -100]]), jnp.asarray([[True, False]]))
    np.testing.assert_allclose(loss, [[np.log(4), 0]], rtol=1e-6)


def test_statistics_of_a_head_give_the_loss_of_its_logits():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 5, (2, 3)))
    logps = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logps, targets[..., None], axis=-1)[..., 0]
    for options in ({"label_smoothing": 0.1, "z_loss": 0.01}, {"label_smoothing": 0.0, "z_loss": 0.0}):
        found = token_cross_entropy(chosen, logps.mean(-1), jax.nn.logsumexp(logits, axis=-1), **options)
        np.testing.assert_allclose(
            found, losses.cross_entropy_loss(logits, targets, **options), rtol=1e-6, atol=1e-7
        )
