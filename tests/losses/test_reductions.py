"""Denominators, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


X, MASK = f([1, 2], [3, 9]), f([1, 1], [1, 0])


def test_value_by_hand():
    np.testing.assert_allclose(losses.token_mean(X, MASK), (1 + 2 + 3) / 3)
    np.testing.assert_allclose(losses.sequence_mean(X, MASK), ((1 + 2) / 2 + 3) / 2)
    np.testing.assert_allclose(losses.fixed_length_mean(X, MASK, length=4), ((1 + 2) / 4 + 3 / 4) / 2)


def test_without_a_mask_all_tokens_count():
    np.testing.assert_allclose(losses.token_mean(X, None), (1 + 2 + 3 + 9) / 4)
    np.testing.assert_allclose(losses.sequence_mean(X, None), (1.5 + 6) / 2)
    np.testing.assert_allclose(losses.fixed_length_mean(X, None, length=2), (3 / 2 + 12 / 2) / 2)


def test_rows_without_a_token_are_not_averaged_over():
    x, mask = f([1, 2], [3, 9], [7, 7]), f([1, 1], [1, 0], [0, 0])
    np.testing.assert_allclose(losses.sequence_mean(x, mask), losses.sequence_mean(X, MASK))
    np.testing.assert_allclose(
        losses.fixed_length_mean(x, mask, length=4), losses.fixed_length_mean(X, MASK, length=4)
    )


def test_all_agree_where_rows_are_full():
    full = f([1, 2, 4], [3, 9, -1])
    for value in (losses.sequence_mean(full, None), losses.fixed_length_mean(full, None, length=3)):
        np.testing.assert_allclose(value, losses.token_mean(full, None), rtol=1e-6)


@pytest.mark.parametrize("reduce", [losses.token_mean, losses.sequence_mean])
def test_a_mean_of_a_constant_is_the_constant(reduce):
    np.testing.assert_allclose(reduce(jnp.full((2, 2), 5.0), MASK), 5)
