"""Accuracy, calibration and length bias of reward models, by hand and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxalign.evaluation import wilson_interval
from jaxalign.evaluation.metrics.calibration import length_bias, pair_calibration, spearman


def logit(p):
    return math.log(p / (1 - p))


def test_a_hand_worked_set_of_pairs():
    # P(chosen) = 0.9, 0.9, 0.25, 0.5: confidences 0.9, 0.9, 0.75, 0.5; right 1, 1, 0, half; bins of a sixth.
    found = pair_calibration([logit(0.9), logit(0.9), logit(0.25), 0.0], bins=3)
    assert found.accuracy == (1 + 1 + 0 + 0.5) / 4
    assert (found.low, found.high) == wilson_interval(2.5, 4)
    assert found.brier == pytest.approx((2 * 0.1**2 + 0.75**2 + 0.5**2) / 4)
    assert found.nats == pytest.approx(-(2 * math.log(0.9) + math.log(0.25) + math.log(0.5)) / 4)
    assert [(b.count, b.accuracy) for b in found.bins] == [(1, 0.5), (1, 0.0), (2, 1.0)]
    assert found.expected_calibration_error == pytest.approx((0 + 0.75 + 2 * 0.1) / 4)
    assert found.count == 4


def test_bins_are_closed_on_the_right_and_ties_fall_in_the_first():
    p = [0.5, 0.55, 0.74, 0.76, 0.999999, 0.3]  # 0.3: confidence 0.7, wrong
    found = pair_calibration([logit(x) for x in p], bins=2)
    first, second = found.bins
    assert (first.low, first.high, first.count) == (0.5, 0.75, 4)
    assert (second.low, second.high, second.count) == (0.75, 1.0, 2)
    assert first.confidence == pytest.approx((0.5 + 0.55 + 0.74 + 0.7) / 4)
    assert first.accuracy == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    gaps = abs(first.accuracy - first.confidence) * 4 + abs(1 - second.confidence) * 2
    assert found.expected_calibration_error == pytest.approx(gaps / 6)
    # An edge itself belongs to the bin below, and infinity's neighbour 1.0 to the last.
    assert [b.count for b in pair_calibration([math.log(3), 800.0], bins=2).bins] == [1, 1]


def test_bins_of_equal_mass_hold_as_many_pairs_and_never_part_equal_ones():
    margins = np.random.default_rng(0).normal(1, 2, 100)
    found = pair_calibration(margins, bins=4, binning="equal_mass")
    assert [b.count for b in found.bins] == [25] * 4
    said = np.sort(1 / (1 + np.exp(-np.abs(margins)))).reshape(4, 25)
    assert [b.confidence for b in found.bins] == pytest.approx(said.mean(1))
    for margins in ([0.5] * 9 + [3.0], [3.0, 0.5, *[3.0] * 8]):
        tied = pair_calibration(margins, bins=5, binning="equal_mass")
        assert sorted(b.count for b in tied.bins) == [1, 9]
        assert [b.low == b.high == pytest.approx(b.confidence) for b in tied.bins] == [True] * 2
    order = np.random.default_rng(1).permutation(np.random.default_rng(0).normal(1, 2, 100))
    assert pair_calibration(order, bins=4, binning="equal_mass").expected_calibration_error == pytest.approx(
        found.expected_calibration_error
    )


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has_its_own(binning):
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 2, 100_000)
    chosen = np.where(rng.random(gaps.size) < 1 / (1 + np.exp(-gaps)), gaps, -gaps)
    calibrated = pair_calibration(chosen, binning=binning)
    assert calibrated.expected_calibration_error < 0.01
    over = pair_calibration(3 * chosen, binning=binning)
    expected = np.mean(1 / (1 + np.exp(-3 * np.abs(chosen)))) - np.mean(1 / (1 + np.exp(-np.abs(chosen))))
    assert over.expected_calibration_error == pytest.approx(expected, abs=0.01)
    assert over.accuracy == calibrated.accuracy
    # Both are proper: the calibrated model has the least.
    for factor in (0.5, 2.0):
        scaled = pair_calibration(factor * chosen, binning=binning)
        assert scaled.brier > calibrated.brier and scaled.nats > calibrated.nats


def test_extreme_margins_stay_finite():
    found = pair_calibration([1000.0, -1000.0])
    assert (found.brier, found.nats, found.accuracy) == (0.5, 500.0, 0.5)
    assert found.expected_calibration_error == 0.5


@pytest.mark.parametrize(
    ("margins", "options", "said"),
    [
        ([], {}, "at least one"),
        ([float("nan")], {}, "finite"),
        ([[1.0]], {}, "one axis"),
        ([1.0], {"bins": 0}, "at least one margin and one bin"),
        ([1.0], {"binning": "log"}, "equal_width or equal_mass"),
    ],
)
def test_what_cannot_be_binned_is_refused(margins, options, said):
    with pytest.raises(ValueError, match=said):
        pair_calibration(margins, **options)


def test_length_bias_counts_pairs_of_uneven_length():
    margins = [1.0, -1.0, 2.0, 0.0, 5.0]
    chosen, rejected = [10, 10, 3, 8, 4], [5, 5, 9, 1, 4]
    found = length_bias(margins, chosen, rejected)
    # Longer: chosen, chosen, rejected, chosen, even. The model prefers chosen, rejected, chosen, neither.
    assert found.by_people == 3 / 4
    assert found.by_model == (1 + 0 + 0 + 0.5) / 4
    assert (found.model_low, found.model_high) == wilson_interval(1.5, 4)
    assert (found.people_low, found.people_high) == wilson_interval(3, 4)
    assert (found.uneven, found.count) == (4, 5)
    assert found.correlation == pytest.approx(stats.spearmanr(margins, [5, 5, -6, 7, 0]).statistic)


def test_a_model_that_rewards_length_is_seen():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(1, 200, (2, 2000))
    by_length = length_bias(0.01 * (chosen - rejected), chosen, rejected)
    assert by_length.by_model == 1.0 and by_length.correlation == pytest.approx(1)
    assert by_length.by_people == pytest.approx(0.5, abs=0.05)
    blind = length_bias(rng.normal(1, 1, 2000), chosen, rejected)
    assert abs(blind.correlation) < 0.06
    assert blind.by_model == pytest.approx(0.5, abs=0.05)


def test_without_uneven_pairs_nothing_is_said():
    found = length_bias([1.0, 2.0], [3, 3], [3, 3])
    assert found.uneven == 0
    assert all(math.isnan(x) for x in (found.by_model, found.by_people, found.model_low, found.correlation))
    with pytest.raises(ValueError, match="as many margins as lengths"):
        length_bias([1.0], [1, 2], [2, 1])


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 10, 50)
    y = x + rng.integers(-5, 5, 50)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman(x, np.exp(x)) == pytest.approx(1) and spearman(x, -x) == pytest.approx(-1)
    assert math.isnan(spearman(x, np.ones(50)))
