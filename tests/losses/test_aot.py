"""AOT: ranks, micro-batches and the gradient of the mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign import losses
from tests.losses.arithmetic import CLOSE, f, logistic, slopes
from tests.losses.cases.preference import aot_statistics, aot_unpaired_statistics, mixed

paired = functools.partial(losses.aot_loss, beta=0.5)
unpaired = functools.partial(losses.aot_unpaired_loss, beta=0.5)
ZERO = f(0, 0, 0)
BATCH = mixed(np.random.default_rng(5))


def test_each_value_meets_the_target_of_its_rank():
    np.testing.assert_array_equal(losses.rank_matched(f(5, -1, 2), f(10, 30, 20)), [30, 10, 20])
    # Ties go by row.
    np.testing.assert_array_equal(losses.rank_matched(f(2, 2, 1), f(10, 30, 20)), [20, 30, 10])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_matching_is_a_permutation_that_keeps_the_order(values, random):
    targets = [random.randint(-5, 5) for _ in values]
    matched = np.asarray(losses.rank_matched(f(*values), f(*targets)))
    np.testing.assert_array_equal(np.sort(matched), np.sort(targets))
    for i, x in enumerate(values):
        assert all(matched[i] <= matched[j] for j, y in enumerate(values) if x < y)


def test_paired_value_by_hand():
    # Policy margins 3, 1, 2 and reference margins 0, 5, 1 (ranks 0: 0, 1: 1, 2: 5).
    loss = paired(f(-1, -1, -1), f(-4, -2, -3), f(-5, 0, -4), f(-5, -5, -5))
    np.testing.assert_allclose(loss, [logistic(0.5 * (3 - 5)), logistic(0.5 * 1), logistic(0.5 * 1)], **CLOSE)


def test_unpaired_value_by_hand():
    # Chosen log-ratios 3, 1 and rejected 0, 2: compared are 3 with 2 and 1 with 0.
    loss = unpaired(f(3, 1), f(0, 2), f(0, 0), f(0, 0))
    high, low = logistic(0.5 * (3 - 2)), logistic(0.5 * (1 - 0))
    np.testing.assert_allclose(loss, [(high + low) / 2, (low + high) / 2], **CLOSE)
    # Row 0 has the highest chosen and the lowest rejected.
    loss = unpaired(f(3, 1), f(-4, 2), f(0, 0), f(0, 0))
    high, low = logistic(0.5 * (3 - 2)), logistic(0.5 * (1 + 4))
    np.testing.assert_allclose(loss, [(high + low) / 2] * 2, **CLOSE)


@pytest.mark.parametrize("loss", [paired, unpaired], ids=["paired", "unpaired"])
def test_one_row_is_dpo(loss):
    arrays = f(-2), f(-5), f(-3), f(-4)
    dpo = functools.partial(losses.dpo_loss, beta=0.5, label_smoothing=0.1)
    np.testing.assert_allclose(loss(*arrays, label_smoothing=0.1), dpo(*arrays), rtol=1e-6)
    for found, expected in zip(
        slopes(functools.partial(loss, label_smoothing=0.1), *arrays), slopes(dpo, *arrays), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [paired, unpaired], ids=["paired", "unpaired"])
def test_chosen_is_pushed_up_and_rejected_down_in_every_row(loss):
    chosen, rejected = slopes(lambda *x: loss(*x, ZERO, ZERO), f(1, -2, 0.5), f(-1, 3, 0))
    assert (chosen < 0).all()
    assert (rejected > 0).all()


def test_the_unpaired_mean_and_its_gradient_are_those_over_ranks():
    def by_rank(chosen, rejected):
        c = jnp.sort(chosen - BATCH["ref_chosen_logps"])
        r = jnp.sort(rejected - BATCH["ref_rejected_logps"])
        return jnp.mean(-jax.nn.log_sigmoid(0.5 * (c - r)))

    def ours(chosen, rejected):
        return jnp.mean(unpaired(chosen, rejected, *(jnp.asarray(BATCH[f"ref_{s}_logps"]) for s in SIDES)))

    policy = [jnp.asarray(BATCH[f"policy_{s}_logps"]) for s in SIDES]
    (value, gradients), (expected, slopes_by_rank) = (
        jax.value_and_grad(loss, (0, 1))(*policy) for loss in (ours, by_rank)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradients, slopes_by_rank, rtol=1e-5, atol=1e-7)


SIDES = ("chosen", "rejected")


@pytest.mark.parametrize(
    ("loss", "statistics"),
    [(paired, aot_statistics), (unpaired, aot_unpaired_statistics)],
    ids=["paired", "unpaired"],
)
def test_micro_batches_given_their_matches_have_the_gradient_of_the_whole(loss, statistics):
    arrays = {name: jnp.asarray(x) for name, x in BATCH.items()}
    whole = slopes(loss, *arrays.values())
    parts = []
    for rows in (slice(0, 3), slice(3, 8)):
        part = [x[rows] for x in arrays.values()]
        parts.append(slopes(functools.partial(loss, **statistics(BATCH, rows)), *part))
    for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5, atol=1e-7)
    alone = slopes(loss, *(x[:3] for x in arrays.values()))
    assert not np.allclose(alone[0], whole[0][:3])


def test_half_a_match_is_refused():
    with pytest.raises(ValueError, match="matched_chosen"):
        unpaired(ZERO, ZERO, ZERO, ZERO, matched_rejected=ZERO)
