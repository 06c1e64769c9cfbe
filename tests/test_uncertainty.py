"""Intervals and errors, against figures worked out by hand."""

import math

import numpy as np
import pytest

from jaxalign.evaluation import bootstrap_interval, clustered_interval, estimate_mean, wilson_interval


def test_standard_error_is_the_sample_deviation_over_root_n():
    found = estimate_mean([1.0, 2.0, 3.0, 6.0])
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert found.mean == 3.0
    assert found.standard_deviation == pytest.approx(deviation)
    assert found.standard_error == pytest.approx(deviation / 2)
    assert found.high - found.mean == pytest.approx(1.959964 * deviation / 2, rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_value_has_no_spread():
    assert estimate_mean([2.0]).standard_error == 0.0


def test_no_value_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        estimate_mean([])


def test_wilson_interval_of_eight_in_ten():
    # z = 1.959964: centre (0.8 + z^2/20) / (1 + z^2/10), reach z sqrt(0.016 + z^2/400) / (1 + z^2/10)
    z = 1.959964
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    reach = z * math.sqrt(0.8 * 0.2 / 10 + z * z / 400) / (1 + z * z / 10)
    assert wilson_interval(8, 10) == pytest.approx((centre - reach, centre + reach), rel=1e-6)


@pytest.mark.parametrize("successes", [0, 5])
def test_wilson_interval_stays_between_zero_and_one(successes):
    low, high = wilson_interval(successes, 5)
    assert 0 <= low < high <= 1


def test_more_trials_narrow_the_interval():
    wide, narrow = wilson_interval(5, 10), wilson_interval(500, 1000)
    assert narrow[1] - narrow[0] < 0.2 * (wide[1] - wide[0])


def test_clusters_of_one_trial_give_wilsons_interval():
    # Their variance is p (1 - p) / (G - 1): 20 clusters are worth 19 trials.
    hits = [1.0] * 15 + [0.0] * 5
    assert clustered_interval(hits, [1] * 20) == pytest.approx(wilson_interval(0.75 * 19, 19))


def test_trials_that_agree_within_their_cluster_count_as_one():
    found = clustered_interval([5.0] * 15 + [0.0] * 5, [5] * 20)
    assert found == pytest.approx(wilson_interval(0.75 * 19, 19))
    plain = wilson_interval(75, 100)
    assert found[0] < plain[0] < plain[1] < found[1]


def test_the_effective_number_of_trials_by_hand():
    # s = 1, 3 of n = 2, 4: p = 2/3; residuals -1/3 and 1/3; v = 2 * (2/9) / 36 = 1/81; m = (2/9) * 81 = 18, over 6.
    assert clustered_interval([1, 3], [2, 4]) == pytest.approx(wilson_interval(4, 6))
    # s = 0, 4 of the same: residuals -4/3 and 4/3; v = 2 * (32/9) / 36 = 16/81; m = 9/8.
    assert clustered_interval([0, 4], [2, 4]) == pytest.approx(wilson_interval(2 / 3 * 9 / 8, 9 / 8))


def test_where_all_succeed_clusters_count_as_single_trials():
    assert clustered_interval([3, 4], [3, 4]) == pytest.approx(wilson_interval(2, 2))
    with pytest.raises(ValueError, match="successes <= counts"):
        clustered_interval([3], [2])


@pytest.mark.parametrize(("successes", "count"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_counts_are_refused(successes, count):
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(successes, count)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_outside_zero_and_one_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=confidence)


def test_bootstrap_agrees_with_the_normal_interval_for_a_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found, normal = bootstrap_interval(values, seed=1), estimate_mean(values)
    assert found == pytest.approx((normal.low, normal.high), abs=0.03)


def test_bootstrap_repeats_itself_with_the_same_seed():
    values = np.arange(20.0)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_bootstrap_takes_any_statistic():
    low, high = bootstrap_interval(np.arange(101.0), seed=0, statistic=lambda x: float(np.median(x)))
    assert low < 50 < high
