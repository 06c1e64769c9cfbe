"""Slopes and pictures of `benchmarks/plots.py`."""

import pytest


def test_the_slope_at_the_end_is_the_exponent_of_the_last_doubling(benchmark):
    points = [{"at": a, "seconds": 3.0 + a**2, "bytes": 5.0 * a} for a in (1, 2, 4000, 8000)]
    slope = benchmark("plots").slope
    assert slope(points, "seconds") == pytest.approx(2.0, abs=1e-3)
    assert slope(points, "bytes") == pytest.approx(1.0)


def test_pictures_are_made_of_one_case_and_of_curves(benchmark):
    plots = benchmark("plots")
    assert plots.ratios([("sft-s", 2.0, 1.8, 2.2, None)]).startswith(b"\x89PNG")
    points = [{"at": a, "seconds": float(a), "cpu": 1.5 * a, "bytes": 1e6 * a} for a in (1, 2, 4)]
    assert plots.growth({"rows": points}, {"rows": "linear"}).startswith(b"\x89PNG")
