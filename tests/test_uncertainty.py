"""Intervals and errors, against figures worked out by hand."""

import math

import numpy as np
import pytest

from jaxalign.evaluation import bootstrap_interval, estimate_mean, wilson_interval


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
