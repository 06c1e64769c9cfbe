"""Paired tests against scipy and by simulation; corrections against worked examples."""

import numpy as np
import pytest
from scipy import stats

from jaxalign.evaluation.metrics import significance
from jaxalign.evaluation.metrics.significance import (
    benjamini_hochberg,
    holm,
    paired_bootstrap,
    permutation_test,
    sign_test,
)

ZERO = np.zeros


def test_the_bootstrap_of_a_mean_is_near_students_interval():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 3, 300)
    ours = base + rng.normal(0.2, 1, 300)
    found = paired_bootstrap(ours, base, seed=1)
    student = stats.ttest_rel(ours, base)
    assert found.mean == pytest.approx(np.mean(ours - base))
    assert (found.low, found.high) == pytest.approx(student.confidence_interval(0.95), abs=0.01)
    assert found.p_value == pytest.approx(student.pvalue, abs=0.01)
    assert found.count == 300
    back = paired_bootstrap(base, ours, seed=1)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert back.p_value == found.p_value


def test_the_bootstrap_covers_the_truth_and_finds_nothing_where_nothing_is():
    rng = np.random.default_rng(0)
    covered, rejected, rejected_far = [], [], []
    for seed in range(400):
        scores = rng.exponential(1.0, 60) - 1.0  # mean 0, skewed
        found = paired_bootstrap(scores, ZERO(60), seed=seed, resamples=400)
        covered.append(found.low <= 0 <= found.high)
        rejected.append(found.p_value <= 0.05)
        rejected_far.append(
            paired_bootstrap(scores + 0.5, ZERO(60), seed=seed, resamples=400).p_value <= 0.05
        )
    # 400 draws of 0.95 have a standard error of 0.011; skewness costs a few percent.
    assert 0.90 <= np.mean(covered) <= 0.98
    assert 0.02 <= np.mean(rejected) <= 0.09
    assert np.mean(rejected_far) > 0.85


def test_the_bootstrap_repeats_with_its_seed_and_in_blocks(monkeypatch):
    d = np.random.default_rng(0).normal(0.3, 1, 30)
    whole = paired_bootstrap(d, ZERO(30), seed=2, resamples=500)
    assert whole == paired_bootstrap(d, ZERO(30), seed=2, resamples=500)
    assert whole != paired_bootstrap(d, ZERO(30), seed=3, resamples=500)
    monkeypatch.setattr(significance, "BLOCK", 30 * 7)
    assert paired_bootstrap(d, ZERO(30), seed=2, resamples=500) == whole


def test_equal_scores_do_not_differ():
    found = paired_bootstrap([1.0, 2.0], [1.0, 2.0], seed=0, resamples=50)
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert sign_test([1.0], [1.0]) == permutation_test([1.0], [1.0], seed=0) == 1


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (1, 9), (5, 5), (0, 6), (60, 41), (1200, 1000)])
def test_the_sign_test_is_the_binomial_test_without_ties(wins, losses):
    scores = [1.0] * wins + [-1.0] * losses + [0.0] * 4
    expected = stats.binomtest(wins, wins + losses).pvalue
    assert sign_test(scores, ZERO(len(scores))) == pytest.approx(expected)


def test_the_sign_test_by_hand():
    # 4 wins, 1 loss: 2 * (C(5, 0) + C(5, 1)) / 2^5.
    assert sign_test([1, 1, 1, 1, 0], [0, 0, 0, 0, 1]) == 2 * (1 + 5) / 32


def test_the_permutation_test_of_few_pairs_is_exact():
    # |sum| = 6 is reached by + + + and - - - alone, of 8.
    assert permutation_test([1.0, 2.0, 3.0], ZERO(3), seed=0) == 2 / 8
    d = np.random.default_rng(0).normal(0.4, 1, 12)
    expected = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert permutation_test(d, ZERO(12), seed=0) == pytest.approx(expected)
    # Differences of 0 change nothing, and sums that are equal but for rounding are equal.
    assert permutation_test([0.1, 0.2, 0.3, 5.0], [0, 0, 0, 5.0], seed=0) == 2 / 8
    assert permutation_test([0.1] * 10, ZERO(10), seed=0) == 2 / 1024
    # Of 0.3, 0.1 and 0.1 all but 0.3 - 0.1 - 0.1 and its negative are as far from 0 as 0.3 itself.
    assert permutation_test([0.3, 0.1, -0.1], ZERO(3), seed=0) == 6 / 8


def test_the_permutation_test_of_many_pairs_draws_flips(monkeypatch):
    d = np.random.default_rng(1).normal(0.3, 1, 16)
    exact = permutation_test(d, ZERO(16), seed=0)
    monkeypatch.setattr(significance, "MOST_EXACT", 10)
    drawn = permutation_test(d, ZERO(16), seed=0)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.02)
    monkeypatch.setattr(significance, "BLOCK", 160)
    assert permutation_test(np.ones(40), ZERO(40), seed=0, resamples=999) == 1 / 1000


def test_holms_correction_by_hand():
    p = [0.01, 0.04, 0.03, 0.005]
    # Sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03, 1 * 0.04, each at least the one before.
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([0.2]).tolist() == [0.2]
    assert holm([]).size == benjamini_hochberg([]).size == 0


def test_benjamini_and_hochberg_find_what_their_paper_finds():
    # Their section 3.1: 15 tests, of which 4 are found at 0.05, and 3 by Bonferroni's level.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    assert (benjamini_hochberg(p) <= 0.05).sum() == 4
    assert (holm(p) <= 0.05).sum() == 3
    order = np.random.default_rng(0).permutation(15)
    shuffled = np.array(p)[order]
    assert benjamini_hochberg(shuffled) == pytest.approx(stats.false_discovery_control(shuffled))
    assert holm(shuffled) == pytest.approx(holm(p)[order])
    assert (holm(p) >= benjamini_hochberg(p)).all()


def test_holm_keeps_false_findings_rare():
    rng = np.random.default_rng(0)
    any_found = [(holm(rng.random(10)) <= 0.05).any() for _ in range(4000)]
    plain = [(rng.random(10) <= 0.05).any() for _ in range(4000)]
    assert np.mean(any_found) == pytest.approx(0.05, abs=0.015)
    assert np.mean(plain) > 0.3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: paired_bootstrap([1.0], [1.0, 2.0], seed=0), "equal length"),
        (lambda: sign_test([], []), "equal length"),
        (lambda: permutation_test([np.nan], [1.0], seed=0), "not finite"),
        (lambda: permutation_test([1.0], [2.0], seed=0, resamples=0), "resamples"),
        (lambda: paired_bootstrap([1.0], [2.0], seed=0, confidence=95), "confidence"),
        (lambda: holm([0.5, 1.5]), r"in \[0, 1\]"),
        (lambda: benjamini_hochberg([np.nan]), r"in \[0, 1\]"),
    ],
)
def test_what_cannot_be_tested_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
