"""The outer loop's own arithmetic: what an evaluation reports."""

import numpy as np
import pytest

from jaxalign.training.loop import summary
from jaxalign.uncertainty import estimate_mean, wilson_interval


def test_margins_get_the_interval_of_their_mean():
    margins = np.array([0.5, -1.0, 2.0, 0.25, 0.0])
    found = summary(
        {"margin": np.array([margins.sum(), 5]), "margin_square": np.array([(margins**2).sum(), 5])}
    )
    wanted = estimate_mean(margins)
    assert found == pytest.approx(
        {"margin": wanted.mean, "margin_low": wanted.low, "margin_high": wanted.high}
    )


def test_accuracy_gets_a_wilson_interval_and_other_means_none():
    found = summary({"accuracy": np.array([7.5, 10.0]), "loss": np.array([3.0, 10.0])})
    low, high = wilson_interval(7.5, 10)
    assert found == pytest.approx({"accuracy": 0.75, "accuracy_low": low, "accuracy_high": high, "loss": 0.3})


def test_an_evaluation_of_no_row_has_no_interval():
    assert summary({"accuracy": np.zeros(2)}) == {"accuracy": 0.0}
