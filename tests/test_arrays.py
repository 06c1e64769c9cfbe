"""Checks that name the argument."""

import jax
import jax.numpy as jnp
import pytest

from jaxalign.arrays import check_floating, check_leading, check_range, check_rank, check_shapes


def test_the_argument_that_differs_is_named():
    with pytest.raises(AssertionError, match=r"second has shape \(3,\), but first has shape \(2,\)"):
        check_shapes(first=jnp.zeros(2), skipped=None, second=jnp.zeros(3))
    check_leading(2, scores=jnp.zeros((2, 3, 4)), mask=jnp.zeros((2, 3)), skipped=None)
    with pytest.raises(AssertionError, match=r"best has shape \(3,\), .*: scores has shape \(2, 4\)"):
        check_leading(1, scores=jnp.zeros((2, 4)), best=jnp.zeros(3))
    with pytest.raises(AssertionError, match="rows: expected rank 2"):
        check_rank(2, rows=jnp.zeros(3))
    with pytest.raises(AssertionError, match="scores: expected a float dtype, got int32"):
        check_floating(scores=jnp.zeros(3, jnp.int32))


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), -1.0])
def test_a_number_outside_an_open_range_is_refused(value):
    with pytest.raises(ValueError, match="beta"):
        check_range("beta", value, 0.0, 1.0, open_low=True, open_high=True)


def test_a_traced_number_is_not_looked_at():
    def inside(beta):
        check_range("beta", beta, 0.0, 1.0)
        return beta

    assert jax.jit(inside)(5.0) == 5.0
