"""Measures of agreement against published worked examples."""

from functools import partial

import numpy as np
import pytest

from jaxalign.evaluation import bootstrap_interval
from jaxalign.evaluation.metrics.agreement import (
    cohens_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    raw_agreement,
    with_interval,
)

NAN = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), sections C to E: 4 observers, 12 units.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T
# Ratings by category of 10 subjects by 14 raters: the worked example that goes with Fleiss (1971).
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
# Husbands and wives of Hout et al., in Agresti, Categorical Data Analysis (1990): 4 ordered answers.
COUPLES = [[7, 7, 2, 3], [2, 8, 3, 7], [1, 5, 4, 9], [2, 8, 9, 14]]


def from_counts(counts):
    return np.array([np.repeat(np.arange(len(row)), row) for row in counts], float)


def from_table(table):
    """[N, 2] of a table of counts, first rater by second."""
    return np.array(
        [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)], float
    )


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_own_example(level, alpha):
    assert krippendorff_alpha(KRIPPENDORFF, level=level) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_its_definition_over_pairs_of_values(level):
    """1 - mean disagreement within items over that of all values, pair by pair."""
    rng = np.random.default_rng(1)
    ratings = rng.choice([0.0, 1.0, 2.5, 4.0], (15, 4))
    ratings[rng.random(ratings.shape) < 0.2] = NAN
    rows = [row for row in ([x for x in r if x == x] for r in ratings.tolist()) if len(row) > 1]
    every = [x for row in rows for x in row]

    def distance(a, b):
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        between = sum(low <= x <= high for x in every)
        return (between - (every.count(a) + every.count(b)) / 2) ** 2 if a != b else 0.0

    pairs = [
        distance(row[i], row[j]) / (len(row) - 1)
        for row in rows
        for i in range(len(row))
        for j in range(len(row))
        if i != j
    ]
    n = len(every)
    within = sum(pairs) / n
    chance = sum(distance(a, b) for a in every for b in every) / (n * (n - 1))
    assert krippendorff_alpha(ratings, level=level) == pytest.approx(1 - within / chance)


def test_fleiss_kappa_of_the_example_of_its_paper():
    assert fleiss_kappa(from_counts(FLEISS)) == pytest.approx(0.210, abs=5e-4)
    assert raw_agreement(from_counts(FLEISS)) == pytest.approx(0.378, abs=5e-4)


def test_cohens_kappa_by_hand():
    # 20 and 15 of 50 agree; shares of yes 25/50 and 30/50.
    ratings = from_table([[20, 5], [10, 15]])
    assert raw_agreement(ratings) == pytest.approx(35 / 50)
    assert cohens_kappa(ratings) == pytest.approx((0.7 - 0.5) / (1 - 0.5))


def test_cohens_kappa_of_the_couples():
    # As R's vcd prints for SexualFun: unweighted 0.1293, weighted 0.2374 (equal spacing).
    assert cohens_kappa(from_table(COUPLES)) == pytest.approx(0.1293, abs=5e-5)
    assert cohens_kappa(from_table(COUPLES), weights="linear") == pytest.approx(0.2374, abs=5e-5)


def test_weighted_kappa_by_its_definition():
    table = np.array(COUPLES) / np.sum(COUPLES)
    gaps = np.square(np.subtract.outer(np.arange(4), np.arange(4)))
    expected = 1 - (gaps * table).sum() / (gaps * np.outer(table.sum(1), table.sum(0))).sum()
    assert cohens_kappa(from_table(COUPLES), weights="quadratic") == pytest.approx(expected)
    # With equal means and variances of both raters quadratic kappa is Pearson's correlation.
    ratings = np.array([[1, 2], [2, 1], [3, 3], [4, 4], [5, 5.0]])
    found = cohens_kappa(ratings, weights="quadratic")
    assert found == pytest.approx(np.corrcoef(ratings.T)[0, 1])


def test_of_two_categories_all_weights_are_one():
    ratings = from_table([[20, 5], [10, 15]])
    assert cohens_kappa(ratings, weights="linear") == pytest.approx(cohens_kappa(ratings))
    assert cohens_kappa(ratings, weights="quadratic") == pytest.approx(cohens_kappa(ratings))


MEASURES = {
    "raw": raw_agreement,
    "cohen": cohens_kappa,
    "weighted": partial(cohens_kappa, weights="linear"),
    "fleiss": fleiss_kappa,
    "nominal": krippendorff_alpha,
    "ordinal": partial(krippendorff_alpha, level="ordinal"),
    "interval": partial(krippendorff_alpha, level="interval"),
}


@pytest.mark.parametrize("name", MEASURES)
def test_perfect_agreement_is_one_and_chance_is_zero(name):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, (2, 4000)).astype(float)
    assert MEASURES[name](np.stack([first, first], 1)) == pytest.approx(1)
    assert MEASURES[name](np.stack([first, second], 1)) == pytest.approx(
        1 / 3 if name == "raw" else 0, abs=0.05
    )
    opposite = MEASURES[name](np.stack([first, 2 - first], 1))
    assert opposite < (0.4 if name == "raw" else 0.05)


@pytest.mark.parametrize("name", MEASURES)
def test_items_with_one_rating_do_not_count(name):
    ratings = from_table([[20, 5], [10, 15]])
    more = np.concatenate([ratings, [[1, NAN], [NAN, 0], [NAN, NAN], [NAN, 5]]])
    assert MEASURES[name](more) == pytest.approx(MEASURES[name](ratings))


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "raw"])
def test_raters_who_never_vary_say_nothing(name):
    assert np.isnan(MEASURES[name](np.full((5, 2), 3.0)))


def test_the_interval_is_the_bootstrap_over_items():
    ratings = from_table([[20, 5], [10, 15]])
    found = with_interval(cohens_kappa, ratings, seed=3)
    assert (found.low, found.high) == bootstrap_interval(ratings, seed=3, statistic=cohens_kappa)
    assert found.value == pytest.approx(0.4) and found.low < found.value < found.high
    assert (found.items, found.undefined) == (50, 0)
    # The large-sample standard error of kappa = 0.4 here is sqrt(0.7 * 0.3 / 50) / 0.5 = 0.13.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.13, rel=0.15)


def test_resamples_without_a_value_are_left_out_and_told():
    found = with_interval(krippendorff_alpha, [[1, 1], [1, 1], [2, 2]], seed=0)
    assert found.value == found.low == found.high == 1
    # (2/3)^3 of the resamples have no 2, and (1/3)^3 no 1.
    assert found.undefined == pytest.approx(1000 * (8 + 1) / 27, rel=0.15)
    nothing = with_interval(krippendorff_alpha, [[1, 1], [1, 1]], seed=0)
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cohens_kappa(KRIPPENDORFF), "of two raters, got 4"),
        (lambda: cohens_kappa([[1, 2]], weights="cubic"), "linear or quadratic"),
        (lambda: fleiss_kappa(KRIPPENDORFF), "as many ratings of each item, got 2 to 4"),
        (lambda: krippendorff_alpha([[1, 2]], level="ratio"), "nominal, ordinal or interval"),
        (lambda: raw_agreement([[1, NAN]]), "at least one item with two ratings"),
        (lambda: raw_agreement([1, 2]), "items, raters"),
        (lambda: with_interval(raw_agreement, [[1, 2]], seed=0, confidence=95), "confidence in"),
    ],
)
def test_ratings_that_cannot_be_compared_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
