"""Weights of tokens from another sampler, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses


def f(*values):
    return jnp.asarray(values, jnp.float32)


# Ratios 2 and 0.25; of the row 0.5.
OLD, SAMPLING = f([np.log(0.5), np.log(0.1)]), f([np.log(0.25), np.log(0.4)])


@pytest.mark.parametrize(
    ("level", "mode", "options", "expected"),
    [
        ("token", "truncate", {}, [2, 0.25]),
        ("token", "truncate", {"cap": 1.5}, [1.5, 0.25]),
        ("token", "truncate", {"cap": 1.5, "floor": 0.5}, [1.5, 0.5]),
        ("token", "mask", {"cap": 1.5}, [0, 0.25]),
        ("token", "mask", {"floor": 0.5}, [2, 0]),
        ("sequence", "truncate", {}, [0.5, 0.5]),
        ("sequence", "truncate", {"cap": 0.3}, [0.3, 0.3]),
        ("sequence", "mask", {"cap": 0.3}, [0, 0]),
        ("sequence", "mask", {"cap": 0.6}, [0.5, 0.5]),
    ],
)
def test_value_by_hand(level, mode, options, expected):
    found = losses.importance_weights(OLD, SAMPLING, level=level, mode=mode, **options)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_a_sampler_that_is_the_policy_weighs_1():
    for level in ("token", "sequence"):
        np.testing.assert_array_equal(losses.importance_weights(OLD, OLD, level=level), 1)


def test_masked_tokens_do_not_enter_their_rows_ratio():
    found = losses.importance_weights(OLD, SAMPLING, jnp.asarray([[True, False]]), level="sequence")
    np.testing.assert_allclose(found, [[2, 0]], rtol=1e-6)


def test_uncapped_weights_undo_the_sampler():
    # Averaged over the sampler, weighted rewards are those of the policy.
    policy, sampler, rewards = f([0.7, 0.2, 0.1]), f([0.3, 0.3, 0.4]), f([1, -2, 4])
    weights = losses.importance_weights(jnp.log(policy), jnp.log(sampler), cap=float("inf"))
    np.testing.assert_allclose(jnp.sum(sampler * weights * rewards), jnp.sum(policy * rewards), rtol=1e-5)


def test_an_unknown_level_or_mode_is_named():
    for wrong in ({"level": "row"}, {"mode": "drop"}):
        with pytest.raises(Exception, match=next(iter(wrong.values()))):
            losses.importance_weights(OLD, SAMPLING, **wrong)


def test_only_bad_rows_that_moved_away_are_dropped():
    # Mean log-ratio of sampler to policy: 0.3, 0.3, 0.1, 0.1 nats.
    sampling = jnp.zeros((4, 2))
    logps = f([-0.5, -0.1], [-0.5, -0.1], [-0.1, -0.1], [-0.1, -0.1])
    found = losses.off_policy_weights(logps, sampling, f(1, -1, 1, -1), threshold=0.2)
    np.testing.assert_array_equal(found, [[1, 1], [0, 0], [1, 1], [1, 1]])


def test_a_policy_that_moved_closer_keeps_all_rows():
    found = losses.off_policy_weights(jnp.zeros((1, 2)), f([-3, -3]), f(-1), threshold=0.0)
    np.testing.assert_array_equal(found, 1)
