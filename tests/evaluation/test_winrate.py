"""Win rates: ties count half, intervals hold the rate."""

import pytest

from jaxalign.evaluation import wilson_interval, win_rate


def test_ties_count_half():
    found = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.rate == (2 + 0.5) / 4
    assert (found.low, found.high) == wilson_interval(2.5, 4)


def test_the_two_sides_add_up_to_one():
    ours, theirs = [1.0, 2.0, 3.0], [3.0, 2.0, 1.5]
    assert win_rate(ours, theirs).rate + win_rate(theirs, ours).rate == pytest.approx(1.0)


def test_bootstrap_interval_holds_the_rate():
    found = win_rate([1.0, 0.0] * 50, [0.5] * 100, interval="bootstrap", seed=3)
    assert found.low < found.rate == 0.5 < found.high


@pytest.mark.parametrize(
    ("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], []), ([float("nan")], [1.0]), ([1.0], [float("nan")])]
)
def test_rows_that_cannot_be_compared_are_refused(ours, theirs):
    with pytest.raises(ValueError):
        win_rate(ours, theirs)


def test_an_unknown_interval_is_refused():
    with pytest.raises(ValueError, match="wilson or bootstrap"):
        win_rate([1.0], [0.0], interval="normal")
