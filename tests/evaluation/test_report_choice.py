"""Which items a report shows."""

import numpy as np
import pytest
from scipy.special import softmax

from jaxalign.evaluation.items import read_items
from jaxalign.evaluation.report_choice import shares_of, shown_items, verdict, verdict_metric
from jaxalign.evaluation.results import Figure
from tests.evaluation import evaluation_folders as folders

HIGHER, LOWER, NEITHER = (
    {"accuracy": Figure(value=0.5, low=0.4, high=0.6, count=1, better=better)}
    for better in ("higher", "lower", "")
)


def items_of(folder, scores, **changes):
    rows = [folders.item(i, score) | changes for i, score in enumerate(scores)]
    return read_items(folders.write(folder, folders.results(), {"quiz": rows}), "quiz")


def test_all_of_few_items_are_shown_in_order(tmp_path):
    found = shown_items([items_of(tmp_path / "a", [0.0, 1.0, None])], HIGHER, most=3, seed=0)
    assert list(found.items()) == [(0, ()), (1, ()), (2, ())]


@pytest.mark.parametrize(
    ("metrics", "names", "first"),
    [
        (HIGHER, ("worst", "best"), 0),
        (LOWER, ("worst", "best"), 99),
        (NEITHER, ("lowest", "highest"), 0),
    ],
)
def test_the_ends_are_those_of_the_scores_and_the_worst_come_first(metrics, names, first, tmp_path):
    # The score of item i is i / 100.
    found = shown_items([items_of(tmp_path / "a", [i / 100 for i in range(100)])], metrics, most=9, seed=0)
    by_reason = {name: [i for i, why in found.items() if name in why] for name in (*names, "random")}
    low, high = [0, 1, 2], [99, 98, 97]
    assert by_reason[names[0]] == (low if first == 0 else high)
    assert by_reason[names[1]] == (high if first == 0 else low)
    assert len(by_reason["random"]) == 3
    assert next(iter(found)) == first


def test_random_items_are_drawn_from_all_by_the_seed(tmp_path):
    items = [items_of(tmp_path / "a", [float(i % 2) for i in range(40)])]

    def drawn(seed):
        return {i for i, why in shown_items(items, HIGHER, most=30, seed=seed).items() if "random" in why}

    assert drawn(0) == drawn(0) != drawn(1)
    # 10 of 40 a seed: every one comes up sooner or later, the best and the worst too.
    assert set().union(*map(drawn, range(60))) == set(range(40))
    assert all(len(drawn(seed)) == 10 for seed in range(5))


def test_never_more_are_shown_than_asked_and_no_score_means_random_ones(tmp_path):
    scored, bare = (
        items_of(tmp_path / "a", [float(i % 3) for i in range(50)]),
        items_of(tmp_path / "b", [None] * 50),
    )
    for most in range(1, 50):
        assert 1 <= len(shown_items([scored], HIGHER, most=most, seed=0)) <= most
    found = shown_items([bare], HIGHER, most=7, seed=0)
    assert set(found.values()) == {("random",)} and len(found) == 7
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        shown_items([scored], HIGHER, most=0, seed=0)


def test_of_equal_scores_the_surest_are_shown(tmp_path):
    rows = [
        folders.item(i, 0, choices=["a", "b"], logps=[-float(i), 0.0], right=[0]) for i in range(20)
    ]  # the right one is less and less likely
    items = read_items(folders.write(tmp_path / "a", folders.results(), {"quiz": rows}), "quiz")
    found = shown_items([items], HIGHER, most=6, seed=0)
    assert [i for i, why in found.items() if "worst" in why] == [19, 18]
    assert [i for i, why in found.items() if "best" in why] == [0, 1]


def test_of_several_models_the_items_that_they_differ_on_most_are_shown(tmp_path):
    ours = items_of(tmp_path / "a", [0.5] * 40)
    theirs = items_of(tmp_path / "b", [0.5] * 30 + [0.6, 0.4, 1.0, 0.1, None])
    found = shown_items([ours, theirs], HIGHER, most=12, seed=0)
    # 0.5, 0.4, and 0.1 twice; three of the twelve.
    differing = [i for i, why in found.items() if "differing" in why]
    assert differing[:2] == [32, 33] and differing[2] in (30, 31) and len(differing) == 3


def test_a_metric_of_ones_and_zeros_says_what_is_right(tmp_path):
    items = items_of(tmp_path / "a", [1.0, 0.0, 0.5, None])
    assert verdict_metric([items], HIGHER) == "accuracy"
    assert [verdict(items.get(i), "accuracy") for i in range(5)] == ["right", "wrong", "tie", "", ""]
    assert verdict(items[0], None) == ""
    # A toxic answer is no right one, and 0.3 says neither.
    assert verdict_metric([items], LOWER) is None
    assert verdict_metric([items_of(tmp_path / "b", [1.0, 0.3])], HIGHER) is None
    assert verdict_metric([items_of(tmp_path / "c", [None])], HIGHER) is None


@pytest.mark.parametrize(
    "logps", [[-1.0, -2.0, -3.5], [-1000.0, -1001.0, -2000.0], [-1.0, float("-inf"), -1.0]]
)
def test_shares_are_a_softmax_however_unlikely_all_are(logps, tmp_path):
    text = [x if np.isfinite(x) else "-inf" for x in logps]
    items = items_of(tmp_path / "a", [1.0], choices=["a", "b", "c"], logps=text, right=[0])
    np.testing.assert_allclose(shares_of(items[0]), softmax(np.asarray(logps)), rtol=1e-12)


def test_choices_that_are_all_impossible_have_no_shares(tmp_path):
    items = items_of(tmp_path / "a", [1.0], choices=["a", "b"], logps=["-inf", "-inf"], right=[0])
    assert np.isnan(shares_of(items[0])).all()
