"""Completions that were cut, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


def test_the_penalty_falls_over_the_buffer():
    lengths = jnp.asarray([0, 80, 85, 90, 100, 101, 500])
    found = losses.overlong_penalty(lengths, max_length=100, buffer=20)
    np.testing.assert_allclose(found, [0, 0, -5 / 20, -10 / 20, -1, -1, -1], rtol=1e-6)
    np.testing.assert_allclose(
        losses.overlong_penalty(lengths, max_length=100, buffer=20, penalty=3.0), 3 * found, rtol=1e-6
    )


def test_cut_rows_count_nowhere():
    x, mask = f([1, 2], [30, 90], [5, 70]), jnp.asarray([[1, 1], [1, 1], [1, 0]])
    kept = losses.overlong_mask(mask, jnp.asarray([False, True, False]))
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, [[1, 1], [0, 0], [1, 0]])
    np.testing.assert_allclose(losses.token_mean(x, kept), (1 + 2 + 5) / 3)
    np.testing.assert_allclose(losses.sequence_mean(x, kept), (1.5 + 5) / 2)


def test_the_mask_works_under_jit_and_vmap_and_with_integers():
    mask, cut = jnp.ones((3, 2, 4), jnp.int32), jnp.asarray([[0, 1], [1, 1], [0, 0]])
    found = jax.jit(jax.vmap(losses.overlong_mask))(mask, cut)
    np.testing.assert_array_equal(found, jnp.broadcast_to(cut[:, :, None] == 0, mask.shape))


def test_a_wrong_shape_is_named():
    with pytest.raises(Exception, match="truncated"):
        losses.overlong_mask(jnp.ones((3, 2), bool), jnp.ones(2, bool))
